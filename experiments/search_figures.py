"""The figure and the README's tables of `bench_search.py`, from its files alone."""

import csv
import gzip
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from record_curves import EPOCHS

RESULTS = Path(__file__).parents[1] / "results/2026-11-24_search_efficiency_2"
RUNS, TRACES = "runs.csv", "traces.csv.gz"  # there
BUDGET = 60 * EPOCHS  # epochs of a search: sixty trials that are never stopped
WORKERS = 8
CLOSE = 0.002  # accuracy: two tenths of a point


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


def table_rows(best: float, workers: int, names: Iterable[str]) -> list[str]:
    """The README's rows: each contender over its seeds; points are hundredths of accuracy."""
    changes: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in read_rows(RESULTS / TRACES):
        if row["workers"] == workers:
            changes[row["contender"], int(row["seed"])].append(row)
    runs = [row for row in read_rows(RESULTS / RUNS) if row["workers"] == workers]
    goals = {int(row["seed"]): row for row in runs if row["contender"] == "random"}
    lines = [
        "| search | n | trials | regret at the end, points | epochs to within 0.2 points | "
        "seconds to within 0.2 points | epochs to random's best, share of random's | "
        "the same, as observed | won, lost |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        mine = [row for row in runs if row["contender"] == name]
        seeds = [int(row["seed"]) for row in mine]
        if not mine:
            continue
        told = [changes[name, seed] for seed in seeds]
        regret = [100 * (best - row["true"]) for row in mine]
        shares = {
            value: [
                reached(c, goals[seed][value], "epochs", value) / BUDGET
                for c, seed in zip(told, seeds, strict=True)
            ]
            for value in ("true", "observed")
        }
        won = sum(row["true"] > goals[seed]["true"] for row, seed in zip(mine, seeds, strict=True))
        lost = sum(row["true"] < goals[seed]["true"] for row, seed in zip(mine, seeds, strict=True))
        cells = [
            name,
            str(len(mine)),
            f"{np.median([row['trials'] for row in mine]):.0f}",
            quartiles(regret, ".2f"),
            *(
                quartiles([reached(c, best - CLOSE, s) for c in told], ".0f")
                for s in ("epochs", "seconds")
            ),
            *(quartiles(shares[value], ".2f") for value in shares),
            f"{won}, {lost}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


PAIRS = [  # (one, other, workers)
    ("tpe+asha", "tpe-joint+asha", 8),
    ("tpe+promote", "tpe-joint+promote", 8),
    ("tpe+asha", "random", 8),
    ("tpe+asha", "random+asha", 8),
    ("tpe+asha", "tpe", 8),
    ("tpe+promote", "tpe+asha", 8),
    ("tpe+asha", "optuna SHA", 8),
    ("tpe+asha", "ray ASHA", 8),
    ("tpe+asha", "ray ASHA, OptunaSearch", 8),
    ("tpe+asha", "random", 2),
    ("tpe+asha", "random+asha", 2),
    ("tpe+promote", "tpe+asha", 2),
    ("tpe+asha", "random", 1),
    ("tpe+promote", "tpe+asha", 1),
    ("tpe+asha, startup 20", "tpe+asha", 8),
    ("tpe+asha, random 1/3", "tpe+asha", 8),
    ("tpe+asha, factor 4", "tpe+asha", 8),
]


def pair_rows() -> list[str]:
    """Differences at the end of searches with the same seed, whose first proposals are the same."""
    from scipy.stats import wilcoxon

    final = {
        (r["contender"], int(r["workers"]), int(r["seed"])): r["true"]
        for r in read_rows(RESULTS / RUNS)
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
        lines.append("| " + " | ".join([*cells, f"{wilcoxon(gains).pvalue:.3f}"]) + " |")
    return lines


def write_tables(best: float, contenders: Iterable[str], variants: Iterable[str]) -> None:
    """Put the tables between the README's markers; the rest of it is left as it is."""
    parts = [f"Eight workers, {BUDGET} epochs:", "", *table_rows(best, WORKERS, contenders)]
    for workers in (1, 2, 64):
        head = f"{workers} worker{'s' * (workers > 1)}, {BUDGET} epochs:"
        parts += ["", head, "", *table_rows(best, workers, contenders)]
    parts += ["", "One setting changed, eight workers:", ""]
    parts += table_rows(best, WORKERS, ["tpe+asha", *variants])
    head = (
        "Pairs with the same seed, value without noise at the end; p: Wilcoxon's signed-rank test:"
    )
    parts += ["", head, "", *pair_rows()]
    page = RESULTS / "README.md"
    start, end = "<!-- tables, made by bench_search.py -->", "<!-- end of tables -->"
    text = page.read_text() if page.exists() else f"{start}\n{end}\n"
    before, _, rest = text.partition(start)
    page.write_text(before + "\n".join([start, *parts, end]) + rest.partition(end)[2])


def draw(best: float) -> None:
    """Regret of the incumbent by epochs trained and by virtual time: median and quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = ["random", "random+asha", "tpe", "tpe-joint+asha", "tpe+asha", "tpe+promote"]
    traces, runs = read_rows(RESULTS / TRACES), read_rows(RESULTS / RUNS)
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
    for axis, spent, label in zip(
        axes, ("epochs", "seconds"), ("epochs trained", "virtual seconds, 8 workers"), strict=True
    ):
        ends = [row[spent] for row in runs if row["workers"] == WORKERS]
        grid = np.linspace(0, BUDGET if spent == "epochs" else np.quantile(ends, 0.5), 400)
        for colour, name in enumerate(shown):
            curves = []
            for seed in sorted({row["seed"] for row in runs if row["contender"] == name}):
                steps = [
                    (t[spent], t["true"])
                    for t in traces
                    if (t["contender"], t["workers"], t["seed"]) == (name, WORKERS, seed)
                ]
                when, values = zip(*steps, strict=True)
                index = np.searchsorted(when, grid, side="right") - 1
                regret = 100 * (best - np.array(values))[index]
                curves.append(np.where(index < 0, np.nan, regret))
            if not curves:
                continue
            # No incumbent yet is worse than any
            low, middle, high = np.quantile(
                np.nan_to_num(curves, nan=1e3), (0.25, 0.5, 0.75), axis=0
            )
            axis.plot(grid, middle, color=f"C{colour}", label=name)
            axis.fill_between(grid, low, high, color=f"C{colour}", alpha=0.12, linewidth=0)
        axis.axhline(100 * CLOSE, color="grey", linewidth=0.8, linestyle=":")
        axis.set(xlabel=label, xlim=(0, grid[-1]))
        axis.set_yscale("symlog", linthresh=0.5)
        axis.set_yticks(
            [-0.5, -0.2, 0, 0.2, 0.5, 1, 2, 5, 10], "-0.5 -0.2 0 0.2 0.5 1 2 5 10".split()
        )
        axis.set_ylim(-0.7, 10)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("regret of the incumbent, points of val_accuracy")
    axes[0].legend(title="median and quartiles")
    figure.savefig(RESULTS / "search_efficiency.png", dpi=110)
