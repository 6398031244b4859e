"""The searched space: what a network costs, which choices matter, where to go on."""

import math
import warnings
from operator import itemgetter

import optuna
import plotly.graph_objects as go

from vgg_search.records import BEST_METRIC, METRIC
from vgg_search.report import look
from vgg_search.report.optuna_study import at_most, optuna_study, scores_at_one_epoch
from vgg_search.report.run import Row, Run
from vgg_search.report.warnings import edges

# A quarter of them is the top that is looked at; Optuna wants five there.
IMPORTANCE_TRIALS, IMPORTANCE_TOP = 20, 0.25


def _cost(run: Run, column: str, title: str) -> go.Figure:
    figure, cost = go.Figure(), itemgetter(column)
    look.add_states(figure, look.scored(run), cost)
    front: list[Row] = []
    for row in sorted(run.completed, key=lambda row: (cost(row), -row[METRIC])):
        if not front or row[METRIC] > front[-1][METRIC]:
            front.append(row)
    line = {"color": look.ORANGE, "width": 2.5, "shape": "hv"}
    marker = {"symbol": "diamond-open", "size": 12}
    own = run.summary.get("front", []) if column in run.config.get("objectives", ()) else []
    if own:  # with a further objective it is no line
        front = sorted((run.proposals[row["number"]] for row in own), key=cost)
        several = len(run.config["objectives"]) > 2
        names = [f"{row['number']}: {row['arch']}" for row in front]
        marker |= {"color": look.ORANGE}
        named = {"text": names, "textposition": "bottom right", "textfont": {"size": 11}}
        named |= {"mode": "markers+text" if several else "lines+markers+text"}
        look.add_trials(figure, front, cost, name="front", line=line, marker=marker, **named)
        knee = [run.proposals[row["number"]] for row in own if row["knee"]]
        star = {"symbol": "star", "size": 16, "color": look.RED}
        look.add_trials(figure, knee, cost, mode="markers", name="knee", marker=star)
    elif front:
        look.add_trials(figure, front, cost, name="Pareto front", line=line, marker=marker)
    return look.stretch_accuracy(look.log_x(figure).update_xaxes(title=title), run)


def accuracy_by_params(run: Run) -> go.Figure:
    """Accuracy against parameters

    Completed trials on the orange line are the best for their size: walk down it to see what a
    smaller network would lose.
    """
    return _cost(run, "num_params", "parameters")


def accuracy_by_flops(run: Run) -> go.Figure:
    """Accuracy against FLOPs

    The same for the time that an answer takes.
    """
    return _cost(run, "flops_per_image", "FLOPs an image, forward")


def depth_width(run: Run) -> go.Figure:
    """Depth and width

    Bright is better: the best accuracy at any epoch of n trials. Empty cells were never tried, and
    one with n=1 says little.
    """
    cells: dict[tuple[int, int], list[float]] = {}
    for row in look.scored(run):
        cells.setdefault((row["depth"], row["width"]), []).append(row[BEST_METRIC])
    depths, widths = (sorted({cell[axis] for cell in cells}) for axis in (0, 1))
    table = [[cells.get((depth, width), []) for width in widths] for depth in depths]
    figure = go.Figure().add_heatmap(
        # Stretched towards 1, as the accuracy axes are
        z=[[-math.log(max(1 - max(own), 1e-3)) if own else None for own in line] for line in table],
        x=[str(width) for width in widths],
        y=[str(depth) for depth in depths],
        text=[[f"{max(own):.3f}<br>n={len(own)}" if own else "" for own in line] for line in table],
        texttemplate="%{text}",
        colorscale="Viridis",
    )
    figure.update_xaxes(type="category", showgrid=False, title="width (widest out_channels)")
    figure.update_yaxes(type="category", showgrid=False, title="depth (convolutions)")
    return figure.update_layout(height=130 + 48 * len(depths), showlegend=False)


def lr_by_depth(run: Run) -> go.Figure:
    """Learning rate by depth

    If the peak moves with the colour, depth and learning rate belong together; small marks were
    stopped early, red crosses at the bottom diverged.
    """
    rows, figure = look.scored(run), go.Figure()
    marker = {
        "color": [row["depth"] for row in rows],
        "colorscale": "Viridis",
        "line": {"width": 0.5, "color": look.INK},
        "size": [11 if row["state"] == "completed" else 6 for row in rows],
        "colorbar": {"title": {"text": "depth"}, "thickness": 12, "dtick": 1},
    }
    look.add_trials(figure, rows, itemgetter("lr"), mode="markers", showlegend=False, marker=marker)
    if lost := [row for row in run.trained if row["state"] == "diverged"]:
        x, texts = [row["lr"] for row in lost], [look.hover(row) for row in lost]
        figure.add_scatter(x=x, y=[0.02] * len(x), yaxis="y2", hovertext=texts, name="diverged")
        figure.data[-1].update(mode="markers", marker=look.LOOKS["diverged"])
        figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False})
    return look.stretch_accuracy(
        look.log_x(figure).update_xaxes(title="lr (peak learning rate)"), run
    )


