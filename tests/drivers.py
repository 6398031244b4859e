"""Real searches by their command, watched from outside."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from vgg_search.study.record import read_trials, rows_of

FLAGS = (
    "--name study --num-trials 4 --max-epochs 3 --train-images 2000 --val-images 500 "
    "--champion-epochs 0 --time-budget null"
).split()


@contextmanager
def search(folder: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "vgg_search.run", *flags]
    driver = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()
        for pipe in filter(None, (driver.stdout, driver.stderr)):
            pipe.close()


def wait_for(folder: Path, seen: Callable[[list[FrozenTrial]], Any]) -> Any:
    """What `seen` finds in the growing record, as soon as it finds something."""
    until = time.monotonic() + 600  # of a machine that does much else
    while time.monotonic() < until:
        try:
            if found := seen(read_trials(folder / "runs" / "study")):
                return found
        except (ValueError, KeyError):
            pass  # no record yet
        time.sleep(0.05)
    raise TimeoutError("the record does not show it")


def trial_runs(folder: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("vgg-search")
    return list(client.search_runs([experiment.experiment_id], "tags.kind = 'trial'"))


def live(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [t for t in trials if t.state is TrialState.RUNNING and rows_of(t)]
