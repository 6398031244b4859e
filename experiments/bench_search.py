"""How many epochs does each way of searching need? Simulated on recorded learning curves.

    python experiments/bench_search.py                  # all of it: half an hour of one core
    python experiments/bench_search.py --first 200 --seeds 2 --only random tpe-joint+asha
    python experiments/bench_search.py --driver         # trials a second, memory over 10,000 trials

Searches are real (`Study`, its scheduler, its journal, Optuna's samplers), only workers are not:
they live on a virtual clock and take each row from `curve_model.py`, a model of the curves that
`record_curves.py` recorded. What a trial reports is its configuration's curve plus the difference
of the two recorded seeds at the nearest recorded configuration, so that searchers meet real noise;
a search is judged by the curve without it.

Finished simulations are kept in runs.csv and not repeated; traces.csv.gz has each change of an
incumbent; the figure and the README's tables are made from these two files. Settings were chosen on
other seeds (200 to 239, `choosing.csv`) than those that are reported (from FIRST on).
"""

import argparse
import gzip
import heapq
import math
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import search_figures
from curve_model import World
from record_curves import EPOCHS, experiment
from search_figures import BUDGET, RUNS, TRACES, WORKERS, draw, read_rows, write_tables

from vgg_search.records import METRIC, diverged
from vgg_search.study import record as journal
from vgg_search.study.sampling import make_sampler, trial_seed
from vgg_search.study.segment import Segment
from vgg_search.study.study import Study

FIRST, SEEDS = 100, 20
STARTUP = 0.1  # seconds before a worker trains another trial than its last, as in real runs
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


# ---- who searches -----------------------------------------------------------------------------


class Ours:
    """The package's study, as a real run has it, unless it is given what no experiment can say.

    `tpe`: other arguments of Optuna's TPESampler. `random_share`: of proposals that are random, as
    in BOHB (Falkner et al., 2018, arXiv:1807.01774, section 3). `show_running`: samplers see every
    trial that runs and has a row as one pruned at its last epoch, not those only that wait.
    """

    def __init__(
        self,
        seed: int,
        folder: Path,
        tpe: dict[str, Any] | None = None,
        random_share: float = 0.0,
        show_running: bool = False,
        **fields: Any,
    ) -> None:
        config = experiment(seed=seed, num_trials=1_000_000, **fields)
        journal.make_sampler = make_sampler
        if tpe is not None:
            journal.make_sampler = partial(changed_sampler, tpe=tpe, random_share=random_share)
        self.study = Study(folder, config)
        self.study.open()
        if show_running:
            self.study._storage.waiting = Shown(self.study)
        self.propose, self.ended = self.study.propose, self.study.segment_ended

    def report(self, number: int, row: dict[str, Any]) -> bool:
        self.study.report(number, row)
        return False

    def close(self) -> None:
        self.study.release()


def changed_sampler(
    kind: str, seed: int, tpe: dict[str, Any], random_share: float
) -> optuna.samplers.BaseSampler:
    if np.random.default_rng(seed).random() < random_share:
        return optuna.samplers.RandomSampler(seed=seed)
    joint = kind == "tpe-joint"
    given = {"multivariate": joint, "group": joint, "constant_liar": True, "seed": seed}
    return optuna.samplers.TPESampler(**given | tpe)


