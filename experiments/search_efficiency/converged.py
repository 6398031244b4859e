"""What does `stop_when_converged` save, and what does it cost? On the recorded learning curves.

    python experiments/search_efficiency/converged.py --results FOLDER      # an hour of one core

A search is simulated to the end of its budget and its completed trials are kept, in the order in
which they ended, in FOLDER/completed.csv; seeds that are there are not repeated. The rule is then
asked after each of them, as the study asks it: where it would have stopped, the share of the budget
that was left is saved, and the regret added is what the incumbent would still have won, by the
curves without noise.
"""

import argparse
import csv
import statistics
from pathlib import Path

from curve_model import Curves
from record_curves import EPOCHS, VAL_IMAGES
from simulate import Ours, opened, simulate

from vgg_search.space.candidate import Candidate
from vgg_search.study.convergence import outlook

BUDGET, SEEDS, FIRST = 60 * EPOCHS, 60, 400
COLUMNS = ("workers", "seed", "epochs", "observed", "true")


class Completed(Curves):
    """Curves that keep what whole trainings said."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, float, Candidate]] = []
        self.epochs_trained = 0

    def value(self, candidate, seed, epoch):  # type: ignore[no-untyped-def]
        value, self.epochs_trained = super().value(candidate, seed, epoch), self.epochs_trained + 1
        if epoch == EPOCHS and value == value:
            self.rows.append((self.epochs_trained, value, candidate))
        return value


def record(world: Completed, workers: int, seed: int) -> list[tuple[int, float, float]]:
    world.rows, world.epochs_trained = [], 0
    with opened(seed) as study:
        simulate(Ours(study, world), world, workers, BUDGET)
    return [(epochs, value, world.true(candidate)) for epochs, value, candidate in world.rows]


def read(file: Path) -> dict[tuple[int, int], list[tuple[int, float, float]]]:
    searches: dict[tuple[int, int], list[tuple[int, float, float]]] = {}
    with file.open(newline="") as table:
        for row in csv.DictReader(table):
            entry = int(row["epochs"]), float(row["observed"]), float(row["true"])
            searches.setdefault((int(row["workers"]), int(row["seed"])), []).append(entry)
    return searches


def judge(rows: list[tuple[int, float, float]], images: int) -> tuple[float, float, int]:
    """(share of the budget saved, regret added, trials completed) of one search."""
    for count in range(1, len(rows) + 1):
        ahead = outlook([observed for _, observed, _ in rows[:count]], images)
        if ahead and ahead.gain <= ahead.noise:
            last, then = (max(part, key=lambda row: row[1])[2] for part in (rows, rows[:count]))
            return 1 - rows[count - 1][0] / BUDGET, last - then, count
    return 0.0, 0.0, len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--workers", nargs="*", type=int, default=[8, 2])
    parser.add_argument("--results", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    file, world = options.results / "completed.csv", Completed()
    if not file.exists():
        file.write_text(",".join(COLUMNS) + "\n")
    done = read(file)
    for workers in options.workers:
        seeds = range(options.first, options.first + options.seeds)
        for seed in seeds:
            if (workers, seed) not in done:
                done[workers, seed] = record(world, workers, seed)
                with file.open("a", newline="") as table:
                    writer = csv.writer(table, lineterminator="\n")
                    writer.writerows((workers, seed, *row) for row in done[workers, seed])
        for images in (VAL_IMAGES, 10_000):
            told = [judge(done[workers, seed], images) for seed in seeds]
            saved, added = ([row[i] for row in told] for i in (0, 1))
            print(
                f"{workers} workers, noise of {images} images: stopped {sum(s > 0 for s in saved)} "
                f"of {len(told)}; saved median {statistics.median(saved):.2f}, mean "
                f"{statistics.mean(saved):.2f}; regret added median "
                f"{statistics.median(added):.4f}, mean {statistics.mean(added):.4f}, "
                f"most {max(added):.4f}"
            )


if __name__ == "__main__":
    main()
