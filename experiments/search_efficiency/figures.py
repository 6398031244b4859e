"""The figure and the README's tables of `simulate.py`, from the two files that it keeps."""

import csv
import gzip
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from record_curves import EPOCHS

RUNS, TRACES = "runs.csv", "traces.csv.gz"
BUDGET = 60 * EPOCHS  # epochs of a search: sixty trials that are never stopped
WORKERS = 8
CLOSE = 0.002  # accuracy: two tenths of a point
SHOWN = ("random", "random+asha", "tpe", "tpe-joint+asha", "tpe+asha", "tpe+promote")  # drawn


def read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    rows: list[dict[str, Any]] = list(csv.DictReader(text.splitlines()))
    return [{k: v if k == "contender" else float(v) for k, v in row.items()} for row in rows]


def reached(changes: list[dict[str, Any]], goal: float, spent: str, value: str = "true") -> float:
    """Epochs or seconds until the incumbent was as good as `goal`; inf: never."""
    return next((change[spent] for change in changes if change[value] >= goal), math.inf)


def quartiles(values: list[float], form: str) -> str:
    """Median and quartiles; a search that never got there counts as infinitely long."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), method="nearest")
    texts = [format(v, form) if math.isfinite(v) else "never" for v in (middle, low, high)]
    return f"{texts[0]} ({texts[1]} to {texts[2]})"


HEADS = (
    "search",
    "n",
    "trials",
    "regret at the end, points",
    f"epochs to within {100 * CLOSE:.1f} points",
    f"seconds to within {100 * CLOSE:.1f} points",
    "epochs to random's best, share of random's",
    "the same, as observed",
    "won, lost",
)


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table_rows(folder: Path, best: float, workers: int, names: Iterable[str]) -> list[str]:
    """Each contender over its seeds, beside random search with the same seed; points are
    hundredths of accuracy."""
    changes: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in read_rows(folder / TRACES):
        if row["workers"] == workers:
            changes[row["contender"], int(row["seed"])].append(row)
    runs = [row for row in read_rows(folder / RUNS) if row["workers"] == workers]
    goals = {int(row["seed"]): row for row in runs if row["contender"] == "random"}
    lines = [line(HEADS), line(["---"] * len(HEADS))]
    for name in names:
        ours = [row for row in runs if row["contender"] == name]
        if not ours:
            continue
        pairs = [(row, goals[int(row["seed"])]) for row in ours]
        steps = [changes[name, int(row["seed"])] for row in ours]
        near = [[reached(s, best - CLOSE, spent) for s in steps] for spent in ("epochs", "seconds")]
        shares = [
            [
                reached(s, goal[value], "epochs", value) / BUDGET
                for s, (_, goal) in zip(steps, pairs, strict=True)
            ]
            for value in ("true", "observed")
        ]
        won = sum(row["true"] > goal["true"] for row, goal in pairs)
        lost = sum(row["true"] < goal["true"] for row, goal in pairs)
        cells = [name, str(len(ours)), f"{np.median([row['trials'] for row in ours]):.0f}"]
        cells += [quartiles([100 * (best - row["true"]) for row in ours], ".2f")]
        cells += [quartiles(values, ".0f") for values in near]
        cells += [quartiles(values, ".2f") for values in shares]
        lines.append(line([*cells, f"{won}, {lost}"]))
    return lines


PAIRS = [  # (one, other, workers)
    ("tpe+asha", "tpe-joint+asha", 8),
    ("tpe+promote", "tpe-joint+promote", 8),
    ("tpe+asha", "random", 8),
    ("tpe+asha", "random+asha", 8),
    ("tpe+asha", "tpe", 8),
    ("tpe+promote", "tpe+asha", 8),
    ("tpe+asha", "random", 2),
    ("tpe+asha", "random+asha", 2),
    ("tpe+promote", "tpe+asha", 2),
    ("tpe+asha", "random", 1),
    ("tpe+promote", "tpe+asha", 1),
]


def pair_rows(folder: Path) -> list[str]:
    """Differences at the end of searches with the same seed, whose first proposals are the same."""
    from scipy.stats import wilcoxon

    final = {
        (r["contender"], int(r["workers"]), int(r["seed"])): r["true"]
        for r in read_rows(folder / RUNS)
    }
    lines = ["| one less the other | workers | n | mean, points | median | won, lost | p |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for one, other, workers in PAIRS:
        seeds = [seed for name, w, seed in final if (name, w) == (one, workers)]
        pairs = [(one, workers, s) for s in seeds if (other, workers, s) in final]
        if not pairs:
            continue
        gains = 100 * np.array([final[key] - final[other, workers, key[2]] for key in pairs])
        cells = [f"{one} - {other}", str(workers), str(len(gains)), f"{gains.mean():+.2f}"]
        cells += [f"{np.median(gains):+.2f}", f"{(gains > 0).sum()}, {(gains < 0).sum()}"]
        lines.append(line([*cells, f"{wilcoxon(gains).pvalue:.3f}"]))
    return lines


def write_tables(folder: Path, best: float, contenders: Iterable[str]) -> None:
    """Put the tables between the README's markers; the rest of it is left as it is."""
    parts = [f"Eight workers, {BUDGET} epochs:", "", *table_rows(folder, best, WORKERS, contenders)]
    for workers in (1, 2, 64):
        rows = table_rows(folder, best, workers, contenders)
        head = f"{workers} worker{'s' * (workers > 1)}, {BUDGET} epochs:"
        parts += ["", head, "", *rows] if len(rows) > 2 else []
    head = (
        "Pairs with the same seed, value without noise at the end; p: Wilcoxon's signed-rank test:"
    )
    parts += ["", head, "", *pair_rows(folder)]
    page = folder / "README.md"
    start, end = "<!-- tables, made by simulate.py -->", "<!-- end of tables -->"
    text = page.read_text() if page.exists() else f"{start}\n{end}\n"
    before, _, rest = text.partition(start)
    page.write_text(before + "\n".join([start, *parts, end]) + rest.partition(end)[2])


