"""How many epochs does each way of searching need? Simulated on recorded learning curves.

    python experiments/search_efficiency/simulate.py --results FOLDER   # half an hour of one core
    ... --results FOLDER --seeds 2 --workers 8 --only random tpe+promote    # a try: half a minute
    ... --driver          # trials a second, memory over 10,000 trials: a minute

Searches are real (`Study`, its scheduler, its journal, Optuna's samplers), only workers are not:
they live on a virtual clock and take each row from `curve_model.py`, a model of the curves that
`record_curves.py` recorded. What a trial reports is its configuration's curve plus the difference
of the two recorded seeds at the nearest recorded configuration, so that searchers meet real noise;
a search is judged by the curve without it.

Finished simulations are kept in FOLDER/runs.csv and not repeated; traces.csv.gz has each change of
an incumbent; `figures.py` makes the figure and the tables of FOLDER/README.md from these two files.
"""

import argparse
import gzip
import heapq
import math
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from curve_model import World
from figures import BUDGET, RUNS, TRACES, WORKERS, draw, read_rows, write_tables
from record_curves import EPOCHS, experiment

from vgg_search.records import METRIC, diverged
from vgg_search.study.segment import Segment
from vgg_search.study.study import Study

FIRST, SEEDS = 100, 20
STARTUP = 0.1  # seconds before a worker trains another trial than its last, as in real runs
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


asha, promote = {"scheduler": "asha"}, {"scheduler": "asha-promote"}
CONTENDERS: dict[str, dict[str, Any]] = {  # fields of the experiment
    "random": {"sampler": "random", "scheduler": "none"},
    "tpe": {"sampler": "tpe", "scheduler": "none"},
    "random+asha": {"sampler": "random", **asha},
    "random+promote": {"sampler": "random", **promote},
    "tpe+asha": {"sampler": "tpe", **asha},
    "tpe+promote": {"sampler": "tpe", **promote},
    "tpe-joint+asha": {"sampler": "tpe-joint", **asha},
    "tpe-joint+promote": {"sampler": "tpe-joint", **promote},
}
EVERYWHERE = ("random", "random+asha", "tpe+asha", "tpe+promote")  # with 1, 2 and 64 workers too


@contextmanager
def opened(seed: int, **fields: Any) -> Iterator[Study]:
    """A study as a real run has it, in memory where there is room for files."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        study = Study(Path(folder), experiment(seed=seed, num_trials=1_000_000, **fields))
        study.open()
        yield study
        study.release()


# ---- a search on a virtual clock --------------------------------------------------------------


@dataclass
class Trace:
    """Each change of the incumbent: (epochs, seconds, trials, observed, true) at that moment."""

    changes: list[tuple[int, float, int, float, float]] = field(default_factory=list)
    epochs: int = 0
    seconds: float = 0.0
    trials: int = 0


def simulate(study: Study, world: World, workers: int) -> Trace:
    """Search until BUDGET epochs are trained. The incumbent is the best at the last epoch."""
    trace, order = Trace(), count()
    busy: list[tuple[float, int, Segment, int]] = []  # (when its epoch ends, _, segment, epoch)
    just_ended = -1
    while trace.epochs < BUDGET:
        while len(busy) < workers and isinstance(segment := study.propose(), Segment):
            trace.trials += segment.known == 0
            start = STARTUP if segment.number != just_ended else 0.0
            ends = trace.seconds + start + world.seconds(segment.candidate)
            heapq.heappush(busy, (ends, next(order), segment, segment.known + 1))
            just_ended = -1
        trace.seconds, _, segment, epoch = heapq.heappop(busy)
        row = world.row(segment, epoch)
        trace.epochs += 1
        study.report(segment.number, row)
        if epoch == EPOCHS and math.isfinite(row[METRIC]):
            seen = row[METRIC]
            if not trace.changes or seen > trace.changes[-1][3]:
                true = float(world.curves_of(segment.candidate, segment.seed)[0][-1])
                trace.changes.append((trace.epochs, trace.seconds, trace.trials, seen, true))
        if diverged(row):
            study.segment_ended(segment.number, "diverged")
        elif epoch == segment.until:
            study.segment_ended(segment.number)
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


Job = tuple[str, int, int]  # contender, workers, seed


def jobs(seeds: range, only: list[str], workers: list[int]) -> Iterator[Job]:
    """What matters most first."""
    for number in workers:
        names = only or (CONTENDERS if number == WORKERS else EVERYWHERE)
        yield from ((name, number, seed) for name in names for seed in seeds)


def run_all(world: World, chosen: Iterator[Job], folder: Path) -> None:
    done = {(r["contender"], int(r["workers"]), int(r["seed"])) for r in read_rows(folder / RUNS)}
    for name, workers, seed in chosen:
        if (name, workers, seed) in done:
            continue
        began = time.perf_counter()
        with opened(seed, **CONTENDERS[name]) as study:
            trace = simulate(study, world, workers)
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
    began, step, rng = time.process_time(), trials // 10, np.random.default_rng(0)
    with opened(0, sampler="random", scheduler="asha") as study:
        while study.trained < trials:
            segment: Any = study.propose()
            for epoch in range(segment.known + 1, segment.until + 1):
                values = {"train_loss": 1.0, "val_loss": 1.0, METRIC: float(rng.random())}
                study.report(segment.number, {"epoch": epoch, "epoch_seconds": 1.0, **values})
            study.segment_ended(segment.number)
            if study.trained % step == 0 and segment.known == 0:
                speed = step / (time.process_time() - began)
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
                print(f"{study.trained} trials: {speed:.0f} trials/s of CPU time, {memory:.0f} MiB")
                began = time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"searches of each kind ({SEEDS})")
    parser.add_argument("--first", type=int, default=FIRST, help=f"the first one's seed ({FIRST})")
    parser.add_argument("--only", nargs="*", default=[], choices=CONTENDERS, metavar="CONTENDER")
    parser.add_argument("--workers", nargs="*", type=int, default=[WORKERS, 2, 1, 64])
    parser.add_argument("--results", type=Path, metavar="FOLDER")
    parser.add_argument("--driver", action="store_true", help="measure the driver's speed instead")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    if options.driver:
        measure_driver()
        return
    if options.results is None:
        parser.error("--results FOLDER is missing")
    options.results.mkdir(parents=True, exist_ok=True)
    world = World()
    seeds = range(options.first, options.first + options.seeds)
    run_all(world, jobs(seeds, options.only, options.workers), options.results)
    write_tables(options.results, world.best, CONTENDERS)
    draw(options.results, world.best)


if __name__ == "__main__":
    main()
