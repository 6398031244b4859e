"""How many epochs does each way of searching need? Simulated on recorded learning curves.

    python experiments/bench_search.py                  # all of it: an hour of one core
    python experiments/bench_search.py --seeds 2 --only random tpe+asha
    python experiments/bench_search.py --driver         # trials a second, memory over 10,000 trials

Searches are real (`Study`, its scheduler, its journal, Optuna's samplers), only workers are not:
they live on a virtual clock and take each row from a model of `record_curves.py`'s table. Samplers
propose learning rates that nobody trained, so there is a model between the recorded configurations,
as in tabular benchmarks that went the same way (NAS-Bench-301, arXiv:2008.09777; YAHPO Gym,
arXiv:2109.03670): a Gaussian process on -log(1 - accuracy) of all epochs at once. Rounding each
proposal to the nearest recorded one instead would give a sampler plateaus that reality has not, and
answer most late proposals as duplicates. How well it ranks configurations that it has not seen is
measured by cross-validation and stands in the README. What a trial reports is its configuration's
curve plus the difference of the two recorded seeds at the nearest recorded configuration, so that
searchers meet real noise; a search is judged by the curve without it.

Finished simulations are kept in runs.csv and not repeated; traces.csv.gz has each change of an
incumbent; the figure and the README's tables are made from these two files.
"""

import argparse
import csv
import gzip
import heapq
import math
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from record_curves import EPOCHS, TABLE, experiment

from vgg_search import study as study_module
from vgg_search.journal import METRIC, make_sampler, trial_seed
from vgg_search.search_space import Candidate
from vgg_search.segment import Segment, diverged
from vgg_search.study import Study

RESULTS = TABLE.parent
BUDGET = 60 * EPOCHS  # epochs of a search: sixty trials that are never stopped
WORKERS, SEEDS = 8, 20
STARTUP = 0.1  # seconds before a worker trains another trial than its last (facts of real runs)
CLOSE = 0.002  # accuracy: two tenths of a point
CHANCE, ALIVE = 0.1, 0.6  # accuracies
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


# ---- the world: curves of any configuration ---------------------------------------------------


def features(candidate: Candidate) -> list[float]:
    """What the model sees of a configuration."""
    arch = candidate.arch
    params, flops = experiment().search_space.costs(candidate)
    depth = [len(arch), sum(convs for convs, _ in arch), arch[0][0], arch[-1][0]]
    width = [arch[0][1], arch[-1][1], math.log(params), math.log(flops)]
    rest = [math.log2(candidate.hidden_features), candidate.batch_norm, candidate.dropout]
    return [*depth, *width, *rest, math.log10(candidate.lr), math.log10(candidate.weight_decay)]


def read_table() -> list[dict[str, Any]]:
    """Rows of the table with `candidate` and `curve` (EPOCHS,), NaN once a training was lost."""
    rows = []
    with gzip.open(TABLE, "rt", newline="") as file:
        for row in csv.DictReader(file):
            arch = tuple(tuple(map(int, block.split("x"))) for block in row["arch"].split("-"))
            kinds: dict[str, Callable[[str], Any]] = {"batch_norm": lambda text: text == "True"}
            kinds |= dict.fromkeys(("lr", "weight_decay", "dropout"), float)
            names = "lr weight_decay batch_size dropout hidden_features num_hidden batch_norm"
            values = {name: kinds.get(name, int)(row[name]) for name in names.split()}
            curve = [float(row[f"{METRIC}_{e}"] or "nan") for e in range(1, EPOCHS + 1)]
            lost = [row[f"train_loss_{e}"] == "" for e in range(1, EPOCHS + 1)]
            seconds = [float(row[f"epoch_seconds_{e}"] or "nan") for e in range(1, EPOCHS + 1)]
            rows.append(
                {"candidate": Candidate(arch=arch, **values), "seed": int(row["seed"])}
                | {"curve": np.where(lost, np.nan, curve), "seconds": np.nanmedian(seconds)}
            )
    return rows


def squash(accuracy: np.ndarray) -> np.ndarray:
    """Where errors of a good network count as much as those of a poor one."""
    return -np.log(1.0001 - accuracy)


