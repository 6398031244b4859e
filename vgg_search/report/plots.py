"""One look for every figure, and the figures of how the search went.

A figure carries its title (`layout.title`) and one sentence on what to look at (`layout.meta`); a
function that lacks what it needs returns the reason instead. Colours are those of Okabe and Ito
(jfly.uni-koeln.de/color, 2008), told apart with any colour vision; a state has the same one, and
the same marker, everywhere.
"""

import math
from base64 import b64encode
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from vgg_search.models.images import CAPTION, COLUMNS, SIDE
from vgg_search.report.health import Run

BLUE, ORANGE, RED, GREEN = "#0072B2", "#E69F00", "#D55E00", "#009E73"
SKY, PINK, GREY, INK = "#56B4E9", "#CC79A7", "#9A9A9A", "#222222"
LOOKS = {  # state -> colour, marker
    "completed": (BLUE, "circle"),
    "pruned": (GREY, "circle-open"),
    "diverged": (RED, "x-thin-open"),
    "failed": (PINK, "cross-thin-open"),
    "interrupted": (ORANGE, "square-open"),
    "waiting": (SKY, "diamond-open"),
    "running": (GREEN, "triangle-right-open"),
}
MOST_LINES = 300
Drawn: TypeAlias = go.Figure | str

_AXIS = {
    "gridcolor": "#E6E6E6", "linecolor": "#888888", "showline": True, "zeroline": False,
    "ticks": "outside", "automargin": True, "title": {"standoff": 12, "font": {"size": 14}},
}  # fmt: skip
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, sans-serif", "size": 14, "color": INK},
        "paper_bgcolor": "white", "plot_bgcolor": "white", "xaxis": _AXIS, "yaxis": _AXIS,
        "margin": {"l": 10, "r": 10, "t": 100, "b": 10}, "height": 440,
        # A finger that scrolls the page must not draw a zoom box.
        "dragmode": False,
        "legend": {
            "orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12},
        },
    }
)  # fmt: skip


def blank(title: str, look: str, x: str, y: str, **layout: Any) -> go.Figure:
    """An empty figure in the common look."""
    return go.Figure().update_layout(
        template=TEMPLATE, title=title, meta=look, xaxis_title=x, yaxis_title=y, **layout
    )


def error_of(accuracy: Any) -> Any:
    """1 - accuracy, as the stretched axes draw it."""
    return np.clip(1 - np.asarray(accuracy, dtype=float), 1e-3, 1)


def ticks_of(low: float, high: float, steps: tuple[float, ...], most: int) -> list[float]:
    """Round values between two positive ends, for a log axis: `steps` of each decade, thinned."""
    gap, found = math.log10(high / low) / most, [0.0]
    for decade in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for tick in (step * 10.0**decade for step in steps):
            if low <= tick <= high and tick > found[-1] * 10**gap:
                found.append(tick)
    # A lone point has no round value near.
    return found[1:] if len(found) > 2 else [low * (high / low) ** share for share in (0.25, 0.75)]


def log_x(figure: go.Figure, values: pd.Series) -> None:
    """A log x axis whose ticks say whole numbers, as "50k", instead of plotly's lone digits."""
    low, high = values.min() / 1.15, values.max() * 1.15
    figure.update_xaxes(
        type="log", range=[math.log10(low), math.log10(high)],
        tickvals=ticks_of(low, high, (1, 2, 5), 7), tickformat=".2~s" if low >= 1 else ".2~g",
    )  # fmt: skip


def accuracy_y(figure: go.Figure, run: Run, accuracies: Any) -> go.Figure:
    """Draw y as log(1 - accuracy), so that the top has the room; dot the baseline's line."""
    base = run.summary["baseline_val_accuracy"]
    errors = error_of([*accuracies, *([] if base is None else [base])])
    room = max((errors.max() / errors.min()) ** 0.06, 1.02)
    low, high = errors.min() / room, min(errors.max() * room, 1)
    ticks = ticks_of(low, high, (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9), 9)
    figure.update_layout(yaxis={
        "type": "log", "range": [math.log10(high), math.log10(low)], "tickvals": ticks,
        "ticktext": [f"{1 - tick:.3f}".rstrip("0").rstrip(".") for tick in ticks],
    })  # fmt: skip
    if base is not None:
        figure.add_hline(
            y=float(error_of(base)), line={"color": INK, "dash": "dot", "width": 1.5},
            showlegend=True, name="baseline",
        )  # fmt: skip
    return figure