class Shown:
    """The trials of a study that run or wait, and have a row."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def __contains__(self, number: int) -> bool:
        return number in self.study._live and bool(self.study._rows.get(number))


class Stock:
    """Optuna asked and told, and a rule that stops trials: what one has without this package.

    `rule` is "optuna" (its SuccessiveHalvingPruner) or "ray" (its AsyncHyperBandScheduler, the
    class itself). `as_complete`: a stopped trial is told as a complete one with its last value, as
    Ray's OptunaSearch does; else as pruned, as Optuna's own loop does.
    """

    def __init__(self, seed: int, folder: Path, rule: str, as_complete: bool = False) -> None:
        self.seed, self.rule, self.as_complete = seed, rule, as_complete
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
        sampler = (
            optuna.samplers.TPESampler(seed=seed) if as_complete else make_sampler("tpe", seed)
        )
        self.study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        self.space = experiment().search_space
        self.trials: dict[int, optuna.Trial] = {}
        if rule == "ray":
            from ray.tune.schedulers import AsyncHyperBandScheduler

            self.asha = AsyncHyperBandScheduler(
                "training_iteration", METRIC, "max", EPOCHS, 1, reduction_factor=3
            )

    def propose(self) -> Segment:
        trial = self.study.ask()
        self.trials[trial.number] = trial
        candidate = self.space.sample(trial)
        if self.rule == "ray":
            self.asha.on_trial_add(None, SimpleNamespace(trial_id=trial.number))
        seed = trial_seed(self.seed, trial.number)
        return Segment(trial.number, candidate, seed, EPOCHS, 0, math.inf)

    def report(self, number: int, row: dict[str, Any]) -> bool:
        trial, epoch = self.trials[number], row["epoch"]
        if diverged(row):
            return True
        trial.report(row[METRIC], epoch)
        if epoch == EPOCHS:
            return False
        if self.rule == "optuna":
            return trial.should_prune()
        result = {"training_iteration": epoch, METRIC: row[METRIC]}
        return self.asha.on_trial_result(None, SimpleNamespace(trial_id=number), result) == "STOP"

    def ended(self, number: int, state: str = "reached") -> None:
        trial = self.trials.pop(number)
        values = self.study.get_trials(deepcopy=False)[number].intermediate_values
        complete = state == "reached" or (self.as_complete and state == "stopped")
        if complete:
            self.study.tell(trial, values[max(values)])
        elif values and not self.as_complete:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def close(self) -> None:
        """Nothing was opened."""


Maker = Callable[[int, Path], Any]
asha: dict[str, Any] = {"scheduler": "asha"}
promote: dict[str, Any] = {"scheduler": "asha-promote"}
CONTENDERS: dict[str, Maker] = {
    "random": partial(Ours, sampler="random", scheduler="none"),
    "tpe": partial(Ours, sampler="tpe", scheduler="none"),
    "random+asha": partial(Ours, sampler="random", **asha),
    "random+promote": partial(Ours, sampler="random", **promote),
    "tpe+asha": partial(Ours, sampler="tpe", **asha),
    "tpe+promote": partial(Ours, sampler="tpe", **promote),
    "tpe-joint+asha": partial(Ours, sampler="tpe-joint", **asha),
    "tpe-joint+promote": partial(Ours, sampler="tpe-joint", **promote),
    "optuna SHA": partial(Stock, rule="optuna"),
    "ray ASHA": partial(Stock, rule="ray"),
    "ray ASHA, OptunaSearch": partial(Stock, rule="ray", as_complete=True),
}
EVERYWHERE = ("random", "random+asha", "tpe+asha", "tpe+promote")  # with 1, 2 and 64 workers too
# One thing changed at a time
share: dict[str, Any] = {"tpe": {}, "random_share": 1 / 3}
CHANGES: dict[str, dict[str, Any]] = {
    "random 1/3": share,
    "random 1/5": share | {"random_share": 1 / 5},
    "random 1/3, startup 5": share | {"tpe": {"n_startup_trials": 5}},
    "startup 5": {"tpe": {"n_startup_trials": 5}},
    "startup 20": {"tpe": {"n_startup_trials": 20}},
    "best fifth": {"tpe": {"gamma": lambda n: min(math.ceil(n / 5), 25)}},
    "64 candidates": {"tpe": {"n_ei_candidates": 64}},
    "no group": {"tpe": {"group": False}},
    "no liar": {"tpe": {"constant_liar": False}},
    "running shown": {"show_running": True},
    "factor 2": {"reduction_factor": 2},
    "factor 4": {"reduction_factor": 4},
    "grace 2": {"grace_epochs": 2},
    "grace 2, random 1/3": share | {"grace_epochs": 2},
}
VARIANTS: dict[str, Maker] = {
    "tpe-joint": partial(Ours, sampler="tpe-joint", scheduler="none"),
} | {
    f"{sampler}+{name}, {what}": partial(Ours, sampler=sampler, **given | change)
    for sampler in ("tpe", "tpe-joint")
    for name, given in (("asha", asha), ("promote", promote))
    for what, change in CHANGES.items()
}
REPORTED = ("tpe+asha, startup 20", "tpe+asha, random 1/3", "tpe+asha, factor 4")


# ---- a search on a virtual clock --------------------------------------------------------------


@dataclass
class Trace:
    """Each change of the incumbent: (epochs, seconds, trials, observed, true) at that moment."""

    changes: list[tuple[int, float, int, float, float]] = field(default_factory=list)
    epochs: int = 0
    seconds: float = 0.0
    trials: int = 0


def simulate(driver: Any, world: World, workers: int, budget: int = BUDGET) -> Trace:
    """Search until `budget` epochs are trained. The incumbent is the best at the last epoch."""
    trace, order = Trace(), count()
    busy: list[tuple[float, int, Segment, int]] = []  # (when its epoch ends, _, segment, epoch)
    just_ended = -1
    while trace.epochs < budget:
        while len(busy) < workers and isinstance(segment := driver.propose(), Segment):
            trace.trials += segment.known == 0
            start = STARTUP if segment.number != just_ended else 0.0
            ends = trace.seconds + start + world.seconds(segment.candidate)
            heapq.heappush(busy, (ends, next(order), segment, segment.known + 1))
            just_ended = -1
        trace.seconds, _, segment, epoch = heapq.heappop(busy)
        row = world.row(segment, epoch)
        trace.epochs += 1
        stop = driver.report(segment.number, row)
        if epoch == EPOCHS and math.isfinite(row[METRIC]):
            seen = row[METRIC]
            if not trace.changes or seen > trace.changes[-1][3]:
                true = float(world.curves_of(segment.candidate, segment.seed)[0][-1])
                trace.changes.append((trace.epochs, trace.seconds, trace.trials, seen, true))
        if diverged(row):
            driver.ended(segment.number, "diverged")
        elif stop:
            driver.ended(segment.number, "stopped")
        elif epoch == segment.until:
            driver.ended(segment.number)
            just_ended = segment.number
        else:
            ends = trace.seconds + world.seconds(segment.candidate)
            heapq.heappush(busy, (ends, next(order), segment, epoch + 1))
    return trace


RUN_COLUMNS = "contender workers seed epochs seconds trials observed true wall_seconds".split()
TRACE_COLUMNS = "contender workers seed epochs seconds trials observed true".split()


def append(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    old = read_rows(path)
    text = [",".join(columns)]
    for row in old + rows:
        cells = [row[name] for name in columns]
        text.append(",".join(f'"{c}"' if isinstance(c, str) else f"{c:.6g}" for c in cells))
    content = ("\n".join(text) + "\n").encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


Job = tuple[str, Maker, int, int]  # contender, how to make it, workers, seed


def jobs(seeds: range, only: list[str], workers: list[int]) -> Iterator[Job]:
    """What matters most first."""
    made = CONTENDERS | VARIANTS
    for number in workers:
        everything = [*CONTENDERS, *REPORTED] if number == WORKERS else EVERYWHERE
        yield from ((name, made[name], number, s) for name in only or everything for s in seeds)


def run_all(world: World, chosen: Iterator[Job]) -> None:
    folder = search_figures.RESULTS
    done = {(r["contender"], int(r["workers"]), int(r["seed"])) for r in read_rows(folder / RUNS)}
    for name, make, workers, seed in chosen:
        if (name, workers, seed) in done:
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=MEMORY) as study:
            driver = make(seed, Path(study))
            trace = simulate(driver, world, workers)
            driver.close()
        which = {"contender": name, "workers": workers, "seed": seed}
        changes = [which | dict(zip(TRACE_COLUMNS[3:], c, strict=True)) for c in trace.changes]
        append(folder / TRACES, TRACE_COLUMNS, changes)
        last = {"observed": trace.changes[-1][3], "true": trace.changes[-1][4]}
        spent = {"epochs": trace.epochs, "seconds": trace.seconds, "trials": trace.trials}
        row = which | spent | last | {"wall_seconds": time.perf_counter() - began}
        append(folder / RUNS, RUN_COLUMNS, [row])
        print(f"{name}, {workers} workers, seed {seed}: {last['true']:.4f}", flush=True)


def measure_driver(trials: int = 10_000) -> None:
    """Trials a second of CPU time by random search, with rows that cost nothing; memory."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        driver: Any = Ours(0, Path(folder), sampler="random", scheduler="asha")
        began, done, step = time.process_time(), 0, trials // 10
        rng = np.random.default_rng(0)
        while done < trials:
            segment = driver.propose()
            for epoch in range(segment.known + 1, segment.until + 1):
                values = {"train_loss": 1.0, "val_loss": 1.0, METRIC: float(rng.random())}
                driver.report(segment.number, {"epoch": epoch, "epoch_seconds": 1.0, **values})
            driver.ended(segment.number)
            done = driver.study.trained
            if done % step == 0 and segment.known == 0:
                now = time.process_time()
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
                speed = step / (now - began)
                print(f"{done} trials: {speed:.0f} trials/s of CPU time, {memory:.0f} MiB")
                began = now
        driver.close()


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--seeds", type=int, default=SEEDS, help=f"searches of each kind ({SEEDS})")
    made.add_argument("--first", type=int, default=FIRST, help=f"the first one's seed ({FIRST})")
    made.add_argument("--only", nargs="*", default=[], metavar="CONTENDER")
    made.add_argument("--workers", nargs="*", type=int, default=[WORKERS, 2, 1, 64])
    made.add_argument("--results", type=Path, default=search_figures.RESULTS, metavar="FOLDER")
    made.add_argument("--driver", action="store_true", help="measure the driver's speed instead")
    options = made.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    if options.driver:
        measure_driver()
        return
    world = World()
    search_figures.RESULTS = options.results
    seeds = range(options.first, options.first + options.seeds)
    run_all(world, jobs(seeds, options.only, options.workers))
    write_tables(world.best, CONTENDERS, REPORTED)
    draw(world.best)


if __name__ == "__main__":
    main()
