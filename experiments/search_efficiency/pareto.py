"""Fronts of val_accuracy and num_params at equal epochs, against Syne Tune's and Optuna's.

    python experiments/search_efficiency/pareto.py --results FOLDER   # extra bench; 10 minutes

Simulated on the recorded curves with eight workers. All see the same two objectives, parameters as
a logarithm, and a search hands over the networks that it has trained to the end. Judged is the
hypervolume of what is on the front by their noise-free accuracy, in the plane of log(1 - accuracy)
and log(parameters), each from 0 to 1 between the ends in ERRORS and those of the space. Searches
are kept in FOLDER/fronts.csv.gz, a row a network, and are not repeated.
"""

import argparse
import csv
import gzip
import math
import statistics
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from converged import BUDGET, Completed
from peers import CHANCE, ETA, Optuna, Peer, Proposal, SyneTune
from simulate import Ours, opened, simulate

from vgg_search.objectives import COSTS
from vgg_search.records import METRIC
from vgg_search.study.pareto import front
from vgg_search.study.segment import Segment

WORKERS, SEEDS, FIRST = 8, 20, 600
ERRORS = 0.4, 0.1  # worst and best 1 - val_accuracy of the plane; the best recorded one is 0.13
COLUMNS = ("contender", "seed", "epochs", "observed", "true", "num_params", "arch")
SHARES = (0.25, 0.5, 1.0)


class OptunaFront(Optuna):
    """Without pruning, which Optuna has for one objective only."""

    def __init__(self, world: Any, seed: int, sampler: str) -> None:
        super().__init__(world, seed, sampler)
        directions, chosen = ["maximize", "minimize"], self.study.sampler
        self.study = self.optuna.create_study(directions=directions, sampler=chosen)

    def tell(self, segment: Segment, epoch: int, value: float) -> bool:
        trial, lost = self.trials[segment.number], not math.isfinite(value)
        if lost:
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
        elif epoch == self.epochs:
            self.study.tell(trial, [value, math.log(self.space.costs(segment.candidate)[0])])
        return not lost and epoch < self.epochs


class Moasha(Peer):
    def __init__(self, world: Any, seed: int) -> None:
        from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

        super().__init__(world, seed)
        np.random.seed(seed)  # it draws proposals from the global generator
        self.scheduler = MOASHA(
            {name: SyneTune.domain(dim) for name, dim in self.dims.items()},
            metrics=["error", "size"],
            time_attr="epoch",
            max_t=self.epochs,
            reduction_factor=ETA,
        )
        self.trials: list[Any] = []

    def ask(self) -> Segment:
        from syne_tune.backend.trial_status import Trial

        config, number = self.scheduler.suggest().config, len(self.trials)
        self.trials.append(Trial(number, config, datetime.now()))
        self.scheduler.on_trial_add(self.trials[-1])
        return self.segment(number, self.space.sample(Proposal(config)))

    def tell(self, segment: Segment, epoch: int, value: float) -> bool:
        trial, lost = self.trials[segment.number], not math.isfinite(value)
        size = math.log(self.space.costs(segment.candidate)[0])
        result = {"error": 1 - (CHANCE if lost else value), "size": size, "epoch": epoch}
        decision = self.scheduler.on_trial_result(trial, result)
        if lost or decision != "CONTINUE":
            self.scheduler.on_trial_remove(trial)
            return False
        return True


OURS = {
    "ours": {},
    "ours, random": {"sampler": "random"},
    "ours, asha": {"scheduler": "asha"},
    "ours, no rungs": {"scheduler": "none"},
    "ours, accuracy only": {"objectives": (METRIC,)},
}
PEERS: dict[str, Callable[[Any, int], Any]] = {
    "Syne Tune MOASHA": Moasha,
    "Optuna TPE": lambda world, seed: OptunaFront(world, seed, "TPE"),
    "Optuna NSGA-II": lambda world, seed: OptunaFront(world, seed, "NSGAII"),
    "Optuna random": lambda world, seed: OptunaFront(world, seed, "Random"),
}


def search(world: Completed, name: str, seed: int) -> list[dict[str, Any]]:
    world.rows, world.epochs_trained = [], 0
    if name in OURS:
        fields = {"objectives": (METRIC, COSTS[0]), "sampler": "tpe"} | OURS[name]
        with opened(seed, **fields) as study:
            simulate(Ours(study, world), world, WORKERS, BUDGET)
    else:
        simulate(PEERS[name](world, seed), world, WORKERS, BUDGET)
    return [
        {"contender": name, "seed": seed, "epochs": epochs, "observed": round(value, 4)}
        | {"true": round(world.true(candidate), 5), "arch": candidate.params()["arch"]}
        | {"num_params": world.space.costs(candidate)[0]}
        for epochs, value, candidate in world.rows
    ]