def hover(rows: pd.DataFrame) -> list[str]:
    return [
        f"trial {r.number}, {r.state}<br>{r.arch}, lr {r.lr:.3g}<br>"
        f"val_accuracy {r.val_accuracy:.4f} after {r.epochs:.0f} epochs"
        for r in rows.itertuples()
    ]


def add_dots(figure: go.Figure, rows: pd.DataFrame, x: pd.Series) -> None:
    """A marker a trial, a trace a state, at its last val_accuracy."""
    for state, (colour, symbol) in LOOKS.items():
        own = rows[rows["state"] == state]
        if len(own):
            line = {"width": 1.5, "color": colour}
            figure.add_scatter(
                x=x.loc[own.index], y=error_of(own["val_accuracy"]), mode="markers", name=state,
                marker={"color": colour, "symbol": symbol, "size": 8, "line": line},
                hovertext=hover(own), hoverinfo="text",
            )  # fmt: skip


def _clock(seconds: float) -> tuple[float, str]:
    """Divisor and unit in which a study of so many seconds reads well."""
    return (3600, "h") if seconds > 7200 else (60, "min") if seconds > 300 else (1, "s")


def _incumbent(run: Run, x: pd.Series, end: float, title: str, look: str, label: str) -> Drawn:
    ended = run.ranked[run.ranked["ended"].notna()].sort_values("ended", kind="stable")
    if not len(ended):
        return "no trial has ended with a score"
    figure = blank(f"Best so far by {title}", look, label, "validation accuracy")
    add_dots(figure, ended, x)
    best = ended[ended["state"] == "completed"]["val_accuracy"].cummax()
    if len(best):
        figure.add_scatter(
            x=[*x.loc[best.index], end], y=error_of([*best, best.iloc[-1]]), mode="lines",
            line={"color": BLUE, "width": 3, "shape": "hv"}, name="best",
            hoverinfo="skip",
        )  # fmt: skip
    figure.update_xaxes(rangemode="tozero")
    return accuracy_y(figure, run, ended["val_accuracy"])


def incumbent_by_time(run: Run) -> Drawn:
    """Steps of the best completed score, x in wall time."""
    last = run.trained["ended"].max()
    divisor, unit = _clock(last)
    look = (
        "The line steps up where a completed trial beats all before it: a long flat end means that "
        "more of the same would buy little."
    )
    x = run.ranked["ended"] / divisor
    return _incumbent(run, x, last / divisor, "wall clock", look, f"time ({unit})")


def incumbent_by_epochs(run: Run) -> Drawn:
    """Steps of the best completed score, x in epochs trained by all trials together."""
    times = np.sort(run.epochs["time"].dropna().to_numpy())
    x = run.ranked["ended"].map(lambda t: np.searchsorted(times, t, side="right"))
    look = "The same against work done, which compares searches whatever machine they ran on."
    label = "epochs trained, all trials together"
    return _incumbent(run, x, len(times), "epochs trained", look, label)


def learning_curves(run: Run) -> Drawn:
    """val_accuracy by epoch, a line a trial."""
    rows = run.epochs[run.epochs["val_accuracy"].notna()]
    best = rows.groupby("number")["val_accuracy"].max().sort_values(ascending=False).index
    if not len(best):
        return "no trial has reported an epoch"
    step = math.ceil(len(best) / MOST_LINES)
    look = "Blue lines that cross late mean that the scheduler may stop trials too early to tell."
    look += f" Drawn: one trial in {step}, from best to worst." if step > 1 else ""
    figure = blank("Learning curves", look, "epoch", "validation accuracy")
    best = best[::step]
    rows = rows[rows["number"].isin(best)]
    for state in reversed(LOOKS):
        points: list[tuple[Any, float, str]] = []
        for number in run.trained.index[run.trained["state"] == state].intersection(best):
            own, name = rows[rows["number"] == number], f"trial {number}, {state}"
            points += [
                (epoch, float(error_of(value)), f"{name}<br>epoch {epoch}: {value:.4f}")
                for epoch, value in zip(own["epoch"], own["val_accuracy"], strict=True)
            ]
            points.append((None, math.nan, ""))
        if points:
            x, y, texts = zip(*points, strict=True)
            look_of = {"color": LOOKS[state][0]}
            figure.add_scatter(
                x=x, y=y, hovertext=texts, hoverinfo="text", mode="lines+markers", name=state,
                marker=look_of | {"size": 4}, line=look_of | {"width": 1.5}, opacity=0.7,
            )  # fmt: skip
    figure.update_layout(legend_traceorder="reversed")
    figure.update_xaxes(dtick=1 if rows["epoch"].max() <= 12 else None)
    return accuracy_y(figure, run, rows["val_accuracy"])


