"""A study on one screen: read from its folder alone, running or not."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from fake_workers import Fault, Workers, experiment, opened
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from vgg_search.storage.folder import FolderLock, in_use
from vgg_search.study.record import StudyError
from vgg_search.terminal.status import MOST_LIVE, show, status
from vgg_search.tracking.outbox import Outbox, sending

TRIALS = [{"arch": ((1, 8),), "lr": lr} for lr in (0.5, 0.9, 0.1, 0.7)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study whose first trial failed, whose second was completed, and whose third is live."""
    folder = tmp_path / "a study #1%20?"
    config = experiment(num_trials=4, scheduler="none", enqueue=TRIALS[1:], baseline=((1, 8),))
    with opened(folder, config) as study:
        Workers(faults={0: Fault("failed")}).run(study, turns=7)
    return folder


def test_it_tells_what_the_record_says(folder: Path) -> None:
    state = status(folder)
    assert state == {
        "study": folder.name,
        "running": False,
        "num_trials": 3,
        "trials": {"completed": 1, "failed": 1, "interrupted": 1},
        "epochs_trained": 6,
        "best_trial": 1,
        "best_val_accuracy": 0.9 * 4 / 5,
        "baseline_val_accuracy": None,
        "seconds": 0.0,
        "unsent": 0,
        "refused": 0,
        "refusals": [],
        "live": [
            {"number": 2, "state": "interrupted", "arch": "1x8", "epochs": 2}
            | {"val_accuracy": 0.1 * 2 / 3}
        ],
    }
    assert show(state).splitlines() == [
        f"study {folder.name}: not running, 3 trials, 6 epochs, 0s of search",
        "  1 completed, 1 failed, 1 interrupted",
        "  best 0.7200 (trial 1), baseline -",
        "  MLflow: 0 rows to send, 0 refused",
        "  trial 2 1x8: epoch 2 0.0667",
    ]


def test_while_a_driver_works_its_trials_run(folder: Path) -> None:
    holder = (
        "import sys; from vgg_search.storage.folder import FolderLock; from pathlib import Path\n"
    )
    holder += "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.stdout
        assert driver.stdout.readline() == "held\n"
        state = status(folder)
        driver.kill()
    assert state["running"]
    assert "running, 3 trials" in show(state)
    assert state["trials"] == {"completed": 1, "failed": 1, "running": 1}
    assert "1 completed, 1 failed, 1 running" in show(state)
    assert not status(folder)["running"]


def test_of_many_that_wait_a_screen_is_shown(tmp_path: Path) -> None:
    """Forty have reached the first rung, and the best of them goes on."""
    given = [{"arch": ((1, 8),), "lr": 0.1 + i / 100} for i in range(40)]
    config = experiment(num_trials=1000, scheduler="asha-promote", enqueue=given)
    with opened(tmp_path / "many", config) as study:
        Workers(slots=40).run(study, turns=1)
        study.propose()
        state = status(tmp_path / "many")
    assert state["trials"] == {"running": 1, "waiting": 39}
    assert [row["number"] for row in state["live"]] == [39, *range(39)]
    shown = show(state).splitlines()
    assert shown[4:6] == [
        "  trial 39 1x8: epoch 1 0.2450",
        "  trial 0 1x8: waiting at epoch 1 0.0500",
    ]
    assert shown[-1] == f"  and {40 - MOST_LIVE} more"
    assert len(shown) == 4 + MOST_LIVE + 1


def test_looking_does_not_keep_a_driver_out(folder: Path) -> None:
    assert not in_use(folder)
    lock = FolderLock(folder)
    assert in_use(folder)
    lock.release()
    assert not in_use(folder)


def test_what_waits_for_mlflow_is_counted_and_left_alone(folder: Path) -> None:
    outbox = Outbox(folder, "http://127.0.0.1:9", "vgg-search", folder.name)
    outbox.run("study", folder.name, {"kind": "study"}, {"seed": 0})
    outbox.log("study", {"best_val_accuracy": 0.5}, 1)
    outbox.refuse(outbox.rows(1)[0], "no")
    state = status(folder, sending(folder))
    assert (state["unsent"], state["refused"]) == (3, 1)
    assert f"1 refused\n    study: run {folder.name}: no" in show(state)
    assert outbox.unsent == 3
    assert sending(folder / "nowhere") == (0, 0, ())


@pytest.mark.parametrize("written", [0, 1, 2, 3, 4])
def test_a_proposal_that_is_being_written_is_not_yet_shown(folder: Path, written: int) -> None:
    before = status(folder)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    trial = optuna.load_study(study_name=folder.name, storage=storage).ask()
    attrs = {"candidate": {}, "arch": ((1, 8),), "seed": 0, "num_params": 1, "flops_per_image": 1}
    for name, value in list(attrs.items())[:written]:
        trial.set_user_attr(name, value)
    assert status(folder) == before


def test_a_study_that_has_just_begun(tmp_path: Path) -> None:
    with opened(tmp_path / "new", experiment()):
        state = status(tmp_path / "new")
    assert (state["num_trials"], state["best_trial"]) == (0, None)
    assert "  best -, baseline -" in show(state).splitlines()


@pytest.mark.parametrize("before", [lambda _: None, lambda path: path.mkdir()])
def test_no_study_is_an_error(tmp_path: Path, before: Callable[[Path], None]) -> None:
    before(tmp_path / "no")
    with pytest.raises(StudyError, match=r"^no study in .*/no: study\.journal is missing$"):
        status(tmp_path / "no")
