"""The figures of the searched space: what a network costs, which choices matter, where to go on."""

import math
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from vgg_search.report.health import Run, edges
from vgg_search.report.plots import (
    BLUE,
    GREY,
    INK,
    MOST_LINES,
    ORANGE,
    RED,
    Drawn,
    accuracy_y,
    add_dots,
    blank,
    error_of,
    hover,
    log_x,
)

# A quarter of them is the top that is looked at; Optuna wants five there.
IMPORTANCE_TRIALS, IMPORTANCE_TOP = 20, 0.25
FIFTHS = ["#FDE725", "#5EC962", "#21918C", "#3B528B", "#440154"]  # Viridis, best first
CHOICES = {
    "depth": "depth", "width": "width", "lr": "lr", "weight_decay": "weight decay",
    "dropout": "dropout", "hidden_features": "hidden", "batch_norm": "batch norm",
    "batch_size": "batch size",
}  # fmt: skip


def _cost(run: Run, column: str, title: str, label: str) -> Drawn:
    rows = run.ranked[run.ranked[column] > 0]
    if not len(rows):
        return "no trial has a score"
    figure = blank(
        f"Accuracy against {title}",
        "Completed trials on the orange line are the best for their cost: walk down it to see what "
        "a smaller network would lose.",
        label, "validation accuracy",
    )  # fmt: skip
    add_dots(figure, rows, rows[column])
    done = run.completed.sort_values(column, kind="stable")
    front = done[done["val_accuracy"] > done["val_accuracy"].cummax().shift(fill_value=-1)]
    if len(front):
        mark = {"symbol": "diamond-open", "size": 12, "line": {"width": 2}}
        figure.add_scatter(
            x=front[column], y=error_of(front["val_accuracy"]), mode="lines+markers", marker=mark,
            line={"color": ORANGE, "width": 2.5, "shape": "hv"}, name="Pareto front",
            hovertext=hover(front), hoverinfo="text",
        )  # fmt: skip
    log_x(figure, rows[column])
    return accuracy_y(figure, run, rows["val_accuracy"])


def accuracy_by_params(run: Run) -> Drawn:
    """Trials and Pareto front over num_params."""
    return _cost(run, "num_params", "parameters", "parameters")


def accuracy_by_flops(run: Run) -> Drawn:
    """Trials and Pareto front over flops_per_image."""
    return _cost(run, "flops_per_image", "FLOPs", "FLOPs an image, forward")


def depth_width(run: Run) -> Drawn:
    """Best accuracy of each (depth, width)."""
    if not len(run.ranked):
        return "no trial has a score"
    cells = run.ranked.groupby(["depth", "width"])["best_val_accuracy"].agg(["max", "size"])
    best, count = cells["max"].unstack(), cells["size"].unstack()
    text = [
        ["" if math.isnan(b) else f"{b:.3f}<br>n={n:.0f}" for b, n in zip(*pair, strict=True)]
        for pair in zip(best.to_numpy(), count.to_numpy(), strict=True)
    ]
    figure = blank(
        "Depth and width",
        "Bright is better: the best accuracy at any epoch of n trials. Empty cells were never "
        "tried, and one with n=1 says little.",
        "width (widest out_channels)", "depth (convolutions)", showlegend=False,
    )  # fmt: skip
    figure.add_heatmap(
        z=-np.log10(error_of(best)), x=[f"{w:.0f}" for w in best.columns],
        y=[f"{d:.0f}" for d in best.index], text=text, texttemplate="%{text}", showscale=False,
        colorscale="Viridis", hoverinfo="skip", xgap=2, ygap=2,
    )  # fmt: skip
    figure.update_xaxes(type="category", showgrid=False)
    return figure.update_yaxes(type="category", showgrid=False)