def timeline(run: Run) -> Drawn:
    """What each worker trained when: a bar for each stretch of epochs without a pause."""
    rows = run.epochs.dropna(subset=["time", "epoch_seconds"])
    begin = rows["time"] - rows["epoch_seconds"]
    pause = begin - rows.groupby("number")["time"].shift() > 1 + rows["epoch_seconds"]
    spans = rows.assign(begin=begin, part=pause.cumsum()).groupby(["number", "part"])
    spans = spans.agg(begin=("begin", "min"), end=("time", "max")).reset_index("part", drop=True)
    spans = spans.join(run.trained, how="inner").dropna(subset="worker")
    if not len(spans):
        return "no epoch is tied to a worker"
    divisor, unit = _clock(spans["end"].max())
    order = list(spans.groupby("worker")["begin"].min().sort_values(ascending=False).index)
    figure = blank(
        "Timeline of workers",
        "White is time in which nothing trained: start-up on the left, overhead between bars, on "
        "the right a worker with nothing left to do.",
        f"time ({unit})", "", barmode="overlay", bargap=0.25, height=210 + 34 * len(order),
    )  # fmt: skip
    seam = 1 if len(spans) <= MOST_LINES else 0  # many seams would whiten all
    for state, (colour, _) in LOOKS.items():
        own = spans[spans["state"] == state]
        if len(own):
            figure.add_bar(
                base=own["begin"] / divisor, x=(own["end"] - own["begin"]) / divisor,
                y=own["worker"], orientation="h", name=state, hovertext=hover(own),
                marker={"color": colour, "line": {"color": "white", "width": seam}},
                hoverinfo="text",
            )  # fmt: skip
    short = [name if len(name) <= 16 else "…" + name[-15:] for name in order]
    figure.update_xaxes(range=[0, spans["end"].max() / divisor])
    figure.update_yaxes(categoryorder="array", categoryarray=order, tickvals=order, ticktext=short)
    return figure.update_layout(showlegend=True)


def confusion(run: Run) -> Drawn:
    """The champion's errors on the test split."""
    if not run.model:
        return "there is no champion"
    metrics = run.model["metrics"]
    if "confusion" not in metrics:
        return "champion/model.json holds no confusion matrix"
    counts = np.array(metrics["confusion"], dtype=int)
    names = metrics.get("classes") or run.model.get("classes") or list(map(str, range(len(counts))))
    right = np.eye(len(counts), dtype=bool)
    figure = blank(
        "What the champion mixes up",
        "The darkest cells are the pairs that it takes for each other (images of the test split); "
        "in blue, on the diagonal, what it gets right.",
        "predicted", "true", height=520, showlegend=False,
    )  # fmt: skip
    for values, colours in ((np.where(right, np.nan, counts), ["white", RED]),
                            (np.where(right, counts, np.nan), ["#D6E6F2", "#D6E6F2"])):  # fmt: skip
        figure.add_heatmap(
            z=values, x=names, y=names, texttemplate="%{z}", textfont={"size": 11}, xgap=1, ygap=1,
            colorscale=colours, showscale=False, hoverongaps=False,
            hovertemplate="true %{y}, predicted %{x}: %{z}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(tickangle=-60, showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def worst_images(run: Run) -> Drawn:
    """The test images that the champion is most wrong about."""
    worst, file = ((run.model or {}).get("metrics", {}).get("worst"), run.folder / "worst.png")
    if not worst or not file.is_file():
        return "there is no champion" if not run.model else "worst.png was not kept"
    figure = blank(
        "The champion's worst images",
        "Those of the test split with the highest loss, worst first: the true class, and what the "
        "champion took it for. Some could puzzle a person too.",
        "", "", height=500, showlegend=False,
    )  # fmt: skip
    width, height = SIDE + 4, SIDE + CAPTION
    source = b64encode(file.read_bytes()).decode()
    figure.add_image(source=f"data:image/png;base64,{source}", hoverinfo="skip")
    figure.add_scatter(
        x=[(i % COLUMNS + 0.5) * width - 0.5 for i in range(len(worst))],
        y=[(i // COLUMNS + 1) * height - CAPTION / 2 - 0.5 for i in range(len(worst))],
        text=[f"{row['class']}<br>as {row['predicted']}" for row in worst],
        hovertext=[f"image {r['image']}: probability {r['probability']:.3f}" for r in worst],
        mode="text", textfont={"size": 10}, hoverinfo="text",
    )  # fmt: skip
    whole = {"visible": False, "constrain": "domain"}
    figure.update_yaxes(scaleanchor="x", constraintoward="top", **whole)
    return figure.update_xaxes(**whole)
