"""Measures of a search that cannot flatter, their tables and their figure.

- Regret: points (hundredths of accuracy) that the incumbent's value without noise lies below the
  best of 20,000 random configurations, after 10, 25, 50 and 100 % of the budget. The incumbent is
  what the search would hand over then: what had the best observed value so far.
- Epochs to the goal, which is the median final quality of random search with ASHA and as many
  workers: from when on the incumbent is as good, for good. A search that ends below never got
  there, and counts as infinitely long in the median.
"""

import csv
import gzip
import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from record_curves import EPOCHS

RUNS, TRACES, BEST = "runs.csv", "traces.csv.gz", "best.txt"
BUDGET = 60 * EPOCHS  # epochs of a search: sixty trials that are never stopped
SHARES = (0.10, 0.25, 0.50, 1.00)  # of the budget
GOAL = "random+asha"
RUN_COLUMNS = "contender workers seed epochs seconds trials observed true cpu_seconds".split()
TRACE_COLUMNS = "contender workers seed epochs seconds trials observed true".split()
NOTHING = 0.1  # value of an incumbent that is not there yet: chance

Traces = dict[tuple[str, int], dict[int, list[tuple[float, float]]]]


def read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    rows: list[dict[str, Any]] = list(csv.DictReader(text.splitlines()))
    return [{k: v if k == "contender" else float(v) for k, v in row.items()} for row in rows]


