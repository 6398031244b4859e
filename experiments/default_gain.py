"""What does the default experiment gain, over the baseline and over random search?

    python experiments/default_gain.py FOLDER [SEEDS]

For each of SEEDS (5) study seeds, four studies in FOLDER: the default experiment; random search
with ten more trials, for more of its trials are stopped, and so with as many epochs in all; the
baseline alone, whose champion is that network; and a stronger one by hand, of the same arch with
batch norm and the middle of each range. All champions train as many epochs on all training images,
and the test split is read once by each. Without time budget, so that a busy machine trains as many
epochs as a free one. Studies that have ended are not repeated. Cost: an hour and three quarters of
two cores. `VGG_SEARCH_DATA_DIR` names the data.

Prints a table of test accuracies and differences, paired by seed, with the 95 % interval of their
mean (Student's t), and what the search itself warned of.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from studies import half_width, summary_of

from vgg_search.space.default_space import ARCH

BY_HAND = {"arch": ARCH, "batch_norm": True, "dropout": 0.25, "lr": 0.09}
FLAGS: dict[str, list[str]] = {
    "search": [],
    "random": ["--sampler", "random", "--num-trials", "34"],
    "baseline": ["--num-trials", "1", "--max-epochs", "1"],
    "hand": ["--num-trials", "1", "--max-epochs", "1", "--baseline", json.dumps(BY_HAND)],
}
COLUMNS = ["seed", *FLAGS, *(f"search - {kind}" for kind in list(FLAGS)[1:]), "epochs", "minutes"]


def study(folder: Path, kind: str, seed: int) -> dict[str, Any]:
    """The summary of that study, which is run unless it has ended."""
    flags = ["--dataset", "fashion-mnist", "--seed", str(seed), "--time-budget", "null"]
    return summary_of(folder, f"{kind}-{seed}", [*flags, *FLAGS[kind]])


def interval(values: np.ndarray) -> str:
    """Mean and the 95 % interval of the mean."""
    mean, half = values.mean(), half_width(values)
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def main() -> None:
    folder, seeds = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    print("| " + " | ".join(COLUMNS) + " |\n" + "| --- " * len(COLUMNS) + "|", flush=True)
    for seed in range(seeds):
        found = {kind: study(folder, kind, seed) for kind in FLAGS}
        row = [100 * found[kind]["champion"]["test_accuracy"] for kind in FLAGS]
        gains = [row[0] - other for other in row[1:]]
        rows.append(row + gains)
        cells = [f"{value:.2f}" for value in row] + [f"{value:+.2f}" for value in gains]
        cells += [str(found["search"]["epochs_trained"])]
        cells += [f"{found['search']['wall_seconds'] / 60:.1f}"]
        print(f"| {seed} | " + " | ".join(cells) + " |", flush=True)
    if len(rows) > 1:
        means = np.array(rows)
        cells = [f"{value:.2f}" for value in means[:, : len(FLAGS)].mean(0)]
        cells += [interval(column) for column in means[:, len(FLAGS) :].T]
        print("| mean | " + " | ".join(cells) + " | | |")
    for seed in range(seeds):
        for line in (folder / f"search-{seed}.log").read_text().splitlines():
            if line.startswith("warning"):
                print(f"seed {seed}: {line}")


if __name__ == "__main__":
    main()
