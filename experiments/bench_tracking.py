"""What MLflow costs the search: the time of each put, and of sending it all, by tracker.

    python experiments/bench_tracking.py sqlite:///bench.db http://127.0.0.1:5000 ...

Cost: some ten seconds an address; the machine should do nothing else.

Puts what 200 trials of 10 epochs put (as `recorder.py` does, two trials side by side) within some
seconds, so that the sender works at the same time and is in the way, and then counts at the tracker
what has arrived. Prints a line of JSON an address. Each address should be a fresh one.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch  # noqa: F401  (before the sender's thread imports it)
from environment import environment
from mlflow import MlflowClient

from vgg_search.models.files import servable
from vgg_search.records import EPOCH_METRICS
from vgg_search.tracking.choice import connect
from vgg_search.tracking.tracker import Tracker

TRIALS, EPOCHS = 200, 10
PAUSE = 0.004  # s before two rows, which is 500 rows a second
PARAMS = {f"param_{i}": i for i in range(20)}  # as many as a trial of three blocks has
TAGS = {"kind": "trial", "state": "running", "dataset": "fashion-mnist", "seed": 1}


class Clock:
    """Times calls, in ms."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, put: Callable, *args: object, **kwargs: object) -> None:
        began = time.perf_counter()
        put(*args, **kwargs)
        self.times.append(1000 * (time.perf_counter() - began))


def put_study(tracker: Tracker, clock: Clock) -> None:
    """What the recorder puts of a study whose two workers are always busy."""
    tracker.run("study", "bench", {"kind": "study"}, PARAMS)
    for number in range(0, TRIALS, 2):
        pair = [f"trial/{number}", f"trial/{number + 1}"]
        for key in pair:
            clock(tracker.run, key, f"{key} 1x16-2x32", TAGS, PARAMS, parent="study")
        for epoch in range(1, EPOCHS + 1):
            time.sleep(PAUSE)
            for key in pair:
                clock(tracker.log, key, dict.fromkeys(EPOCH_METRICS, 1 / epoch), epoch)
        for key in pair:
            last = {"best_val_accuracy": 0.9, "best_epoch": 3, "peak_memory_mib": 512}
            clock(tracker.log, key, last, EPOCHS)
            clock(tracker.tag, key, state="completed")
            clock(tracker.end, key, "FINISHED")
        clock(tracker.log, "study", {"best_val_accuracy": 0.9}, number + 1)
    tracker.end("study", "FINISHED")


def arrived(uri: str, experiment: str) -> dict[str, int]:
    """What the tracker has: runs, and points of one metric in all."""
    client = MlflowClient(uri)
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    runs = client.search_runs([experiment_id], max_results=1000)
    histories = (client.get_metric_history(run.info.run_id, "val_accuracy") for run in runs)
    return {"runs": len(runs), "points": sum(map(len, histories))}


def measure(uri: str) -> dict[str, object]:
    clock, experiment = Clock(), f"bench-{time.time_ns()}"
    with tempfile.TemporaryDirectory() as folder:
        tracker = connect(Path(folder), uri, experiment, "bench", servable)
        tracker.start()
        tracker.run("first", "first", {}, {})  # the connection, and a fresh database's tables
        assert tracker.flush(300) == 0, tracker.error
        began = time.perf_counter()
        put_study(tracker, clock)
        all_put = time.perf_counter()
        assert tracker.close(600) == 0, tracker.error
        sent = time.perf_counter()
        assert tracker.refused == 0
    counts = arrived(uri, experiment)
    assert counts == {"runs": TRIALS + 2, "points": TRIALS * EPOCHS}, counts
    ordered = sorted(clock.times)
    return {
        "tracker": uri.partition(":")[0],
        "puts": len(ordered),
        "put_seconds": round(all_put - began, 2),
        "all_sent_seconds": round(sent - began, 2),
        "median_ms": round(statistics.median(ordered), 3),
        "p99_ms": round(ordered[int(0.99 * len(ordered))], 3),
        "longest_ms": round(ordered[-1], 2),
        **counts,
    }


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(json.dumps(environment() | {"load": os.getloadavg()}), flush=True)
    for address in sys.argv[1:]:
        print(json.dumps(measure(address)), flush=True)
