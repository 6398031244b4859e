"""Kill a search's driver with -9 at random moments, resume it each time, and count what was lost.

    python tests/faults/random_kills.py --kills 100 --seed 0      # half an hour of two cores
    python tests/faults/random_kills.py --kills 3                 # a try

A real search (sample, real Ray, MLflow on SQLite) in a temporary folder. Each session gets a random
time to live, from within the start of Ray to several trials. The last one may end. Then:

lost        an epoch, or a trial's end, that was in the record before a kill and is not after it
repeated    an epoch that the record or MLflow was told twice, or an MLflow run too many for a trial
left        what is RUNNING at the end, in the study or in MLflow

Exits with 1 if there is any, if the last session fails (also for rows left in the outbox), or if
no epoch was in the record at the last kill: then nothing could be lost, and nothing is shown.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from vgg_search.provenance import provenance
from vgg_search.records import METRIC
from vgg_search.study.record import EPOCH_KEY, StudyError, read_trials, rows_of

SPACE = {"num_blocks": [1, 2], "num_convs": [1, 2], "out_channels": [8, 16], "lr": [0.02, 0.4]}
SPACE |= {"hidden_features": 64, "num_hidden": 1, "dropout": 0.0}
FLAGS = ["--dataset", "sample", "--val-images", "500", "--train-images", "1500", "--quiet"]
FLAGS += ["--max-epochs", "9", "--time-budget", "null", "--baseline", "null", "--name", "kills"]
FLAGS += ["--champion-epochs", "2", "--space", json.dumps(SPACE)]
STUDY = Path("runs", "kills")
LONGEST = 20.0  # seconds; the first trial starts after about five


@dataclass(frozen=True)
class Campaign:
    """What a campaign came to. `epochs`: in the record at the last kill."""

    kills: int
    epochs: int
    lost: int
    repeated: int
    left: int
    exit_code: int  # of the last session

    def problems(self) -> list[str]:
        """A line for each reason why the campaign failed."""
        reasons = {
            "no epoch was in the record at the last kill: nothing is shown": not self.epochs,
            f"{self.lost} lost": self.lost,
            f"{self.repeated} repeated": self.repeated,
            f"{self.left} left running": self.left,
            f"the last session ended with exit code {self.exit_code}": self.exit_code,
        }
        return [reason for reason, holds in reasons.items() if holds]


def session(folder: Path, num_trials: int, seconds: float | None) -> int:
    """Start or resume the search; -9 after that long. Returns the driver's exit code."""
    command = [sys.executable, "-m", "vgg_search.run", *FLAGS, "--num-trials", str(num_trials)]
    command += ["--resume", "kills"] if (folder / STUDY).exists() else []
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
        trials = read_trials(folder / STUDY)
    except (StudyError, ValueError):  # killed before there was one
        return facts
    for trial in trials:
        facts |= {(trial.number, row["epoch"]): row for row in rows_of(trial)}
        if trial.state.is_finished():
            facts[trial.number] = (trial.state, trial.values, trial.user_attrs["state"])
    return facts


def ended_trials(facts: dict[Any, Any]) -> int:
    return sum(isinstance(key, int) for key in facts)


def changed(before: dict[Any, Any], after: dict[Any, Any]) -> int:
    """How much of a record is not in a later one as it was."""
    return sum(after.get(key) != value for key, value in before.items())


def repeated_in_journal(folder: Path) -> int:
    """Epochs that the journal was told more than once."""
    lines: Counter[tuple[int, str]] = Counter()
    for line in (folder / STUDY / "study.journal").read_text().splitlines():
        entry = json.loads(line)
        for key in entry.get("user_attr", {}):
            if key.startswith(EPOCH_KEY):
                lines[entry["trial_id"], key] += 1
    return sum(count - 1 for count in lines.values())


def in_mlflow(folder: Path) -> tuple[int, int]:
    """(runs and points too many, runs left RUNNING)."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'vgg-search'")
    runs = list(client.search_runs([experiment.experiment_id], max_results=10_000))
    trials = [run for run in runs if run.data.tags["kind"] == "trial"]
    numbers = Counter(run.data.tags["trial_number"] for run in trials)
    repeated = sum(count - 1 for count in numbers.values())
    for run in trials:
        if METRIC in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, METRIC)]
            repeated += len(steps) - len(set(steps))
    return repeated, sum(run.info.status == "RUNNING" for run in runs)


def campaign(folder: Path, kills: int, seed: int, longest: float = LONGEST) -> Campaign:
    """Kill and resume a search in `folder`, let the last session end, and count."""
    rng, lost = random.Random(seed), 0
    before: dict[Any, Any] = {}
    for kill in range(1, kills + 1):
        seconds = rng.uniform(0.5, longest)
        code = session(folder, 100_000, seconds)
        if code != -signal.SIGKILL:
            log = (folder / "log").read_text()
            raise RuntimeError(f"a session ended by itself, exit code {code}:\n{log}")
        after = record(folder)
        gone, ended = changed(before, after), ended_trials(after)
        lost, before = lost + gone, after
        line = f"kill {kill} after {seconds:.1f} s: {ended} trials ended, "
        print(line + f"{len(after) - ended} epochs, {gone} lost", flush=True)
        time.sleep(rng.uniform(0, 1))
    code = session(folder, ended_trials(before) + 4, None)
    running = sum(not trial.state.is_finished() for trial in read_trials(folder / STUDY))
    repeated, left = in_mlflow(folder)
    return Campaign(
        kills=kills,
        epochs=len(before) - ended_trials(before),
        lost=lost + changed(before, record(folder)),
        repeated=repeated + repeated_in_journal(folder),
        left=left + running,
        exit_code=code,
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=LONGEST, help=f"seconds ({LONGEST:.0f})")
    options = parser.parse_args(argv)
    print(json.dumps(provenance()), flush=True)
    with tempfile.TemporaryDirectory(prefix="vgg-kills-") as folder:
        result = campaign(Path(folder), options.kills, options.seed, options.longest)
    print(f"{result.kills} kills: {result.lost} lost, {result.repeated} repeated, ", end="")
    print(f"{result.left} left; {result.epochs} epochs at the last kill")
    for problem in result.problems():
        print(f"failed: {problem}", file=sys.stderr)
    return int(bool(result.problems()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
