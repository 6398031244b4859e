"""How wide is the driver? The real one, with workers that answer as workers do and train nothing.

    python experiments/bench_driver.py record --trials 10000 --workers 1000 --folder F
    ... commands --folder F       # report and status of that study, from process start to end
    ... resume --folder F         # what a driver does with it before it asks for a segment
    ... pages --folder F          # its report and MLflow's table of runs in headless chromium
    ... on_ray --trials 10000 --workers 32 [--mlflow]     # on Ray, beside an empty Tune run
    ... waits --workers 1000 --ray-ms 4 4.7     # share of worker time that waits for the driver
    ... proposals --trials 10000  # time of a proposal as the study grows, by sampler
    ... memory --trials 10000     # growth a trial, beside a plain Optuna study

Each prints a line of JSON. Cost on two cores with 10,000 trials: `record` and `on_ray` a quarter of
an hour, `proposals` and `memory` five minutes, the others two at most.

Without Ray the calls come in the order in which Tune makes them (`virtual_search.py`). Of each
figure there is the CPU time beside the clock's: the machine may have other work.
"""

import argparse
import gc
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vgg_search.engine.environment import RAY_ENVIRONMENT

os.environ.update(RAY_ENVIRONMENT)  # before Ray is imported

import optuna
from answering import AnsweringWorker
from bench_driver_pages import pages
from environment import environment
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray import tune
from ray.tune.search import Searcher
from virtual_search import NAME, VirtualSearch, experiment, opened

from vgg_search import session as sessions
from vgg_search.engine import search
from vgg_search.engine.connection import ray_cluster
from vgg_search.engine.nodes import Cluster
from vgg_search.machine import cores
from vgg_search.stop import StopSignals
from vgg_search.storage.folder import JOURNAL
from vgg_search.storage.place import Place

SAMPLERS = ("random", "tpe", "curves")
PROPOSALS = 10  # timed, of each size and sampler


