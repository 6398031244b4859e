"""How long a callback of the driver takes while its tracker is ill, and whether all arrives later.

    PYTHONPATH=tests:experiments python tests/faults/trackers.py      # five minutes
    ... tests/faults/trackers.py --searches 3                         # ten minutes

For each illness a real MLflow server (or database) and the puts of 200 trials of 10 epochs by two
workers (`bench_tracking.put_study`), which meet it on the way; then the tracker is well again, and
what was kept is sent, as `vgg-search sync` does. A line of JSON an illness. Exits with 1 if there
is anything at the end that lacks and was not refused. Times are printed and not judged: 10 ms at
the 99.9th percentile are promised on a quiet machine.

With `--searches` real searches of short trials instead, so many with each tracker that cannot be
told from one that is away, in turn: trials a minute, which are to fall by 5 % at most.
"""

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from bench_tracking import EPOCHS, TRIALS, Clock, arrived, put_study
from conftest import MlflowServer
from proxy import Call, error, proxied
from soak import FLAGS, NAME

from vgg_search.models.files import servable
from vgg_search.provenance import provenance
from vgg_search.tracking.choice import connect

EXPERIMENT = "ill"
SLOW_SECONDS = 5.0  # of an answer
PART_SECONDS = 2.0  # after which a server is killed, and after as many more started again
CLOSING_SECONDS = 5.0  # the driver's patience at its end
SENDING_SECONDS = 300.0  # until all has arrived once the tracker is well

Illness = Callable[[Path], AbstractContextManager[tuple[str, Callable[[], None]]]]


@contextmanager
def server(folder: Path) -> Iterator[MlflowServer]:
    """Started, and ended at the end."""
    one = MlflowServer(folder)
    one.start()
    try:
        yield one
    finally:
        one.kill()


@contextmanager
def well(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of a server, and what makes it well."""
    with server(folder) as one:
        yield one.uri, lambda: None


@contextmanager
def away(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """From the start."""
    one = MlflowServer(folder)
    try:
        yield one.uri, one.start
    finally:
        one.kill()


@contextmanager
def killed(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """And started again, while rows are put."""
    with server(folder) as one:

        def again() -> None:
            time.sleep(PART_SECONDS)
            one.kill()
            time.sleep(PART_SECONDS)
            one.start()

        thread = threading.Thread(target=again)
        thread.start()
        yield one.uri, thread.join


def answering(answer: Callable[[Call], tuple[int, str] | None]) -> Illness:
    """A server behind a proxy that answers in its place until it is well."""

    @contextmanager
    def ill(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
        with server(folder) as one, proxied(one.uri) as proxy:
            proxy.answer = answer
            yield proxy.uri, lambda: setattr(proxy, "answer", lambda _: None)

    return ill


def slow(_: Call) -> None:
    time.sleep(SLOW_SECONDS)


@contextmanager
def locked(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """A database that another process has locked: here another connection."""
    file = folder / "mlflow.db"
    make_tables(f"sqlite:///{file}")
    other = sqlite3.connect(file, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield f"sqlite:///{file}", other.rollback
    finally:
        other.close()


def make_tables(uri: str) -> None:
    """Makes the tables of a database that is not there yet."""
    from mlflow import MlflowClient

    MlflowClient(uri).search_experiments()


ILLNESSES: dict[str, Illness] = {
    "none": well,
    "away from the start": away,
    "killed and started again": killed,
    "5 s an answer": answering(slow),
    "500": answering(lambda _: error(500, "INTERNAL_ERROR")),
    "429": answering(lambda _: error(429, "REQUEST_LIMIT_EXCEEDED")),
    "403": answering(lambda _: error(403, "PERMISSION_DENIED")),
    "database locked": locked,
}
AWAY = ("none", "away from the start", "5 s an answer", "500")
SEARCHED, LOSS = 100, 0.05  # trials of a search; share of its pace


def measure(illness: Illness) -> dict[str, Any]:
    """Times of the puts, ms; rows that waited when the driver ended, and what arrived after."""
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="vgg-trackers-") as temporary:
        place, study = Path(temporary, "tracker"), Path(temporary, "study")
        place.mkdir()
        study.mkdir()
        with illness(place) as (uri, heal):
            tracker = connect(study, uri, EXPERIMENT, "bench", servable)
            tracker.start()
            put_study(tracker, clock)
            waited = tracker.close(CLOSING_SECONDS)
            heal()
            again = connect(study, uri, EXPERIMENT, "bench", servable)
            again.start()
            lacking, refused = again.close(SENDING_SECONDS), again.refused
            counts = arrived(uri, EXPERIMENT)
    ordered = sorted(clock.times)
    whole = {"runs": TRIALS + 1, "points": TRIALS * EPOCHS}
    return {
        "puts": len(ordered),
        "p99.9_ms": round(ordered[int(0.999 * len(ordered))], 2),
        "longest_ms": round(ordered[-1], 2),
        "waited": waited,
        "refused": refused,
        **counts,
        "good": not lacking and (bool(refused) or counts == whole),
    }


def search(illness: Illness) -> float:
    """Trials a minute of a real search, without what it waits for at its end."""
    with tempfile.TemporaryDirectory(prefix="vgg-trackers-") as temporary:
        place = Path(temporary, "tracker")
        place.mkdir()
        with illness(place) as (uri, heal):
            command = [sys.executable, "-m", "vgg_search.run", *FLAGS, "--tracking-uri", uri]
            command += ["--num-trials", str(SEARCHED), "--champion-epochs", "0"]
            subprocess.run(command, cwd=temporary, check=False, capture_output=True)
            heal()
        summary = json.loads(Path(temporary, "runs", NAME, "summary.json").read_text())
    return float(60 * summary["num_trials"] / summary["search_seconds"])


def compare_searches(rounds: int) -> int:
    """Prints the trials a minute with each tracker; 1 if their median falls by more than LOSS."""
    paces: dict[str, list[float]] = {name: [] for name in AWAY}
    for _ in range(rounds):
        for name, found in paces.items():
            found.append(round(search(ILLNESSES[name]), 1))
            load = round(os.getloadavg()[0], 1)
            print(json.dumps({"tracker": name, "load": load, "a_minute": found[-1]}), flush=True)
    medians = {name: statistics.median(found) for name, found in paces.items()}
    print(json.dumps(medians), flush=True)
    return int(min(medians.values()) < (1 - LOSS) * medians["none"])


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--searches", type=int, default=0, metavar="ROUNDS")
    options = parser.parse_args()
    print(json.dumps(provenance()), flush=True)
    if options.searches:
        return compare_searches(options.searches)
    good = True
    for name, illness in ILLNESSES.items():
        found = measure(illness)
        good &= found["good"]
        load = round(os.getloadavg()[0], 1)
        print(json.dumps({"tracker": name, "load": load} | found), flush=True)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
