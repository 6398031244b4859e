"""How the search went: when it got better, learning curves, what the workers did."""

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate

import optuna
import plotly.graph_objects as go

from vgg_search.records import BEST_METRIC, METRIC
from vgg_search.report import look
from vgg_search.report.optuna_study import optuna_study, scores_at_one_epoch
from vgg_search.report.run import Run

MOST_WORKERS = 40  # of the timeline
MOST_LINES = 300
NAME_LENGTH = 16  # characters of a worker's name on an axis


def _clock(run: Run) -> tuple[float, str]:
    """Seconds in the unit in which the study's time reads well, and the axis' title."""
    seconds = run.summary["search_seconds"]
    size, unit = (3600, "h") if seconds > 7200 else (60, "min") if seconds > 300 else (1, "s")
    return size, f"time ({unit})"


def _incumbent(run: Run, place: Callable[[float], float], title: str) -> go.Figure:
    """`place` maps seconds of search to the x axis."""
    ended, figure = sorted(look.scored(run), key=lambda row: row["ended"]), go.Figure()
    look.add_states(figure, ended, lambda row: place(row["ended"]))
    if done := [row for row in ended if row["state"] == "completed"]:
        best = list(accumulate((row[METRIC] for row in done), max))
        times = [*(row["ended"] for row in done), max(run.times)]
        line = {"color": look.BLUE, "width": 3, "shape": "hv"}
        x, y = [place(time) for time in times], [*best, best[-1]]
        figure.add_scatter(x=x, y=y, mode="lines", line=line, name="best")
    return look.stretch_accuracy(figure.update_xaxes(rangemode="tozero", title=title), run)


def incumbent_by_time(run: Run) -> go.Figure:
    """Best so far by wall clock

    The line steps up where a completed trial beats all before it: a long flat end means that more
    of the same would buy little.
    """
    size, title = _clock(run)
    return _incumbent(run, lambda time: time / size, title)


def incumbent_by_epochs(run: Run) -> go.Figure:
    """Best so far by epochs trained

    The same against work done, which compares searches whatever machine they ran on.
    """
    title = "epochs trained, all trials together"
    return _incumbent(run, lambda time: bisect_right(run.times, time), title)


def history(run: Run) -> go.Figure:
    """Proposals in order

    Dots that rise to the right mean that the sampler learns where good networks are. All trials
    are compared after the same epoch.
    """
    epoch, scores = scores_at_one_epoch(run)
    figure = optuna.visualization.plot_optimization_history(optuna_study(run, scores))
    figure.data = figure.data[:2]  # without an empty one
    dots, best = figure.data
    dots.update(name="trial", hovertext=[look.hover(run.proposals[number]) for number in scores])
    best.update(name="best so far", line={"shape": "hv"})
    title = f"trained trials in order of proposal, after epoch {epoch}"
    return look.stretch_accuracy(figure.update_xaxes(title=title), run)


def learning_curves(run: Run) -> go.Figure:
    """Learning curves

    Blue lines that cross late mean that the scheduler may stop trials too early to tell.
    """
    trained = [row for row in run.trained if row[BEST_METRIC] is not None]
    if not trained:
        raise look.NotDrawnError("no trial has reported an epoch")
    step, figure = -(-len(trained) // MOST_LINES), go.Figure()
    trained = sorted(trained, key=lambda row: -row[BEST_METRIC])[::step][::-1]  # best on top
    states: set[str] = set()
    for row in trained:
        state, curve = row["state"], run.curves[row["number"]]
        curve = [epoch for epoch in curve if epoch[METRIC] is not None]
        figure.add_scatter(
            x=[epoch["epoch"] for epoch in curve],
            y=[epoch[METRIC] for epoch in curve],
            hovertext=[f"trial {row['number']}: {epoch[METRIC]:.4f}" for epoch in curve],
            name=state,
            legendgroup=state,
            showlegend=state not in states,
            mode="lines+markers",
            line={"width": 1.5},
            marker={"color": look.LOOKS[state]["color"], "size": 4},
            opacity=0.7,
        )
        states.add(state)
    title = f"epoch (one trial in {step} is drawn, from best to worst)" if step > 1 else "epoch"
    figure.update_xaxes(title=title, dtick=1 if run.config["max_epochs"] <= 12 else None)
    return look.stretch_accuracy(figure.update_layout(showlegend=True), run)


def timeline(run: Run) -> go.Figure:
    """Timeline of workers

    A bar is an epoch; white is time in which nothing trained: start-up on the left, overhead
    between bars, on the right a worker with nothing left to do.
    """
    if not run.curves:
        raise look.NotDrawnError("no trial has reported an epoch")
    size, title = _clock(run)
    epochs = [(number, row) for number, rows in run.curves.items() for row in rows]
    epochs.sort(key=lambda epoch: epoch[1]["time"])
    workers = list(dict.fromkeys(row["worker"] for _, row in epochs))
    if (step := -(-len(workers) // MOST_WORKERS)) > 1:
        title += f" (one worker in {step} is drawn)"
        workers = workers[::step]
        drawn = {*workers}
        epochs = [epoch for epoch in epochs if epoch[1]["worker"] in drawn]
    seam = 1 if len(epochs) <= MOST_LINES else 0  # many seams would whiten all
    figure = go.Figure()
    for state, marker in look.LOOKS.items():
        own = [(n, row) for n, row in epochs if run.proposals[n]["state"] == state]
        figure.add_bar(
            base=[(row["time"] - row["epoch_seconds"]) / size for _, row in own],
            x=[row["epoch_seconds"] / size for _, row in own],
            y=[row["worker"] for _, row in own],
            name=state,
            hovertext=[f"epoch {row['epoch']} of {look.hover(run.proposals[n])}" for n, row in own],
            marker={"color": marker["color"], "line": {"color": "white", "width": seam}},
            visible=bool(own),
        )
    short = [
        name if len(name) <= NAME_LENGTH else f"…{name[1 - NAME_LENGTH :]}" for name in workers
    ]
    figure.update_xaxes(title=title, range=[0, run.times[-1] / size])
    figure.update_yaxes(categoryorder="array", categoryarray=workers[::-1])
    figure.update_yaxes(tickvals=workers, ticktext=short)
    height = 150 + 34 * len(workers)
    return figure.update_layout(barmode="overlay", bargap=0.25, height=height, showlegend=True)


FIGURES = (incumbent_by_time, incumbent_by_epochs, history, learning_curves, timeline)
SLOW = (history,)  # what Optuna draws: to import it takes seconds
