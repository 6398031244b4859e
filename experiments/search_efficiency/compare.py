"""Which search hands over the better network? The product's against other libraries'.

    python experiments/search_efficiency/compare.py --results FOLDER --first 2000 --seeds 60
    ... --results /tmp/try --seeds 2 --workers 8 --only tpe+promote syne-ASHA      # a try
    ... --results FOLDER --tables-only      # tables and figure of what is there

Every search trains 540 epochs on the virtual clock of `simulate.py`, with curves of
`curve_model.py`. Finished searches are kept in FOLDER and not repeated: runs.csv has one row each,
traces.csv.gz each change of an incumbent, and `measures.py` makes tables and the figure from these
two. Other libraries: pip install -e '.[bench]'.
"""

import argparse
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import optuna
import peers
from curve_model import Curves
from measures import (
    BUDGET,
    RUN_COLUMNS,
    RUNS,
    TRACE_COLUMNS,
    TRACES,
    append,
    draw,
    read_rows,
    write_tables,
)
from simulate import Ours, Trace, opened, simulate

WORKERS = (2, 8, 64, 1)
FEW = 20  # seeds of what takes more than 5 seconds of CPU time a search

# fields of the experiment
OURS: dict[str, dict[str, Any]] = {
    "random+asha": {"sampler": "random", "scheduler": "asha"},
    "tpe+asha": {"sampler": "tpe", "scheduler": "asha"},
    "tpe+promote": {"sampler": "tpe", "scheduler": "asha-promote"},
    "curves+asha": {"sampler": "curves", "scheduler": "asha"},
    "curves+promote": {"sampler": "curves", "scheduler": "asha-promote"},
}
JUDGED = "curves+promote"  # by the rule of results/2026-11-26_search_peers
PEERS: dict[str, Callable[..., Any]] = {
    "optuna-TPE+hyperband": partial(peers.Optuna, pruner="hyperband"),
    "optuna-TPE+halving": partial(peers.Optuna, pruner="halving"),
    "syne-ASHA": partial(peers.SyneTune, kind="ASHA"),
    "syne-BOHB": partial(peers.SyneTune, kind="BOHB"),
    "syne-ASHABORE": partial(peers.SyneTune, kind="ASHABORE", every=10),
    "syne-ASHACQR": partial(peers.SyneTune, kind="ASHACQR", every=10),
    "neps-PriorBand": peers.NePS,
    "smac-MF": peers.SMAC,
    "optuna-GP": partial(peers.Optuna, sampler="GP"),
}
SLOW = ("syne-BOHB", "syne-ASHABORE", "syne-ASHACQR", "neps-PriorBand", "smac-MF", "optuna-GP")
Job = tuple[int, int, str]  # seed, workers, contender


@cache
def world() -> Curves:
    """One a process: it keeps the curves that it was asked for."""
    return Curves()


def search(name: str, workers: int, seed: int) -> Trace:
    """One search by that contender."""
    if name in PEERS:
        return simulate(PEERS[name](world(), seed), world(), workers, BUDGET)
    with opened(seed, **OURS[name]) as study:
        return simulate(Ours(study, world()), world(), workers, BUDGET)


def run(job: Job) -> tuple[Job, Trace | str, float]:
    """A search, or in words why there is none; its seconds of CPU time."""
    seed, workers, name = job
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    began = time.process_time()
    try:
        trace: Trace | str = search(name, workers, seed)
    except Exception as error:  # a peer that fails is named, and the others go on
        trace = f"{type(error).__name__}: {error}"
    return job, trace, time.process_time() - began


def jobs(seeds: range, only: list[str], workers: list[int]) -> Iterator[Job]:
    """Seed by seed, so that a run cut short has the same seeds of all."""
    for seed in seeds:
        for number in workers:
            for name in only or (*OURS, *PEERS):
                if name not in SLOW or seed < seeds.start + FEW:
                    yield seed, number, name


def keep(folder: Path, job: Job, trace: Trace) -> None:
    seed, workers, name = job
    which = {"contender": name, "workers": workers, "seed": seed}
    changes = [which | dict(zip(TRACE_COLUMNS[3:], c, strict=True)) for c in trace.changes]
    append(folder / TRACES, TRACE_COLUMNS, changes)
    last = {"observed": trace.changes[-1][3], "true": trace.changes[-1][4]}
    spent = {"epochs": trace.epochs, "seconds": trace.seconds, "trials": trace.trials}
    append(folder / RUNS, RUN_COLUMNS, [which | spent | last | {"cpu_seconds": trace.cpu}])


def run_all(chosen: Iterator[Job], folder: Path, processes: int) -> None:
    done = {(int(r["seed"]), int(r["workers"]), r["contender"]) for r in read_rows(folder / RUNS)}
    left = [job for job in chosen if job not in done]
    os.environ |= {"OMP_NUM_THREADS": "1"}  # of the processes to come
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for job, trace, seconds in pool.imap_unordered(run, left):
            seed, workers, name = job
            said = trace if isinstance(trace, str) else f"{trace.changes[-1][4]:.4f}"
            print(f"{name}, {workers} workers, seed {seed}: {said}, {seconds:.1f} s", flush=True)
            if isinstance(trace, Trace):
                keep(folder, job, trace)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=60, help="searches of each kind (60)")
    parser.add_argument("--first", type=int, default=0, help="the first one's seed (0)")
    parser.add_argument("--only", nargs="*", default=[], choices=(*OURS, *PEERS), metavar="NAME")
    parser.add_argument("--workers", nargs="*", type=int, default=WORKERS)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--results", type=Path, metavar="FOLDER")
    parser.add_argument("--tables-only", action="store_true")
    options = parser.parse_args()
    if options.results is None:
        parser.error("--results FOLDER is missing")
    options.results.mkdir(parents=True, exist_ok=True)
    if not options.tables_only:
        seeds = range(options.first, options.first + options.seeds)
        chosen = jobs(seeds, options.only, options.workers)
        run_all(chosen, options.results, options.processes)
    write_tables(options.results, world(), (*OURS, *PEERS), JUDGED)
    draw(options.results, world(), (*OURS, *PEERS))


if __name__ == "__main__":
    main()