def lr_by_depth(run: Run) -> Drawn:
    """Accuracy over lr, a colour a depth; diverged trials at the bottom."""
    rows = run.ranked[run.ranked["lr"] > 0]
    lost = run.trained[(run.trained["state"] == "diverged") & (run.trained["lr"] > 0)]
    if not len(rows):
        return "no trial has a score"
    figure = blank(
        "Learning rate by depth",
        "If the peak moves with the colour, depth and learning rate belong together; small marks "
        "were stopped early, red crosses at the bottom diverged.",
        "lr (peak learning rate)", "validation accuracy",
    )  # fmt: skip
    figure.add_scatter(
        x=rows["lr"], y=error_of(rows["val_accuracy"]), mode="markers", hovertext=hover(rows),
        hoverinfo="text", showlegend=False,
        marker={
            "color": rows["depth"], "colorscale": "Viridis", "line": {"width": 0.5, "color": INK},
            "size": np.where(rows["state"] == "completed", 11, 6),
            "colorbar": {"title": {"text": "depth"}, "thickness": 12, "dtick": 1},
        },
    )  # fmt: skip
    if len(lost):
        cross = {"color": RED, "symbol": "x-thin-open", "size": 9, "line": {"width": 2}}
        figure.add_scatter(
            x=lost["lr"], y=[0.02] * len(lost), yaxis="y2", mode="markers", name="diverged",
            marker=cross, hovertext=hover(lost), hoverinfo="text",
        )  # fmt: skip
        figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False})
    log_x(figure, pd.concat([rows["lr"], lost["lr"]]))
    return accuracy_y(figure, run, rows["val_accuracy"])


def parallel_coordinates(run: Run) -> Drawn:
    """A line a trial through its choices, axes lying, coloured by fifths of the ranking.

    Plain lines: plotly's own kind needs WebGL, and its standing axes overlap on a phone.
    """
    rows = run.ranked.iloc[:: max(1, math.ceil(len(run.ranked) / MOST_LINES))]
    names = [name for name in CHOICES if rows[name].nunique() > 1]
    if len(rows) < 2 or not names:
        return "it takes two trials that differ"
    figure = blank(
        "Choices together",
        "Lines are trials, yellow the best fifth: where yellow bundles, a choice matters; where it "
        "spreads, any value does. Tap a fifth in the legend to hide it, twice to see it alone.",
        "", "", height=170 + 50 * len(names),
    )  # fmt: skip
    places = {}
    for name in names:
        values = rows[name].astype(float)
        log = name in ("lr", "weight_decay") and values.min() > 0
        values = np.log10(values) if log else values
        marks = np.linspace(values.min(), values.max(), 3)
        if values.nunique() <= 6:
            marks = np.sort(values.unique())
            values = values.map(list(marks).index)  # evenly apart, or small widths would overlap
        ends = values.min(), values.max()
        spots = np.linspace(0, 1, len(marks))
        places[name] = (values - ends[0]) / (ends[1] - ends[0])
        for spot, mark in zip(spots, marks, strict=True):
            said = f"{10**mark:.2g}" if log else f"{mark:.2f}".rstrip("0").rstrip(".")
            said = ("yes" if mark else "no") if name == "batch_norm" else said
            figure.add_annotation(
                x=spot, y=CHOICES[name], text=said, showarrow=False, yshift=11,
                font={"size": 12}, bgcolor="rgba(255,255,255,0.75)", borderpad=0,
            )  # fmt: skip
    # Lines that share a choice would hide each other.
    jitter = np.random.default_rng(0).uniform(-0.015, 0.015, (len(rows), len(names)))
    drawn = pd.DataFrame(places)[names].to_numpy() + jitter
    fifth = np.arange(len(rows)) * len(FIFTHS) // len(rows)
    for i, colour in reversed(list(enumerate(FIFTHS))):
        own = np.flatnonzero(fifth == i)
        x = np.hstack([drawn[own], np.full((len(own), 1), np.nan)]).ravel()
        figure.add_scatter(
            x=x, y=[*(CHOICES[name] for name in names), None] * len(own), mode="lines",
            name=("best", "2nd", "3rd", "4th", "worst")[i],
            line={"color": colour, "width": 2.5 if i == 0 else 1}, hoverinfo="skip",
        )  # fmt: skip
    figure.update_layout(legend_traceorder="reversed")
    figure.update_xaxes(visible=False, range=[-0.06, 1.08])
    return figure.update_yaxes(autorange="reversed", ticks="", showline=False, gridcolor="#BBBBBB")


