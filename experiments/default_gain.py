"""What does the search find, beside a network by hand, and beside chance, at three budgets?

    python experiments/default_gain.py FOLDER [SEEDS] [--tables]

For each of SEEDS (5) study seeds the default experiment, which is stopped after 6 and after 12 of
its 24 trials and gone on with; random search, a study of its own, at the same three budgets with
more trials, for more of its trials are stopped, and so with as many epochs or more; the baseline
alone, whose champion is that network; and a stronger one by hand, of the same arch with batch norm
and the middle of each range. All champions train 12 epochs on all training images, and each reads
the test split once. Without budget of time, so that a busy machine trains as many epochs as a free
one. Cost: 40 minutes of two cores a seed. `VGG_SEARCH_DATA_DIR` names the data.

Rows are kept in FOLDER/gain.csv and not repeated. Prints tables of test accuracies and differences,
paired by seed, with the 95 % interval of their mean (Student's t), and draws FOLDER/gain.png.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from kept_rows import add_rows, read_rows
from studies import half_width, summary_of

from vgg_search.space.arch import as_arch, describe
from vgg_search.space.default_space import ARCH

BY_HAND = {"arch": ARCH, "batch_norm": True, "dropout": 0.25, "lr": 0.09}
HAND: dict[str, list[str]] = {
    "baseline": [],
    "hand": ["--baseline", json.dumps(BY_HAND)],
}
SEARCHES: dict[str, list[str]] = {"search": [], "random": ["--sampler", "random"]}
TRIALS = {"search": (6, 12, 24), "random": (8, 17, 34)}  # a budget
BUDGETS = range(len(TRIALS["search"]))
FILE, COLUMNS = "gain.csv", ["seed", "kind", "trials", "epochs", "val_accuracy", "test_accuracy"]
COLUMNS += ["num_params", "arch", "search_seconds", "cpu", "commit"]

Rows = dict[tuple[int, str, int], dict[str, str]]  # by seed, kind, trials


def read(folder: Path) -> Rows:
    rows = read_rows(folder / FILE)
    return {(int(row["seed"]), row["kind"], int(row["trials"])): row for row in rows}


def rows(folder: Path, seeds: int) -> Iterator[dict[str, Any]]:
    """One after the other, those that are not there yet."""
    there, made_by = read(folder), environment()
    for seed in range(seeds):
        studies = [(kind, 1, [*flags, "--max-epochs", "1"]) for kind, flags in HAND.items()]
        for budget in BUDGETS:
            studies += [(kind, TRIALS[kind][budget], SEARCHES[kind]) for kind in SEARCHES]
        for kind, trials, own in studies:
            if (seed, kind, trials) in there:
                continue
            flags = ["--dataset", "fashion-mnist", "--seed", str(seed), "--time-budget", "null"]
            flags += [*own, "--num-trials", str(trials)]
            summary = summary_of(folder, f"{kind}-{seed}", flags, trials)
            champion = summary["champion"]
            yield {
                "seed": seed,
                "kind": kind,
                "trials": trials,
                "epochs": summary["epochs_trained"],
                "val_accuracy": champion["val_accuracy"],
                "test_accuracy": champion["test_accuracy"],
                "num_params": champion["num_params"],
                "arch": describe(as_arch(summary["best_arch"])),
                "search_seconds": round(summary["search_seconds"]),
                "cpu": made_by["cpu"],
                "commit": made_by["commit"],
            }


def column_of(found: Rows, kind: str, trials: int, column: str) -> np.ndarray:
    """By seed; NaN where a row is missing."""
    seeds = range(1 + max(seed for seed, *_ in found))
    values = [found.get((seed, kind, trials), {}).get(column, "nan") for seed in seeds]
    return np.array(values, float)


def scores(found: Rows, kind: str, trials: int, column: str = "test_accuracy") -> np.ndarray:
    """Points, by seed."""
    return 100 * column_of(found, kind, trials, column)


def interval(values: np.ndarray) -> str:
    """Mean and the 95 % interval of the mean, of those that there are."""
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return "-"
    mean, half = values.mean(), half_width(values)
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def plain(values: np.ndarray) -> str:
    values = values[~np.isnan(values)]
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}" if len(values) > 1 else "-"


def print_tables(found: Rows) -> None:
    """Test accuracy of each kind, mean and standard deviation; what the search gains over each."""
    heads = ["trials", "epochs: search, random", *HAND, "random", "search"]
    heads += [f"search less {kind}" for kind in (*HAND, "random")] + ["the same by val_accuracy"]
    print("| " + " | ".join(heads) + " |\n" + "| --- " * len(heads) + "|")
    for budget in BUDGETS:
        ours, chance = (("search", TRIALS["search"][budget]), ("random", TRIALS["random"][budget]))
        kinds = [*((kind, 1) for kind in HAND), chance, ours]
        values = [scores(found, *kind) for kind in kinds]
        epochs = [np.nanmean(column_of(found, *kind, "epochs")) for kind in (ours, chance)]
        by_val = [scores(found, *kind, "val_accuracy") for kind in (ours, chance)]
        cells = [f"{ours[1]}, random {chance[1]}", f"{epochs[0]:.0f}, {epochs[1]:.0f}"]
        cells += [plain(column) for column in values]
        cells += [interval(values[-1] - other) for other in values[:-1]]
        print("| " + " | ".join([*cells, interval(by_val[0] - by_val[1])]) + " |")


def draw(found: Rows, file: Path) -> None:
    """Test accuracy by epochs of the search: a line a kind, a small point a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for kind, color in (("search", "tab:blue"), ("random", "tab:orange")):
        columns = [scores(found, kind, trials) for trials in TRIALS[kind]]
        epochs = [column_of(found, kind, trials, "epochs") for trials in TRIALS[kind]]
        for x, y in zip(epochs, columns, strict=True):
            axes.plot(x, y, ".", color=color, alpha=0.4)
        x, y = ([np.nanmean(column) for column in means] for means in (epochs, columns))
        halves = [half_width(column[~np.isnan(column)]) for column in columns]
        axes.errorbar(x, y, halves, color=color, marker="o", capsize=4, label=kind)
    lines = ("hand", "--", "the same with batch norm, by hand"), ("baseline", ":", "the baseline")
    for kind, style, label in lines:
        axes.axhline(np.nanmean(scores(found, kind, 1)), color="0.4", linestyle=style, label=label)
    axes.set(xlabel="epochs of 50,000 images that the search has trained")
    axes.set_ylabel("the champion's test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("seeds", type=int, nargs="?", default=5)
    parser.add_argument("--tables", action="store_true", help="of what is there")
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for row in () if options.tables else rows(folder, options.seeds):
        add_rows(folder / FILE, COLUMNS, [row])
        print(*(row[name] for name in COLUMNS[:8]), flush=True)
    found = read(folder)
    print_tables(found)
    draw(found, folder / "gain.png")


if __name__ == "__main__":
    main()