def plane(rows: list[dict[str, Any]], ends: tuple[float, float]) -> list[tuple[float, float]]:
    """(error, size) of networks, each from 0 to 1."""
    worst, best = (math.log(error) for error in ERRORS)
    low, high = (math.log(size) for size in ends)
    return [
        (
            (math.log(1 - float(row["true"])) - best) / (worst - best),
            (math.log(float(row["num_params"])) - low) / (high - low),
        )
        for row in rows
    ]


def hypervolume(points: list[tuple[float, float]]) -> float:
    """Of the unit square, the part that the points beat; both axes are better lower."""
    volume, edge = 0.0, 1.0
    for error, size in sorted(points, key=lambda point: (point[1], point[0])):
        error = max(error, 0.0)
        if error < edge and size < 1:
            volume, edge = volume + (edge - error) * (1 - max(size, 0.0)), error
    return volume


def handed_over(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The front as the search sees it."""
    seen = {i: (float(r["observed"]), float(r["num_params"])) for i, r in enumerate(rows)}
    return [rows[i] for i in front(seen)]


def table(rows: list[dict[str, Any]], names: list[str], seeds: range, ends: Any) -> str:
    from scipy.stats import wilcoxon

    volumes: dict[str, list[list[float]]] = {}
    for name in names:
        for share in SHARES:
            values = []
            for seed in seeds:
                own = [r for r in rows if (r["contender"], int(r["seed"])) == (name, seed)]
                own = [r for r in own if int(r["epochs"]) <= share * BUDGET]
                values.append(hypervolume(plane(handed_over(own), ends)))
            volumes.setdefault(name, []).append(values)
    lines = ["| search | 25 % | 50 % | 100 % of the epochs | networks | p |", "|" + " --- |" * 6]
    for name in names:
        cells = [f"{statistics.median(v):.3f}" for v in volumes[name]]
        spread = np.quantile(volumes[name][-1], [0.25, 0.75])
        own = [r for r in rows if r["contender"] == name]
        p = (
            ""
            if name == "ours"
            else f"{wilcoxon(volumes['ours'][-1], volumes[name][-1]).pvalue:.1g}"
        )
        cells[-1] += f" ({spread[0]:.3f} to {spread[1]:.3f})"
        lines.append(f"| {name} | {' | '.join(cells)} | {len(own) / len(seeds):.0f} | {p} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], names: list[str], seeds: range, ends: Any, path: Path) -> None:
    """Where half of the searches have a network that is as good, a line a contender."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    sizes = np.geomspace(*ends, 200)
    for name in names:
        curves = []
        for seed in seeds:
            own = [r for r in rows if (r["contender"], int(r["seed"])) == (name, seed)]
            points = [(int(r["num_params"]), float(r["true"])) for r in handed_over(own)]
            curves.append([max((a for n, a in points if n <= size), default=0.1) for size in sizes])
        style = "-" if name in OURS else "--"
        axes.plot(sizes, 1 - np.median(curves, 0), style, label=name, drawstyle="steps-post")
    axes.set(xscale="log", yscale="log", xlabel="parameters, at most", ylim=(0.12, 0.4))
    axes.set_ylabel("1 - val_accuracy without noise, median")
    axes.set_title(f"Fronts after {BUDGET} epochs, {len(seeds)} searches each")
    axes.set_yticks([0.15, 0.2, 0.3, 0.4], ["0.15", "0.2", "0.3", "0.4"], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--only", nargs="*", default=[*OURS, *PEERS], metavar="CONTENDER")
    parser.add_argument("--results", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    file, rows = options.results / "fronts.csv.gz", list[dict[str, Any]]()
    if file.exists():
        with gzip.open(file, "rt", newline="") as old:
            rows = list(csv.DictReader(old))
    done, world = {(r["contender"], int(r["seed"])) for r in rows}, Completed()
    seeds = range(options.first, options.first + options.seeds)
    for seed in seeds:
        for name in options.only:
            if (name, seed) not in done:
                rows += search(world, name, seed)
        with gzip.open(file, "wt", newline="") as new:
            writer = csv.DictWriter(new, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(seed, flush=True)
    costs = [world.space.costs(candidate)[0] for candidate in world.candidates]
    ends = min(costs), max(costs)
    text = table(rows, options.only, seeds, ends)
    (options.results / "table.md").write_text(text + "\n")
    print(text)
    draw(rows, options.only, seeds, ends, options.results / "fronts.png")


if __name__ == "__main__":
    main()