def regrets(
    traces: list[dict[str, Any]], best: float, spent: str, grid: np.ndarray
) -> np.ndarray | None:
    """(3, len(grid)) quartiles over the seeds of one contender, in points; None without any."""
    curves = []
    for seed in sorted({row["seed"] for row in traces}):
        steps = [(row[spent], row["true"]) for row in traces if row["seed"] == seed]
        when, values = zip(*steps, strict=True)
        index = np.searchsorted(when, grid, side="right") - 1
        regret = 100 * (best - np.array(values))[index]
        curves.append(np.where(index < 0, 1e3, regret))  # no incumbent yet is worse than any
    return np.quantile(curves, (0.25, 0.5, 0.75), axis=0) if curves else None


def draw(folder: Path, best: float) -> None:
    """Regret of the incumbent by epochs trained and by virtual time: median and quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    traces = [row for row in read_rows(folder / TRACES) if row["workers"] == WORKERS]
    ends = [row["seconds"] for row in read_rows(folder / RUNS) if row["workers"] == WORKERS]
    if not ends:
        return
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
    spans = {"epochs": ("epochs trained", BUDGET)}
    spans["seconds"] = (f"virtual seconds, {WORKERS} workers", np.quantile(ends, 0.5))
    for axis, (spent, (label, end)) in zip(axes, spans.items(), strict=True):
        grid = np.linspace(0, end, 400)
        for colour, name in enumerate(SHOWN):
            own = [row for row in traces if row["contender"] == name]
            if (lines := regrets(own, best, spent, grid)) is None:
                continue
            low, middle, high = lines
            axis.plot(grid, middle, color=f"C{colour}", label=name)
            axis.fill_between(grid, low, high, color=f"C{colour}", alpha=0.12, linewidth=0)
        axis.axhline(100 * CLOSE, color="grey", linewidth=0.8, linestyle=":")
        axis.set(xlabel=label, xlim=(0, grid[-1]))
        axis.set_yscale("symlog", linthresh=0.5)
        ticks = "-0.5 -0.2 0 0.2 0.5 1 2 5 10".split()
        axis.set_yticks([float(tick) for tick in ticks], ticks)
        axis.set_ylim(-0.7, 10)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("regret of the incumbent, points of val_accuracy")
    axes[0].legend(title="median and quartiles")
    figure.savefig(folder / "search_efficiency.png", dpi=110)