def append(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Add rows; a file in parts is a valid gzip file."""
    text = [] if path.exists() else [",".join(columns)]
    for row in rows:
        cells = [row[name] for name in columns]
        text.append(",".join(c if isinstance(c, str) else f"{c:.6g}" for c in cells))
    content = ("\n".join(text) + "\n").encode()
    with path.open("ab") as file:
        file.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def best_of(folder: Path, world: Any) -> float:
    """What regret is measured against; kept, for the sample takes half a minute."""
    path = folder / BEST
    if not path.exists():
        path.write_text(f"{world.best:.6f}\n")
    return float(path.read_text())


def read_traces(folder: Path) -> Traces:
    """(epochs, value without noise) of each change of an incumbent, by contender and workers, by
    seed."""
    traces: Traces = defaultdict(lambda: defaultdict(list))
    for row in read_rows(folder / TRACES):
        one = traces[row["contender"], int(row["workers"])][int(row["seed"])]
        one.append((row["epochs"], row["true"]))
    return traces


def value_at(changes: list[tuple[float, float]], epochs: float) -> float:
    """Of the incumbent after so many epochs."""
    return next((true for when, true in reversed(changes) if when <= epochs), NOTHING)


def reached(changes: list[tuple[float, float]], goal: float) -> float:
    """Epochs from which on the incumbent is as good as `goal`; inf: not at the end."""
    since = math.inf
    for when, true in changes:
        since = min(since, when) if true >= goal else math.inf
    return since


def quartiles(values: Iterable[float], form: str) -> str:
    """Median and quartiles."""
    low, middle, high = np.quantile([*values], (0.25, 0.5, 0.75), method="nearest")
    texts = [format(v, form) if math.isfinite(v) else "never" for v in (middle, low, high)]
    return f"{texts[0]} ({texts[1]} to {texts[2]})"


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


HEADS = ("search", "n", "trials", *(f"regret at {share:.0%}" for share in SHARES))
HEADS = (*HEADS, "epochs to the goal", "CPU s a search")


def table_rows(folder: Path, best: float, workers: int, names: Iterable[str]) -> list[str]:
    """Each contender over its seeds."""
    traces = read_traces(folder)
    runs = [row for row in read_rows(folder / RUNS) if row["workers"] == workers]
    goal = np.median([changes[-1][1] for changes in traces[GOAL, workers].values()])
    lines = [line(HEADS), line(["---"] * len(HEADS))]
    for name in names:
        ours = [row for row in runs if row["contender"] == name]
        if not ours:
            continue
        searches = traces[name, workers].values()
        cells = [name, str(len(ours)), f"{np.median([row['trials'] for row in ours]):.0f}"]
        for share in SHARES:
            values = [100 * (best - value_at(c, share * BUDGET)) for c in searches]
            cells.append(quartiles(values, ".2f"))
        cells.append(quartiles([reached(c, goal) for c in searches], ".0f"))
        lines.append(line([*cells, f"{np.median([row['cpu_seconds'] for row in ours]):.1f}"]))
    return lines


def signed_rank(gains: np.ndarray) -> str:
    """p of Wilcoxon's signed-rank test, two-sided, that paired gains are as often losses."""
    from scipy.stats import wilcoxon

    p = wilcoxon(gains).pvalue if gains.any() else 1.0
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def pair_rows(folder: Path, workers: int, names: Iterable[str], judged: str) -> list[str]:
    """The judged search beside each other one with the same seeds, in points: positive, it is
    better. p: signed-rank test, two-sided, of its own alone."""
    traces = read_traces(folder)
    heads = (f"points by which {judged} is better than", "n")
    heads += tuple(f"at {share:.0%}: median, p" for share in SHARES)
    lines = [line([*heads, "won, lost at the end"]), line(["---"] * (len(heads) + 1))]
    for other in names:
        first, second = traces[judged, workers], traces[other, workers]
        seeds = sorted(first.keys() & second.keys())
        if other == judged or len(seeds) < 6:
            continue
        cells = [other, str(len(seeds))]
        for share in SHARES:
            values = [[value_at(t[s], share * BUDGET) for s in seeds] for t in (first, second)]
            gains = 100 * (np.array(values[0]) - np.array(values[1]))
            cells.append(f"{np.median(gains):+.2f}, {signed_rank(gains)}")
        lines.append(line([*cells, f"{(gains > 0).sum()}, {(gains < 0).sum()}"]))
    return lines


def write_tables(folder: Path, world: Any, names: Iterable[str], judged: str) -> None:
    """Put the tables between the README's markers; the rest of it is left as it is."""
    best, parts = best_of(folder, world), []
    for workers in sorted({int(row["workers"]) for row in read_rows(folder / RUNS)}):
        head = f"{workers} worker{'s' * (workers > 1)}, {BUDGET} epochs"
        parts += ["", f"### {head}", "", *table_rows(folder, best, workers, names), ""]
        parts += pair_rows(folder, workers, names, judged)
    page = folder / "README.md"
    start, end = "<!-- tables, made by compare.py -->", "<!-- end of tables -->"
    text = page.read_text() if page.exists() else f"{start}\n{end}\n"
    before, _, rest = text.partition(start)
    page.write_text(before + "\n".join([start, *parts, end]) + rest.partition(end)[2])


def draw(folder: Path, world: Any, names: Iterable[str]) -> None:
    """Median regret by share of the budget, one panel a number of workers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    best, traces = best_of(folder, world), read_traces(folder)
    numbers = sorted({workers for _, workers in traces})
    grid = np.linspace(0.05, 1, 96)
    figure, axes = pyplot.subplots(
        1, len(numbers), figsize=(4.2 * len(numbers), 4.6), sharey=True, squeeze=False
    )
    colours = pyplot.get_cmap("tab10").colors  # type: ignore[attr-defined]
    shown: dict[str, Any] = {}  # lines of the legend, each once
    for axis, workers in zip(axes[0], numbers, strict=True):
        for name, colour in zip(names, cycle(colours)):
            searches = traces.get((name, workers), {}).values()
            if searches:
                values = [[value_at(c, share * BUDGET) for share in grid] for c in searches]
                regret = 100 * (best - np.median(values, axis=0))
                style = "-" if "-" not in name else "--"
                (shown[name],) = axis.plot(100 * grid, regret, style, color=colour, lw=1.8)
        axis.set(title=f"{workers} worker{'s' * (workers > 1)}", xlabel="share of the budget, %")
        axis.set(yscale="log", ylim=(0.6, 8), yticks=(1, 2, 4, 8), yticklabels=(1, 2, 4, 8))
        axis.minorticks_off()
        axis.grid(alpha=0.3, which="both")
    axes[0][0].set_ylabel("median regret of the incumbent, points")
    rows = {"loc": "lower center", "ncols": 2 * len(axes[0]), "frameon": False}
    figure.legend(shown.values(), shown.keys(), **rows)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(folder / "search_peers.png", dpi=110)