class World:
    """Curves of any configuration, from the table's. `best`: the best recorded one's value."""

    def __init__(self) -> None:
        rows = read_table()
        first, second = ([row for row in rows if row["seed"] == seed] for seed in (0, 1))
        self.candidates = [row["candidate"] for row in first]
        self.inputs = np.array([features(candidate) for candidate in self.candidates])
        self.curves = np.array([[a["curve"], b["curve"]] for a, b in zip(first, second)])
        filled = squash(np.nan_to_num(self.curves, nan=CHANCE))  # (configs, seeds, epochs)
        self.outputs, self.differences = filled.mean(1), filled[:, 1] - filled[:, 0]
        self.alive = (np.nan_to_num(self.curves[:, :, -1]) > ALIVE).all(1)
        costs = np.array([[1.0, math.exp(row[7])] for row in self.inputs])  # flops
        seconds = np.array([[a["seconds"], b["seconds"]] for a, b in zip(first, second)]).mean(1)
        # Relative errors, for the machine was shared: all epochs were slow at some time
        weights = 1 / seconds
        self.cost = np.linalg.lstsq(costs * weights[:, None], seconds * weights, rcond=None)[0]
        self._known: dict[tuple[Candidate, int], tuple[np.ndarray, np.ndarray]] = {}

    @staticmethod
    def model() -> Any:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        scales = Matern(np.ones(13), (0.1, 100.0), nu=2.5)
        process = GaussianProcessRegressor(
            ConstantKernel() * scales + WhiteKernel(), normalize_y=True, random_state=0
        )
        return make_pipeline(StandardScaler(), process)

    @cached_property
    def fitted(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a length scale at its bound: a feature without effect
            return self.model().fit(self.inputs, self.outputs)

    def predict(self, candidate: Candidate) -> np.ndarray:
        """Squashed accuracy of each epoch, without noise."""
        return self.fitted.predict(np.array([features(candidate)]))[0]

    @cached_property
    def best(self) -> float:
        """Value of the best recorded configuration, as the model has it (its noise averaged out)."""
        return float(self.accuracy(self.fitted.predict(self.inputs)[:, -1]).max())

    @staticmethod
    def accuracy(squashed: np.ndarray) -> np.ndarray:
        return np.clip(1.0001 - np.exp(-squashed), CHANCE, 0.999)

    def nearest(self, candidate: Candidate, among: np.ndarray) -> int:
        """The recorded configuration most like it, in the model's own measure of distance."""
        scaler, process = self.fitted[0], self.fitted[1]
        scales = process.kernel_.k1.k2.length_scale
        difference = scaler.transform([features(candidate)]) - scaler.transform(self.inputs)
        distance = ((difference / scales) ** 2).sum(1)
        return int(np.where(among, distance, np.inf).argmin())

    def curves_of(self, candidate: Candidate, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(as it is, as reported) val_accuracy by epoch; NaN from where a training is lost."""
        key = (candidate, seed)
        if key not in self._known:
            mean = self.predict(candidate)
            true = self.accuracy(mean)
            alive = true[-1] > ALIVE
            near = self.nearest(candidate, self.alive if alive else ~self.alive)
            # Half of the difference reproduces the two seeds; 0.71 of it has their variance
            share = (1 if seed % 2 else -1) * (math.sqrt(0.5) if alive else 0.5)
            seen = self.accuracy(mean + share * self.differences[near])
            if not alive:  # as lost as its neighbour, whose loss may have left the numbers
                seen = np.where(np.isnan(self.curves[near, seed % 2]), np.nan, seen)
            self._known[key] = true, seen
        return self._known[key]

    def seconds(self, candidate: Candidate) -> float:
        """Of an epoch: an offset and a share of the network's FLOPs, fitted to the table."""
        return float(self.cost @ [1.0, experiment().search_space.costs(candidate)[1]])

    def quality(self) -> dict[str, float]:
        """How the model ranks configurations that it was not shown (ten folds)."""
        from scipy.stats import spearmanr
        from sklearn.model_selection import KFold, cross_val_predict

        folds = KFold(10, shuffle=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            guess = cross_val_predict(self.model(), self.inputs, self.outputs, cv=folds)
        alive = self.outputs[:, -1] > squash(np.array(ALIVE))
        seeds = np.nan_to_num(self.curves[:, :, -1], nan=CHANCE)
        errors = np.abs(np.exp(-guess) - np.exp(-self.outputs))[alive, -1]
        return {
            "configurations": len(guess),
            "lost": int(np.isnan(self.curves[:, :, -1]).sum()),
            "above_0.6": int(alive.sum()),
            "rank_correlation": spearmanr(guess[:, -1], self.outputs[:, -1])[0],
            "rank_correlation_above_0.6": spearmanr(guess[alive, -1], self.outputs[alive, -1])[0],
            "rank_correlation_first_epoch": spearmanr(guess[:, 0], self.outputs[:, 0])[0],
            "rank_correlation_of_two_seeds": spearmanr(*seeds.T)[0],
            "rank_correlation_of_two_seeds_above_0.6": spearmanr(*seeds[alive].T)[0],
            "rank_correlation_epoch_1_and_9": spearmanr(self.outputs[:, 0], self.outputs[:, -1])[0],
            "rank_correlation_epoch_3_and_9": spearmanr(self.outputs[:, 2], self.outputs[:, -1])[0],
            "mean_absolute_error_above_0.6": errors.mean(),
            "best": self.best,
        }

    def row(self, segment: Segment, epoch: int) -> dict[str, Any]:
        value = self.curves_of(segment.candidate, segment.seed)[1][epoch - 1]
        loss = 1.0 if math.isfinite(value) else math.nan
        seconds = self.seconds(segment.candidate)
        losses = {"train_loss": loss, "val_loss": loss, METRIC: float(value)}
        return {"epoch": epoch, **losses, "epoch_seconds": seconds}


# ---- who searches -----------------------------------------------------------------------------


class Ours:
    """The package's study, as a real run has it."""

    def __init__(self, seed: int, folder: Path, startup: int | None = None, **fields: Any) -> None:
        config = experiment(seed=seed, num_trials=1_000_000, **fields)
        if startup is not None:
            sampler = partial(
                optuna.samplers.TPESampler, multivariate=True, group=True, constant_liar=True
            )
            make = lambda kind, seed: sampler(seed=seed, n_startup_trials=startup)  # noqa: E731
            study_module.make_sampler = make
        else:
            study_module.make_sampler = make_sampler
        self.study = Study(folder, config)
        self.study.open()
        self.propose, self.ended = self.study.propose, self.study.segment_ended

    def report(self, number: int, row: dict[str, Any]) -> bool:
        self.study.report(number, row)
        return False

    def close(self) -> None:
        self.study.release()


class Stock:
    """Optuna asked and told, and a rule that stops trials: what one has without this package.

    `rule` is "optuna" (its SuccessiveHalvingPruner) or "ray" (its AsyncHyperBandScheduler, the
    class itself). `as_complete`: a stopped trial is told as a complete one with its last value, as
    Ray's OptunaSearch does; else as pruned, as Optuna's own loop does.
    """

    def __init__(self, seed: int, folder: Path, rule: str, as_complete: bool = False) -> None:
        self.seed, self.rule, self.as_complete = seed, rule, as_complete
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
        sampler = optuna.samplers.TPESampler(seed=seed) if as_complete else make_sampler("tpe", seed)
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
asha, promote = {"scheduler": "asha"}, {"scheduler": "asha-promote"}
CONTENDERS: dict[str, Maker] = {
    "random": partial(Ours, sampler="random", scheduler="none"),
    "tpe": partial(Ours, sampler="tpe", scheduler="none"),
    "random+asha": partial(Ours, sampler="random", **asha),
    "random+promote": partial(Ours, sampler="random", **promote),
    "tpe+asha": partial(Ours, sampler="tpe", **asha),
    "tpe+promote": partial(Ours, sampler="tpe", **promote),
    "optuna SHA": partial(Stock, rule="optuna"),
    "ray ASHA": partial(Stock, rule="ray"),
    "ray ASHA, OptunaSearch": partial(Stock, rule="ray", as_complete=True),
}
# One thing changed at a time, from tpe+asha and tpe+promote
VARIANTS: dict[str, Maker] = {
    f"{name}, {what}": partial(Ours, sampler="tpe", **given, **change)
    for name, given in (("tpe+asha", asha), ("tpe+promote", promote))
    for what, change in {
        "factor 2": {"reduction_factor": 2},
        "factor 4": {"reduction_factor": 4},
        "grace 2": {"grace_epochs": 2},
        "grace 3": {"grace_epochs": 3},
        "startup 5": {"startup": 5},
        "startup 20": {"startup": 20},
    }.items()
}


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


def read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    rows: list[dict[str, Any]] = list(csv.DictReader(text.splitlines()))
    return [{k: v if k == "contender" else float(v) for k, v in row.items()} for row in rows]


def append(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    old = read_rows(path)
    text = [",".join(columns)]
    for row in old + rows:
        cells = [row[name] for name in columns]
        text.append(",".join(f'"{c}"' if isinstance(c, str) else f"{c:.6g}" for c in cells))
    content = ("\n".join(text) + "\n").encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def jobs(seeds: int, only: list[str]) -> Iterator[tuple[str, Maker, int, int]]:
    """(contender, how to make it, workers, seed), what matters most first."""
    for name, make in CONTENDERS.items():
        yield from ((name, make, WORKERS, seed) for seed in range(seeds) if name in only or not only)
    for workers in (1, 64):
        for name in ("random", "tpe+asha", "tpe+promote"):
            if name in only or not only:
                make = CONTENDERS[name]
                yield from ((name, make, workers, seed) for seed in range(max(1, seeds // 2)))
    for name, make in VARIANTS.items():
        if name in only or not only:
            yield from ((name, make, WORKERS, seed) for seed in range(max(1, seeds // 2)))


def run_all(world: World, seeds: int, only: list[str]) -> None:
    runs, traces = RESULTS / "runs.csv", RESULTS / "traces.csv.gz"
    done = {(r["contender"], int(r["workers"]), int(r["seed"])) for r in read_rows(runs)}
    for name, make, workers, seed in jobs(seeds, only):
        if (name, workers, seed) in done:
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            driver = make(seed, Path(folder))
            trace = simulate(driver, world, workers)
            driver.close()
        which = {"contender": name, "workers": workers, "seed": seed}
        changes = [which | dict(zip(TRACE_COLUMNS[3:], c, strict=True)) for c in trace.changes]
        append(traces, TRACE_COLUMNS, changes)
        last = {"observed": trace.changes[-1][3], "true": trace.changes[-1][4]}
        spent = {"epochs": trace.epochs, "seconds": trace.seconds, "trials": trace.trials}
        row = which | spent | last | {"wall_seconds": time.perf_counter() - began}
        append(runs, RUN_COLUMNS, [row])
        print(f"{name}, {workers} workers, seed {seed}: {last['true']:.4f}", flush=True)


def measure_driver(trials: int = 10_000) -> None:
    """Trials a second of a study with random search and rows that cost nothing; memory by trials."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        driver = Ours(0, Path(folder), sampler="random", scheduler="asha")
        began, done, step = time.perf_counter(), 0, trials // 10
        rng = np.random.default_rng(0)
        while done < trials:
            segment = driver.propose()
            for epoch in range(segment.known + 1, segment.until + 1):
                values = {"train_loss": 1.0, "val_loss": 1.0, METRIC: float(rng.random())}
                driver.report(segment.number, {"epoch": epoch, "epoch_seconds": 1.0, **values})
            driver.ended(segment.number)
            done = driver.study.trained
            if done % step == 0 and segment.known == 0:
                now = time.perf_counter()
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
                print(f"{done} trials: {step / (now - began):.0f} trials/s, {memory:.0f} MiB")
                began = now
        driver.close()


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--seeds", type=int, default=SEEDS, help=f"searches of each kind ({SEEDS})")
    made.add_argument("--only", nargs="*", default=[], metavar="CONTENDER")
    made.add_argument("--driver", action="store_true", help="measure the driver's speed instead")
    made.add_argument("--quality", action="store_true", help="only say how good the model is")
    options = made.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    if options.driver:
        measure_driver()
        return
    world = World()
    for name, value in world.quality().items():
        print(f"{name}: {value:.4g}")
    if not options.quality:
        run_all(world, options.seeds, options.only)


if __name__ == "__main__":
    main()