def importance(run: Run) -> go.Figure:
    """What matters

    Search the long bars further and fix the short ones: each choice's share in what sets the best
    quarter of the trials apart. All are compared after the same epoch, or survivors would hide
    what made the others fail; a diverged trial counts as the worst.
    """
    # PED-ANOVA, arXiv:2304.10255; for dimensions that not every trial has, arXiv:2601.20800
    epoch, scores = scores_at_one_epoch(run)
    scores |= {row["number"]: 0.0 for row in run.trained if row["state"] == "diverged"}
    scores = {number: scores[number] for number in at_most([*scores])}
    if len(scores) < IMPORTANCE_TRIALS:
        raise look.NotDrawnError(
            f"it takes {IMPORTANCE_TRIALS} trials with a score, got {len(scores)}"
        )
    study = optuna_study(run, scores, run.space.sampled())
    if sum(len(trial.params) > 1 for trial in study.trials) < IMPORTANCE_TRIALS:
        raise look.NotDrawnError("it takes two sampled dimensions that differ")
    judge = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=IMPORTANCE_TOP)
    with warnings.catch_warnings():
        # Of a block that all but one network have
        warnings.filterwarnings("ignore", "Some regimes for parameter", UserWarning)
        figure = optuna.visualization.plot_param_importances(study, evaluator=judge)
    (bars,) = figure.data
    bars.update(marker_color=look.BLUE, hovertemplate=None)
    title = f"share (PED-ANOVA) of {len(scores)} trials after epoch {epoch}"
    figure.update_xaxes(range=[0, 1.15 * max(bars.x)], title=title).update_yaxes(title="")
    return figure.update_layout(height=110 + 28 * len(bars.y), showlegend=False)


def parallel_coordinates(run: Run) -> go.Figure:
    """Choices together

    Lines are trials, darker the better their rank (0 % is the best): where dark lines bundle, a
    choice matters; where they spread, any value does.
    """
    rows = at_most(look.scored(run))
    rank = {row["number"]: 100 * i / max(1, len(rows) - 1) for i, row in enumerate(rows)}
    names = [name for name in run.params[rows[0]["number"]] if name in rows[0] and name != "arch"]
    figure = optuna.visualization.plot_parallel_coordinate(
        optuna_study(run, rank, names), target=lambda t: t.value or 0.0, target_name="rank (%)"
    )
    if not figure.data:
        raise look.NotDrawnError("it takes two trials that differ")
    # Without the colour bar, and the best on top
    figure.data = sorted(figure.data[:-1], key=lambda trace: -trace.y[0])
    # Turned by a quarter, so that the names of the dimensions fit on a phone
    for trace in figure.data:
        trace.update(x=trace.y, y=trace.x)
    for line in figure.layout.shapes:
        line.update(x0=line.y0, x1=line.y1, y0=line.x0, y1=line.x1)
    notes = [n for n in figure.layout.annotations if n.y in (0, 1) or 0.15 <= n.y <= 0.85]
    for note in notes:
        note.update(x=note.y, y=note.x, xanchor="center", xshift=0, yshift=9)
    figure.layout.annotations = notes
    names, count = figure.layout.xaxis.ticktext, len(figure.layout.xaxis.ticktext)
    y_axis = {"visible": True, "tickvals": list(range(count)), "ticktext": names, "ticks": ""}
    y_axis |= {"range": [count - 0.8, -0.5], "showgrid": False, "showline": False}
    x_axis = {"range": [-0.08, 1.08], "visible": False}
    figure.update_layout(xaxis=x_axis, yaxis=y_axis, plot_bgcolor=None)
    return figure.update_layout(height=70 + 52 * count, showlegend=False)


def space_edges(run: Run) -> go.Figure:
    """Edges of the space

    A long orange bar: the best fifth of trials lies at that end of the space, so widen it there.
    Grey ends cannot be widened.
    """
    table, figure = edges(run)[::-1], go.Figure()
    if not table:
        raise look.NotDrawnError(
            "it takes ten trials with a score, and a dimension of three values"
        )
    for side, sign in (("lower", -1), ("upper", 1)):
        ends = [edge for edge in table if edge.side == side]
        figure.add_bar(
            x=[sign * edge.at_end / edge.trials for edge in ends],
            y=[edge.name for edge in ends],
            marker_color=[look.GREY if edge.natural else look.ORANGE for edge in ends],
            text=[f"{edge.at_end}/{edge.trials}" if edge.at_end else "" for edge in ends],
        )
    figure.update_xaxes(range=[-1.05, 1.05], title="share of the best fifth at an end")
    figure.update_xaxes(tickvals=[-1, 0, 1], ticktext=["lower", "0", "upper"])
    figure.update_xaxes(ticklabeloverflow="allow")
    figure.add_vline(x=0, line={"color": look.INK, "width": 1})
    height = 80 + 15 * len(table)
    return figure.update_layout(barmode="relative", height=height, showlegend=False)


FIGURES = (
    accuracy_by_params,
    accuracy_by_flops,
    depth_width,
    lr_by_depth,
    importance,
    parallel_coordinates,
    space_edges,
)
SLOW = (importance, parallel_coordinates)  # what Optuna draws: to import it takes seconds
