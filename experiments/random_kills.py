"""Kill a search's driver with -9 at random moments, resume it each time, and count what was lost.

    python experiments/random_kills.py --kills 100 --seed 0      # half an hour of two cores
    python experiments/random_kills.py --kills 3                 # a try

A real search (sample, real Ray, MLflow on SQLite) in a temporary folder. Each session gets a random
time to live, from within the start of Ray to several trials. The last one may end. Then:

lost        an epoch, or a trial's end, that was in the record before a kill and is not after it
repeated    an epoch that the record or MLflow was told twice, or an MLflow run too many for a trial
left        what is RUNNING at the end, in the study or in MLflow

Exits with 1 if there is any, or if the last session fails (also for rows left in the outbox).
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from vgg_search.provenance import provenance
from vgg_search.study.record import StudyError, read_trials, rows_of

SPACE = {"num_blocks": [1, 2], "num_convs": [1, 2], "out_channels": [8, 16], "lr": [0.02, 0.4]}
SPACE |= {"hidden_features": 64, "num_hidden": 1, "dropout": 0.0}
FLAGS = ["--dataset", "sample", "--val-images", "500", "--train-images", "1500", "--quiet"]
FLAGS += ["--max-epochs", "9", "--time-budget", "null", "--baseline", "null", "--name", "kills"]
FLAGS += ["--champion-epochs", "2", "--space", json.dumps(SPACE)]
LONGEST = 20.0  # seconds; the first trial starts after about five


def session(folder: Path, num_trials: int, seconds: float | None) -> int:
    """Start or resume the search; -9 after that long. Returns the driver's exit code."""
    command = [sys.executable, "-m", "vgg_search.run", *FLAGS, "--num-trials", str(num_trials)]
    command += ["--resume", "kills"] if (folder / "runs/kills").exists() else []
    with (folder / "log").open("a") as log:
        driver = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            return driver.wait(seconds)
        except subprocess.TimeoutExpired:
            driver.send_signal(signal.SIGKILL)
            return driver.wait()


def record(folder: Path) -> dict[Any, Any]:
    """What must never change again: each epoch's row, and how each trial ended."""
    facts: dict[Any, Any] = {}
    try:
        trials = read_trials(folder / "runs/kills")
    except (StudyError, ValueError):  # killed before there was one
        return facts
    for trial in trials:
        facts |= {(trial.number, row["epoch"]): row for row in rows_of(trial)}
        if trial.state.is_finished():
            facts[trial.number] = (trial.state, trial.values, trial.user_attrs["state"])
    return facts


def told_twice(folder: Path) -> int:
    """Epochs that the journal was told more than once."""
    told: Counter[tuple[int, str]] = Counter()
    for line in (folder / "runs/kills/study.journal").read_text().splitlines():
        entry = json.loads(line)
        for key in entry.get("user_attr", {}):
            if key.startswith("epoch_"):
                told[entry["trial_id"], key] += 1
    return sum(count - 1 for count in told.values())


def tracked(folder: Path) -> tuple[int, int]:
    """(runs and points too many, runs left RUNNING)."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'vgg-search'")
    runs = list(client.search_runs([experiment.experiment_id], max_results=10_000))
    trials = [run for run in runs if run.data.tags["kind"] == "trial"]
    numbers = Counter(run.data.tags["trial_number"] for run in trials)
    twice = sum(count - 1 for count in numbers.values())
    for run in trials:
        if "val_accuracy" in run.data.metrics:
            steps = [p.step for p in client.get_metric_history(run.info.run_id, "val_accuracy")]
            twice += len(steps) - len(set(steps))
    return twice, sum(run.info.status == "RUNNING" for run in runs)


def main() -> int:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--kills", type=int, default=100)
    made.add_argument("--seed", type=int, default=0)
    options = made.parse_args()
    dice, lost = random.Random(options.seed), 0
    print(json.dumps(provenance()))
    with tempfile.TemporaryDirectory(prefix="vgg-kills-") as place:
        folder, before, kills = Path(place), {}, 0
        while kills < options.kills:
            seconds = dice.uniform(0.5, LONGEST)
            code = session(folder, 100_000, seconds)
            if code != -signal.SIGKILL:
                print(f"a session ended by itself, exit code {code}:")
                print((folder / "log").read_text())
                return 1
            kills += 1
            after = record(folder)
            gone = [key for key, value in before.items() if after.get(key) != value]
            lost, before = lost + len(gone), after
            ended = sum(isinstance(key, int) for key in after)
            line = f"kill {kills} after {seconds:.1f} s: {ended} trials ended, "
            print(line + f"{len(after) - ended} epochs, {len(gone)} lost", flush=True)
            time.sleep(dice.uniform(0, 1))
        numbers = [key for key in before if isinstance(key, int)]
        code = session(folder, len(numbers) + 4, None)
        after = record(folder)
        lost += sum(after.get(key) != value for key, value in before.items())
        running = sum(not trial.state.is_finished() for trial in read_trials(folder / "runs/kills"))
        twice, left = tracked(folder)
        twice += told_twice(folder)
        summary = json.loads((folder / "runs/kills/summary.json").read_text())
        print(f"the last session: exit code {code}, {json.dumps(summary['champion'])}")
        print(f"{kills} kills: {lost} lost, {twice} repeated, {left + running} left")
        return int(bool(lost or twice or left or running or code))


if __name__ == "__main__":
    sys.exit(main())
