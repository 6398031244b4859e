"""What must hold of a search that was killed, looked at from outside: its record, its tables,
MLflow, its processes and what they share in memory; never the program's own word."""

import csv
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow import MlflowClient
from optuna.trial import FrozenTrial

import vgg_search
from vgg_search.records import METRIC, UNTRAINED
from vgg_search.study.record import EPOCH_KEY, StudyError, read_trials, rows_of

Facts = dict[Any, Any]


def record(study: Path) -> Facts:
    """What must never change again: each epoch's row, and how each trial ended."""
    facts: Facts = {}
    try:
        trials = read_trials(study)
    except (StudyError, ValueError):  # killed before there was one
        return facts
    for trial in trials:
        facts |= {(trial.number, row["epoch"]): row for row in rows_of(trial)}
        if trial.state.is_finished():
            facts[trial.number] = (trial.state, trial.values, trial.user_attrs["state"])
    return facts


def ended_trials(facts: Facts) -> int:
    return sum(isinstance(key, int) for key in facts)


def epochs(facts: Facts) -> int:
    return len(facts) - ended_trials(facts)


def changed(before: Facts, after: Facts) -> int:
    """How much of a record is not in a later one as it was."""
    return sum(after.get(key) != value for key, value in before.items())


def processes(mark: str) -> dict[int, str]:
    """Processes that have `mark` in their environment, and what each is."""
    alive = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if state != "Z":  # its parent's, who has not asked for it yet
                    alive[int(entry.name)] = command[:100]
        except OSError:
            continue
    return alive


def left(mark: str, seconds: float) -> dict[int, str]:
    """The `processes` that have not ended by themselves within so many seconds."""
    end = time.monotonic() + seconds
    while (alive := processes(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    return alive


def orphaned_segments() -> set[str]:
    """Names in /dev/shm of what no process has mapped."""
    mapped = ""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            mapped += maps.read_text()
        except OSError:
            continue
    return {path.name for path in Path("/dev/shm").iterdir() if str(path) not in mapped}


def trained(study: Path) -> list[FrozenTrial]:
    return [t for t in read_trials(study) if t.user_attrs.get("state") not in UNTRAINED]


def violations(folder: Path, study: Path, num_trials: int) -> list[str]:
    """A line for each thing that is not as it must be of a study that has ended."""
    trials = trained(study)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    checks: list[Callable[[], Iterator[str]]] = [
        lambda: of_the_record(study, trials, num_trials),
        lambda: of_the_tables(study, trials),
        lambda: _of_mlflow(client, trials),
        lambda: _of_the_champion(study),
    ]
    return [line for check in checks for line in check()]


def of_the_record(study: Path, trials: list[FrozenTrial], num_trials: int) -> Iterator[str]:
    """Each trial's epochs are there once and in order, and as many trials as were asked for."""
    if len(trials) != num_trials:
        yield f"{len(trials)} trials were trained, {num_trials} asked for"
    for trial in trials:
        numbers = [row["epoch"] for row in rows_of(trial)]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"trial {trial.number} has the epochs {numbers}"
        if not trial.state.is_finished():
            yield f"trial {trial.number} is {trial.state.name}"
    lines: Counter[tuple[Any, ...]] = Counter()
    for line in (study / "study.journal").read_text().splitlines():
        entry = json.loads(line)
        names = [key for key in entry.get("user_attr", {}) if key.startswith(EPOCH_KEY)]
        lines.update((entry["trial_id"], name) for name in names)
        if entry.get("values") is not None:  # its end
            lines[entry["trial_id"], "end"] += 1
    for (trial_id, name), count in lines.items():
        if count > 1:
            yield f"the journal has {name} of trial id {trial_id} {count} times"


def of_the_tables(study: Path, trials: list[FrozenTrial]) -> Iterator[str]:
    """trials.csv, epochs.csv and summary.json say what the record says."""
    with (study / "trials.csv").open() as file:
        table = {int(row["number"]): row for row in csv.DictReader(file)}
    with (study / "epochs.csv").open() as file:
        values = {
            (int(row["number"]), int(row["epoch"])): row[METRIC] for row in csv.DictReader(file)
        }
    for trial in trials:
        rows = rows_of(trial)
        recorded = {(trial.number, row["epoch"]): str(row[METRIC]) for row in rows}
        told = {key: value for key, value in values.items() if key[0] == trial.number}
        if told != recorded:
            yield f"epochs.csv differs from the record in trial {trial.number}"
        row = table[trial.number]
        state = trial.user_attrs["state"]
        if (row["state"], row[METRIC]) != (state, str(rows[-1][METRIC])):
            yield f"trials.csv differs from the record in trial {trial.number}"
    summary = json.loads((study / "summary.json").read_text())
    if summary["epochs_trained"] != len(values):
        yield f"summary.json has {summary['epochs_trained']} epochs, the record {len(values)}"


def _of_mlflow(client: MlflowClient, trials: list[FrozenTrial]) -> Iterator[str]:
    (experiment,) = client.search_experiments(filter_string="name = 'vgg-search'")
    runs = list(client.search_runs([experiment.experiment_id], max_results=10_000))
    kinds = Counter(run.data.tags.get("kind") for run in runs)
    if kinds[None]:
        yield f"MLflow has {kinds[None]} runs without a kind"
    if (kinds["study"], kinds["champion"]) != (1, 1):
        yield f"MLflow has {kinds['study']} studies and {kinds['champion']} champions"
    for run in runs:
        if run.info.status != "FINISHED":
            yield f"run {run.info.run_name} is {run.info.status}"
    of_trials = [run for run in runs if run.data.tags.get("kind") == "trial"]
    numbers = Counter(int(run.data.tags["trial_number"]) for run in of_trials)
    if numbers != Counter(trial.number for trial in trials):
        yield f"runs by trial: {dict(numbers)}"
        return
    by_number = {int(run.data.tags["trial_number"]): run for run in of_trials}
    for trial in trials:
        run = by_number[trial.number]
        points = client.get_metric_history(run.info.run_id, METRIC)
        recorded = [(row["epoch"], row[METRIC]) for row in rows_of(trial)]
        if sorted((point.step, point.value) for point in points) != recorded:
            yield f"MLflow's {METRIC} differs from the record in trial {trial.number}"
        if run.data.tags["state"] != trial.user_attrs["state"]:
            yield f"MLflow says {run.data.tags['state']} of trial {trial.number}"


def _of_the_champion(study: Path) -> Iterator[str]:
    summary = json.loads((study / "summary.json").read_text())
    if summary["state"] != "completed" or not summary["champion"]:
        yield f"the study is {summary['state']}, its champion {summary['champion']}"
        return
    network = vgg_search.load(str(study / "champion"))
    scores = network(torch.from_numpy(np.zeros((2, 1, 28, 28), np.uint8)))
    if scores.shape != (2, 10) or not scores.isfinite().all():
        yield f"the champion answers {scores}"