def scores_at_one_epoch(run: Run) -> tuple[int, pd.Series]:
    """The last epoch that three in four trials have reached, and val_accuracy there by number.

    Survivors alone would hide what made the others fail; a diverged trial counts as the worst.
    """
    reached = run.ranked["epochs"]
    if not len(reached):
        return 0, pd.Series(dtype=float)
    epoch = int(reached.quantile(0.25, interpolation="lower"))
    rows = run.epochs[(run.epochs["epoch"] == epoch) & run.epochs["number"].isin(reached.index)]
    scores = rows.set_index("number")["val_accuracy"].dropna()
    lost = run.trained.index[run.trained["state"] == "diverged"]
    return epoch, pd.concat([scores, pd.Series(0.0, index=lost)])


def importances(run: Run, scores: pd.Series) -> dict[str, float]:
    """Share of each sampled dimension in reaching the best quarter of `scores`, falling.

    PED-ANOVA, arXiv:2304.10255; for dimensions that not every trial has, arXiv:2601.20800.
    """
    made: dict[str, BaseDistribution] = {}
    for name, values in run.values.items():
        values, dim = values[values.index.isin(scores.index)], run.space.dims[name]
        low, high = values.min(), values.max()
        if values.nunique() < 2:
            continue
        if dim.choices:
            made[name] = CategoricalDistribution(sorted(values.unique().tolist()))
        elif dim.kind is int:
            made[name] = IntDistribution(int(low), int(high))
        else:
            made[name] = FloatDistribution(float(low), float(high), log=dim.log and low > 0)
    if len(made) < 2:
        return {}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # or it would tell of a new study
    study = optuna.create_study(direction="maximize")
    optuna.logging.set_verbosity(verbosity)
    for number, score in scores.items():
        own: dict[str, BaseDistribution] = {
            name: dist for name, dist in made.items() if number in run.values[name].index
        }
        params: dict[str, Any] = {name: run.values[name][number] for name in own}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=own, value=float(score))
        )
    judge = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=IMPORTANCE_TOP)
    return optuna.importance.get_param_importances(study, evaluator=judge)


def importance(run: Run) -> Drawn:
    """Bars of `importances`."""
    epoch, scores = scores_at_one_epoch(run)
    if len(scores) < IMPORTANCE_TRIALS:
        return f"it takes {IMPORTANCE_TRIALS} trials with a score, got {len(scores)}"
    shares = importances(run, scores)
    if not shares:
        return "it takes two sampled dimensions that differ"
    names = list(shares)[::-1]
    figure = blank(
        "What matters",
        "Search the long bars further and fix the short ones: each choice's share in what sets "
        f"the best quarter of {len(scores)} trials apart, all compared after epoch {epoch}.",
        "share (PED-ANOVA)", "", height=160 + 28 * len(names), showlegend=False,
    )  # fmt: skip
    figure.add_bar(
        x=[shares[name] for name in names], y=names, orientation="h", marker_color=BLUE,
        text=[f"{shares[name]:.2f}" for name in names], textposition="outside", cliponaxis=False,
        hoverinfo="skip",
    )  # fmt: skip
    return figure.update_xaxes(range=[0, 1.15 * max(shares.values())])


def space_edges(run: Run) -> Drawn:
    """Share of the top trials at the lower and upper end of each sampled dimension."""
    table = edges(run).iloc[::-1]
    if not len(table):
        return "it takes ten trials with a score, and a dimension of three values"
    figure = blank(
        "Edges of the space",
        "A long orange bar: the best fifth of trials lies at that end of the space, so widen it "
        "there. Grey ends cannot be widened.",
        "share of the best fifth at an end", "", barmode="relative",
        height=190 + 30 * len(table), showlegend=False,
    )  # fmt: skip
    for side, sign, natural in (("lower", -1, "floor"), ("upper", 1, "ceiling")):
        counts = zip(table[side], table["trials"], strict=True)
        figure.add_bar(
            x=sign * table[side] / table["trials"], y=table["name"], orientation="h",
            marker_color=np.where(table[natural], GREY, ORANGE), hoverinfo="skip",
            text=[f"{count}/{total}" if count else "" for count, total in counts],
            textangle=0, cliponaxis=False,
        )  # fmt: skip
    ends = ["lower", "", "0", "", "upper"]
    figure.update_xaxes(
        range=[-1.05, 1.05],
        tickvals=[-1, -0.5, 0, 0.5, 1],
        ticktext=ends,
        ticklabeloverflow="allow",
    )
    return figure.add_vline(x=0, line={"color": INK, "width": 1})