def timed(call: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    seconds = time.perf_counter() - wall
    return {"seconds": round(seconds, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}


def mib(file: Path) -> float:
    return round(file.stat().st_size / 2**20, 1) if file.exists() else 0.0


def command(*argv: str) -> dict[str, Any]:
    """A command of the package, from the start of its process to its end."""
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([sys.executable, *argv], capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(ran.stderr[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = time.perf_counter() - wall
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "said": ran.stdout}


def record(options: argparse.Namespace) -> dict[str, Any]:
    whole = {"scheduler": "none", "max_epochs": options.whole} if options.whole else {}
    config = experiment(options.folder, options.trials, sampler=options.sampler, **whole)
    with opened(config, tracked=True, sending=not options.kept) as session:
        session.tracker.flush(
            0 if options.kept else 60
        )  # the connection, and a fresh database's tables
        driver = VirtualSearch(session, options.workers, 10.0)
        searched = timed(driver.run)
        put = session.tracker.unsent
        sent = timed(lambda: session.tracker.flush(0 if options.kept else 1e6))
        concluded = timed(lambda: session.conclude([], options.workers, StopSignals()))
        refused = session.tracker.refused
    wall = max(searched["seconds"], 0.01)
    return {
        "rows": driver.rows,
        "segments": driver.segments,
        "search": searched,
        "driver_thread_cpu_seconds": round(driver.busy, 2),
        "trials_per_second": round(options.trials / wall, 1),
        "rows_per_second": round(driver.rows / wall, 1),
        "unsent_at_end_of_search": put,
        "rest_sent": sent,
        "rows_per_second_all_sent": round(driver.rows / (wall + sent["seconds"]), 1),
        "refused": refused,
        "conclude": concluded,
        "journal_mib": mib(options.folder / NAME / JOURNAL),
        "mlflow_mib": mib(options.folder / "mlflow.db"),
    }


def resume(options: argparse.Namespace) -> dict[str, Any]:
    """What a driver does with the record before it asks for its first segment."""
    config = experiment(options.folder, options.trials + 1, sampler=options.sampler)
    began, cpu = time.perf_counter(), time.process_time()
    with opened(config, tracked=True, sending=False) as session:
        spent = {"seconds": round(time.perf_counter() - began, 2)}
        spent["cpu_seconds"] = round(time.process_time() - cpu, 2)
        recorded = session.study.trained
    return {"resume": spent, "recorded_trials": recorded}


def commands(options: argparse.Namespace) -> dict[str, Any]:
    where = ["--storage-path", str(options.folder)]
    told = {name: command("-m", "vgg_search", name, NAME, *where) for name in ("status", "report")}
    print(told["status"].pop("said"), told["report"].pop("said"), file=sys.stderr)
    return told | {
        "report_mib": round((options.folder / NAME / "report.html").stat().st_size / 2**20, 1)
    }


def waits(options: argparse.Namespace) -> dict[str, Any]:
    """`rows` epochs a worker."""
    result: dict[str, Any] = {}
    ray_seconds = options.ray_ms[0] / 1000, options.ray_ms[1] / 1000
    for seconds in options.epochs:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            config = experiment(Path(folder), 10**6, sampler=options.sampler)
            clock = time.perf_counter if options.wall else time.thread_time
            with opened(config, tracked=True, sending=False) as session:
                driver = VirtualSearch(session, options.workers, seconds, ray_seconds, clock)
                driver.run(lambda d=driver: d.rows >= options.rows * options.workers)
                trials = session.study.trained
        result[f"epochs of {seconds:g} s"] = {
            "waiting_share": round(driver.waited / (driver.waited + driver.trained), 4),
            "driver_busy_share": round(driver.busy / driver.now, 4),
            "virtual_seconds": round(driver.now, 1),
            "trials": trials,
            "ms_a_row_without_ray": round(1000 * driver.busy / driver.rows, 2),
            "ms_a_proposal": round(1000 * driver.proposing / driver.segments, 2),
        }
    return result


def grown(options: argparse.Namespace) -> Iterator[tuple[int, sessions.Session]]:
    """A study that random search grows, at 100, 1,000 ... trials."""
    with opened(experiment(options.folder, options.trials, sampler="random"), False) as session:
        driver = VirtualSearch(session, options.workers, 10.0)
        sizes = [10**n for n in range(2, 9) if 10**n <= options.trials]
        for size in sizes or [options.trials]:
            driver.run(lambda size=size: session.study.trained >= size)
            yield size, session


def proposals(options: argparse.Namespace) -> dict[str, Any]:
    """Median CPU time of ten proposals, with the record's part, in ms."""
    result: dict[str, Any] = {sampler: {} for sampler in SAMPLERS}
    for size, session in grown(options):
        for sampler in SAMPLERS:
            with tempfile.TemporaryDirectory() as folder:
                config = experiment(Path(folder), 10**6, sampler=sampler)
                (Path(folder) / NAME).mkdir()
                shutil.copy(session.study.folder / JOURNAL, Path(folder) / NAME)
                times = []
                with opened(config, False) as again:
                    known = len(again.study.optuna.get_trials(deepcopy=False))
                    while len(times) < PROPOSALS:
                        began = time.thread_time()
                        segment = again.study.propose()
                        if segment.number >= known:  # not one that was running or waiting
                            times.append(1000 * (time.thread_time() - began))
            result[sampler][size] = round(statistics.median(times), 1)
    return {"ms_a_proposal": result}


def resident_kib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024


def measured(grow: Callable[[], Any], count: float) -> tuple[dict[str, float], Any]:
    """KiB that `grow` has added, a `count`, by RSS and by tracemalloc, and what it returned."""
    gc.collect()
    traced, resident = tracemalloc.get_traced_memory()[0], resident_kib()
    kept = grow()
    gc.collect()
    growth = {"rss": resident_kib() - resident}
    if tracemalloc.is_tracing():
        growth["traced"] = (tracemalloc.get_traced_memory()[0] - traced) / 1024
    return {name: round(kib / count, 2) for name, kib in growth.items()}, kept


def plain(folder: Path, session: sessions.Session) -> optuna.Study:
    """Optuna's study of the same trials, by its own journal and sampler."""
    storage = JournalStorage(JournalFileBackend(str(folder / "plain.journal")))
    study = optuna.create_study(
        storage=storage, direction="maximize", sampler=optuna.samplers.RandomSampler(0)
    )
    for recorded in session.study.optuna.get_trials(deepcopy=False):
        trial = study.ask()
        session.study.space.sample(trial)
        for epoch, value in recorded.intermediate_values.items():
            trial.report(value, epoch)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return study


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Growth a trial, those among them that no worker is asked to train: of the last nine tenths of
    the search, of a plain Optuna study, and what each part of ours frees at the end."""
    config = experiment(options.folder, options.trials, sampler="random")
    if options.traced:
        tracemalloc.start()
    with opened(config, tracked=True, sending=False) as session:
        study = session.study
        driver = VirtualSearch(session, options.workers, 10.0)
        driver.run(lambda: study.trained >= options.trials // 10)
        begun = len(study.optuna.get_trials(deepcopy=False))
        ours, _ = measured(driver.run, 1)
        trials = study.optuna.get_trials(deepcopy=False)
        theirs, _ = measured(lambda: plain(options.folder, session), len(trials))
        owners = {
            "rows": study._rows,
            "candidates": study._done,
            "rungs": vars(study.scheduler),
            "ranking": vars(study.ranking),
            "retention and progress": {**vars(session.retention), **vars(session.progress)},
        }
        parts = {name: measured(own.clear, len(trials))[0] for name, own in owners.items()}
    all_of_it = {name: round(kib / (len(trials) - begun), 2) for name, kib in ours.items()}
    return {
        "kib_a_trial": {"all": all_of_it, "plain_optuna": theirs, "parts_of_ours": parts},
        "proposals": len(trials),
        "rows": driver.rows,
    }


# ---- on Ray ------------------------------------------------------------------------------------


class EmptySearcher(Searcher):
    """Proposes nothing so many times: what is left is Ray's own."""

    def __init__(self, trials: int, workers: int) -> None:
        super().__init__()
        self.left, self.workers, self.live, self.names = trials, workers, 0, set()
        self.ends: list[float] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self.left:
            return Searcher.FINISHED
        if self.live == self.workers:
            return None
        self.left, self.live = self.left - 1, self.live + 1
        return {"empty": 1}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.live -= 1
        self.ends.append(time.perf_counter())

    def save(self, checkpoint_path: str) -> None: ...
    def restore(self, checkpoint_path: str) -> None: ...


class EmptyStopper(tune.Stopper):
    """Ends a trial at its second result or later, once all workers are there."""

    def __init__(self, searcher: EmptySearcher) -> None:
        self.searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.searcher.names.add(result["worker"])
        return "actor" not in result and len(self.searcher.names) >= self.searcher.workers

    def stop_all(self) -> bool:
        return False


def pace(ends: list[float], cpu: float) -> dict[str, float]:
    """From the first trial's end on: then all workers have started."""
    return {
        "trials_per_second": round((len(ends) - 1) / (ends[-1] - ends[0]), 1),
        "of_the_last_tenth": round(len(ends) / 10 / (ends[-1] - ends[-len(ends) // 10 - 1]), 1),
        "driver_cpu_ms_a_trial": round(1000 * cpu / len(ends), 2),
    }


def empty_run(trials: int, workers: int, cpus: float) -> dict[str, float]:
    """As `run_search` asks Tune, but for what is ours."""
    searcher, cpu = EmptySearcher(trials, workers), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        worker = tune.with_resources(AnsweringWorker, tune.PlacementGroupFactory([{"CPU": cpus}]))
        search.run_tune(worker, searcher, EmptyStopper(searcher), NAME, scratch, lambda: None)
    return pace(searcher.ends, time.process_time() - cpu)


def on_ray(options: argparse.Namespace) -> dict[str, Any]:
    """Trials of one epoch: as many Ray trials as ours, on as many workers."""
    cpus = cores() / options.workers
    fields: dict[str, Any] = {"cpus_per_trial": cpus, "gpus_per_trial": 0, "scheduler": "none"}
    fields |= {"max_epochs": 1, "sampler": options.sampler}
    config, ends = experiment(options.folder, options.trials, **fields), []
    search.TrialWorker = AnsweringWorker  # type: ignore[misc,assignment]
    with ray_cluster(config):
        empty = empty_run(options.trials, options.workers, cpus)
        resident = resident_kib()
        with opened(config, tracked=options.mlflow, sending=options.mlflow) as session:
            session.study.listeners.append(
                lambda event: ends.append(time.perf_counter()) if event.kind == "ended" else None
            )
            cluster, cpu = Cluster(config, Place.of(config.storage_path, NAME)), time.process_time()
            session.search(cluster)
            cpu = time.process_time() - cpu
    growth = (resident_kib() - resident) / options.trials
    return {
        "empty_tune": empty,
        "ours": pace(ends, cpu),
        "with_mlflow": options.mlflow,
        "rss_kib_a_trial": round(growth, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--sampler", default="random", choices=SAMPLERS)
    parser.add_argument("--folder", type=Path, help="to keep what is made (a temporary one)")
    parser.add_argument("--epochs", type=float, nargs="*", default=[1.0, 10.0, 60.0], metavar="S")
    parser.add_argument("--rows", type=int, default=10, help="epochs a worker (10)")
    parser.add_argument(
        "--ray-ms",
        type=float,
        nargs=2,
        default=[0.0, 0.0],
        metavar="MS",
        help="what Ray needs for a result, and for a segment",
    )
    parser.add_argument("--traced", action="store_true", help="count Python's memory too: slow")
    parser.add_argument("--mlflow", action="store_true", help="on Ray with MLflow on")
    parser.add_argument("--kept", action="store_true", help="rows for MLflow are kept, not sent")
    parser.add_argument(
        "--whole", type=int, metavar="N", help="record: trials of N epochs, no rungs"
    )
    parser.add_argument("--wall", action="store_true", help="charge wall time: with the disk's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = (options.folder or Path(temporary)).resolve()
        told = MODES[options.mode](options)
    print(
        json.dumps(
            {
                "mode": options.mode,
                "trials": options.trials,
                "workers": options.workers,
                "sampler": options.sampler,
            }
            | told
            | environment()
            | {"load": os.getloadavg()}
        )
    )


MODES = {f.__name__: f for f in (on_ray, record, resume, commands, waits, proposals, memory, pages)}

if __name__ == "__main__":
    main()
