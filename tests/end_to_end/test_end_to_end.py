"""One real search: real Ray, real MLflow on SQLite, real data; killed half-way and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from optuna.trial import FrozenTrial, TrialState
from PIL import Image

import vgg_search
from vgg_search.data.fashion_mnist import SOURCE
from vgg_search.data.splits import load_test
from vgg_search.records import EPOCH_METRICS
from vgg_search.study.record import read_trials, rows_of

NAME = "study"
SMALL = {
    "num_trials": 6,
    "max_epochs": 3,
    "train_images": 2000,
    "val_images": 500,
    "champion_epochs": 2,
    "champion_seeds": 2,
    "top_k": 2,
    "time_budget": "null",
}
FLAGS = [
    text for key, value in SMALL.items() for text in (f"--{key.replace('_', '-')}", str(value))
]


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "vgg_search", *argv]


def run_again(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*argv), cwd=folder, capture_output=True, text=True, timeout=400)


class Killed(NamedTuple):
    folder: Path  # where the commands ran
    before: list[FrozenTrial]  # the record when the driver had been killed
    again: subprocess.CompletedProcess[str]  # the resuming driver
    refused: subprocess.CompletedProcess[str]  # a second driver beside the first

    @property
    def run(self) -> Path:
        return self.folder / "runs" / NAME

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.run / "summary.json").read_text()))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """A search killed with -9 once two trials have ended and one has got past its first epoch."""
    folder = tmp_path_factory.mktemp("end_to_end")
    with (folder / "log").open("w") as log:
        driver = subprocess.Popen(
            command("run", "--name", NAME, *FLAGS), cwd=folder, stdout=log, stderr=log
        )
        try:
            until = time.monotonic() + 300
            while time.monotonic() < until and driver.poll() is None:
                time.sleep(0.05)
                try:
                    trials = read_trials(folder / "runs" / NAME)
                except (ValueError, KeyError):
                    continue
                live = [t for t in trials if t.state is TrialState.RUNNING and rows_of(t)]
                if sum("state" in t.user_attrs for t in trials) >= 2 and live:
                    break
            assert driver.poll() is None, (folder / "log").read_text()
            refused = run_again(folder, "run", "--resume", NAME)
        finally:
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
    before = read_trials(folder / "runs" / NAME)
    again = run_again(folder, "run", "--resume", NAME, "--json")
    return Killed(folder, before, again, refused)


@pytest.fixture(scope="module")
def runs(killed: Killed) -> dict[str, list[Any]]:
    """MLflow's runs by their tag `kind`."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{killed.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("vgg-search")
    found: dict[str, list[Any]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        found.setdefault(run.data.tags["kind"], []).append(run)
    return found


def test_what_was_killed_says_how_to_go_on(killed: Killed) -> None:
    text = (killed.folder / "log").read_text()
    assert text.count("the search was ended from outside") == 1
    assert text.endswith(f"go on with python -m vgg_search.run --resume {NAME}\n")


def test_resume_ends_well_and_says_so(killed: Killed) -> None:
    assert killed.again.returncode == 0, killed.again.stderr
    summary = json.loads(killed.again.stdout.splitlines()[-1])
    warnings = summary["warnings"]
    assert summary == killed.summary | {"unsent": 0, "warnings": warnings}
    assert summary["refused"] == 0
    assert any(text.startswith("The budget is small for the space") for text in warnings)
    assert all(f"warning   {text}" in killed.again.stdout for text in warnings)
    assert summary["state"] == "completed"
    assert summary["num_trials"] == SMALL["num_trials"]
    assert "mlflow ui" in killed.again.stdout


def test_second_driver_was_refused(killed: Killed) -> None:
    assert killed.refused.returncode == 2
    assert f"study {NAME} is in use by a running search" in killed.refused.stderr
    assert len(killed.refused.stderr.strip().splitlines()) == 1


def test_nothing_was_lost_or_trained_twice(killed: Killed) -> None:
    after = {trial.number: trial for trial in read_trials(killed.run)}
    for old in killed.before:
        new = after[old.number]
        assert new.params.items() >= old.params.items()
        assert new.intermediate_values.items() >= old.intermediate_values.items()
        if old.state.is_finished():
            assert (new.state, new.values) == (old.state, old.values)
            # An epoch trained again would have another time.
            assert rows_of(new) == rows_of(old)
    assert all(trial.state.is_finished() for trial in after.values())


def test_states_are_those_of_the_design(killed: Killed) -> None:
    trials, states = read_trials(killed.run), Counter()
    for trial in trials:
        state = trial.user_attrs["state"]
        states[state] += 1
        epochs = [row["epoch"] for row in rows_of(trial)]
        assert list(trial.intermediate_values) == epochs == list(range(1, len(epochs) + 1))
        if state == "completed":
            assert trial.state is TrialState.COMPLETE
            assert len(epochs) == SMALL["max_epochs"]
            assert trial.value == trial.intermediate_values[SMALL["max_epochs"]]
        else:
            assert trial.state is TrialState.PRUNED
    assert trials[0].user_attrs["baseline"]
    assert states["completed"] >= 1
    assert states["completed"] + states["pruned"] == SMALL["num_trials"]
    counted = {state: n for state, n in killed.summary["trials"].items() if n}
    assert counted == states


def test_mlflow_has_one_run_a_trial_and_no_junk(killed: Killed, runs: dict[str, list[Any]]) -> None:
    (parent,) = runs["study"]
    assert parent.info.run_name == NAME
    trained = [t for t in read_trials(killed.run) if rows_of(t)]
    by_number = {int(run.data.tags["trial_number"]): run for run in runs["trial"]}
    assert len(runs["trial"]) == len(trained) == len(by_number)
    for trial in trained:
        run = by_number[trial.number]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["state"] == trial.user_attrs["state"]
        extra = {"peak_memory_mib", "best_val_accuracy", "best_epoch"}
        assert run.data.metrics.keys() == set(EPOCH_METRICS) | extra
        best = max(trial.intermediate_values.values())
        assert run.data.metrics["best_val_accuracy"] == pytest.approx(best)
        assert float(run.data.params["lr"]) == trial.params["lr"]
    everything = [run for kind in runs.values() for run in kind]
    assert {run.info.status for run in everything} == {"FINISHED"}


def test_metrics_are_rows_by_epoch(killed: Killed, runs: dict[str, list[Any]]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{killed.folder / 'mlflow.db'}")
    trials = {trial.number: trial for trial in read_trials(killed.run)}
    for run in runs["trial"]:
        trial = trials[int(run.data.tags["trial_number"])]
        points = client.get_metric_history(run.info.run_id, "val_accuracy")
        found = {point.step: point.value for point in points}
        assert len(points) == len(found)
        assert found == pytest.approx(trial.intermediate_values)


def test_only_the_top_k_keep_checkpoints(killed: Killed, runs: dict[str, list[Any]]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{killed.folder / 'mlflow.db'}")
    ranked = sorted(runs["trial"], key=lambda run: -run.data.metrics["best_val_accuracy"])
    for place, run in enumerate(ranked):
        number = run.data.tags["trial_number"]
        files = [file.path for file in client.list_artifacts(run.info.run_id, "best")]
        local = killed.run / "trials" / number
        if place < SMALL["top_k"]:
            assert set(files) == {"best/model.json", "best/model.safetensors"}
            assert [path.name for path in local.iterdir()] == ["best"]
        else:
            assert not files
            assert not local.exists()


def test_champion_is_registered_and_usable(killed: Killed, runs: dict[str, list[Any]]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{killed.folder / 'mlflow.db'}")
    version = client.get_model_version_by_alias("vgg-search", "champion")
    (run,) = runs["champion"]
    assert version.run_id == run.info.run_id == killed.summary["champion"]["run_id"]
    card = json.loads((killed.run / "champion" / "model.json").read_text())
    assert len(card["metrics"]["test_accuracies"]) == SMALL["champion_seeds"]
    assert run.data.metrics["test_accuracy"] == card["metrics"]["test_accuracy"]
    uri = f"sqlite:///{killed.folder / 'mlflow.db'}"
    stored = vgg_search.load(killed.run / "champion")
    tracked = vgg_search.load("models:/vgg-search@champion", tracking_uri=uri)
    for ours, theirs in zip(
        stored.state_dict().values(), tracked.state_dict().values(), strict=True
    ):
        assert ours.equal(theirs)


def test_evaluate_and_predict(killed: Killed) -> None:
    scores = run_again(killed.folder, "evaluate", "--json")
    assert scores.returncode == 0, scores.stderr
    result = json.loads(scores.stdout.splitlines()[-1])
    assert result["test_accuracy"] == killed.summary["champion"]["test_accuracy"]
    images, _ = load_test(killed.summary["dataset"], os.environ.get("VGG_SEARCH_DATA_DIR"))
    files = [f"{i}.png" for i in range(3)]
    for file, image in zip(files, images, strict=False):
        Image.fromarray(image[0]).save(killed.folder / file)
    answers = run_again(killed.folder, "predict", *files, "--json")
    assert answers.returncode == 0, answers.stderr
    predictions = json.loads(answers.stdout.splitlines()[-1])["predictions"]
    assert [row["file"] for row in predictions] == files
    assert all(
        row["class"] in SOURCE.info.classes and 0.1 <= row["probability"] <= 1
        for row in predictions
    )


def test_a_second_resume_trains_nothing(killed: Killed) -> None:
    rows = [rows_of(trial) for trial in read_trials(killed.run)]
    again = run_again(killed.folder, "run", "--resume", NAME, "--quiet", "--json")
    assert again.returncode == 0, again.stderr
    assert [rows_of(trial) for trial in read_trials(killed.run)] == rows
    assert json.loads(again.stdout.splitlines()[-1])["champion"] == killed.summary["champion"]


def test_status_report_and_files(killed: Killed) -> None:
    state = run_again(killed.folder, "status", NAME)
    assert state.returncode == 0, state.stderr
    assert f"study {NAME}: not running, {SMALL['num_trials']} trials" in state.stdout
    for file in ("config.yaml", "report.html", "trials.csv", "epochs.csv", "log.txt"):
        assert (killed.run / file).stat().st_size > 0, file
