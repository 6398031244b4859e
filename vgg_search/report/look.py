"""How every figure looks: one template, a colour and a marker for each state, the accuracy axis.

A figure is a function of the run whose docstring is what the page says of it: its title, and under
a blank line what to look at. Colours are those of Okabe and Ito (jfly.uni-koeln.de/color, 2008),
told apart with any colour vision.
"""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import plotly.graph_objects as go

from vgg_search.records import METRIC, State
from vgg_search.report.run import Row, Run

BLUE, ORANGE, RED, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
PINK, GREY, INK = "#CC79A7", "#9A9A9A", "#222222"
LOOKS: dict[State, dict[str, str]] = {
    "completed": {"color": BLUE, "symbol": "circle"},
    "pruned": {"color": GREY, "symbol": "circle-open"},
    "diverged": {"color": RED, "symbol": "x-thin-open"},
    "failed": {"color": PINK, "symbol": "cross-thin-open"},
    "interrupted": {"color": ORANGE, "symbol": "square-open"},
}
# Of a decade of 1 - accuracy, falling; and as many ticks as can be read
TICK_STEPS, MOST_TICKS = (9, 8, 7, 6, 5, 4, 3, 2.5, 2, 1.5, 1.2, 1), 12
_AXIS = {"gridcolor": "#E6E6E6", "linecolor": "#888888", "showline": True, "zeroline": False}
_AXIS |= {"ticks": "outside", "automargin": True, "title": {"standoff": 12, "font": {"size": 14}}}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, sans-serif", "size": 14, "color": INK},
        "colorway": [BLUE, ORANGE, GREEN, RED, PINK, GREY],
        "plot_bgcolor": "white",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 10, "r": 10, "t": 100, "b": 10},
        "height": 440,
        "dragmode": False,  # a finger that scrolls the page must not draw a zoom box
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
    },
    data={
        "scatter": [{"hoverinfo": "text", "marker": {"size": 8, "line": {"width": 1.5}}}],
        "heatmap": [{"hoverinfo": "skip", "showscale": False, "xgap": 2, "ygap": 2}],
        "bar": [{"hoverinfo": "text", "orientation": "h", "cliponaxis": False, "textangle": 0}],
    },
)
Figure: TypeAlias = Callable[[Run], go.Figure]


class NotDrawnError(Exception):
    """Why a figure cannot be drawn."""


def drawing(figure: Figure, run: Run) -> go.Figure | str:
    """The figure in the common look, with its title and what to look at (`layout.meta`); or why
    it cannot be drawn."""
    title, _, look = (inspect.getdoc(figure) or "").partition("\n\n")
    try:
        drawn = figure(run)
    except NotDrawnError as reason:
        return str(reason)
    drawn.layout.template = TEMPLATE
    return drawn.update_layout(title=title, meta=" ".join(look.split()))


def hover(row: Row) -> str:
    """What is said of a trial."""
    score = "no score" if row[METRIC] is None else f"{METRIC} {row[METRIC]:.4f}"
    what = f"trial {row['number']}, {row['state']}<br>{row['arch']}, lr {row['lr']:.3g}"
    return f"{what}<br>{score} after {row['epochs']} epochs"


def add_trials(
    figure: go.Figure, rows: Iterable[Row], x: Callable[[Row], float], **look: Any
) -> None:
    """A trace of the trials at their last accuracy; `x` is where each lies on the x axis."""
    places, texts = [x(row) for row in rows], [hover(row) for row in rows]
    figure.add_scatter(x=places, y=[row[METRIC] for row in rows], hovertext=texts, **look)


def add_states(figure: go.Figure, rows: Iterable[Row], x: Callable[[Row], float]) -> None:
    """The same with a trace for each state."""
    for state, marker in LOOKS.items():
        if own := [row for row in rows if row["state"] == state]:
            add_trials(figure, own, x, mode="markers", name=state, marker=marker)


def log_x(figure: go.Figure) -> go.Figure:
    """A log x axis whose ticks say whole numbers, as "50k", instead of lone digits."""
    places = [x for trace in figure.data for x in trace.x]
    steps = "D2" if max(places) > 5 * min(places) else None  # 1, 2, 5 of each decade
    form = "~s" if min(places) >= 1 else "~g"
    return figure.update_xaxes(type="log", tickformat=form, dtick=steps)


def stretch_accuracy(figure: go.Figure, run: Run) -> go.Figure:
    """Turn the y axis of accuracies into log(1 - accuracy), so that the top, where most trials
    lie, has the room; the baseline is a dotted line."""
    traces = [trace for trace in figure.data if trace.yaxis in (None, "y")]
    for trace in traces:
        trace.y = [min(max(1 - accuracy, 1e-3), 1.0) for accuracy in trace.y]
    errors = [error for trace in traces for error in trace.y]
    if run.baseline is not None:
        errors.append(max(1 - run.baseline, 1e-3))
        line = {"color": INK, "dash": "dot", "width": 1.5}
        figure.add_hline(y=errors[-1], line=line, showlegend=True, name="baseline")
    low, high = min(errors) / 1.05, min(max(errors) * 1.05, 1.0)
    ticks = [step * 10**-decade for decade in range(1, 5) for step in TICK_STEPS]
    ticks = [tick for tick in ticks if low <= tick <= high]
    ticks = ticks[:: -(-len(ticks) // MOST_TICKS)] if len(ticks) > 1 else [high, low]
    figure.layout.yaxis.update(
        type="log",
        range=[math.log10(high), math.log10(low)],
        tickvals=ticks,
        ticktext=[f"{1 - tick:.3f}".rstrip("0") for tick in ticks],
        title=METRIC.replace("val_", "validation "),
    )
    return figure


def scored(run: Run) -> list[Row]:
    """The ranked trials, best first. Raises NotDrawnError if there are none."""
    if not run.ranked:
        raise NotDrawnError("no trial has a score")
    return run.ranked
