"""Each way in which a trial can end or rest, on a real Ray: what the study and MLflow say of it."""

import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_workers import SPACE, experiment
from nodes import cluster_of
from optuna.trial import FrozenTrial

from vgg_search.config import Config
from vgg_search.data.splits import Splits
from vgg_search.models.files import servable
from vgg_search.session import Session
from vgg_search.study.record import read_trials, rows_of
from vgg_search.study.segment import Event
from vgg_search.study.study import RETRIES, Study
from vgg_search.tracking.recorder import PARENT, run_key
from vgg_search.tracking.sender import MlflowTracker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("cluster"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]
FACTS = {"versions": {"torch": "2"}, "commit": None, "host": "here"}
HUGE = 2**40  # hidden features that no machine has the memory for


class Driver:
    """A study on Ray that is recorded in MLflow, and what the two say of a trial at any time."""

    def __init__(self, folder: Path, config: Config, splits: Splits) -> None:
        self.folder, self.splits = folder, splits
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(config.dump())
        self.study = Study(folder, config)
        uri = f"sqlite:///{folder.parent / 'mlflow.db'}"
        self.tracker = MlflowTracker(folder, uri, "e", folder.name, servable)
        self.session = Session(self.study, splits, self.tracker, FACTS)

    def search(self, watch: Callable[[Event], None] | None = None) -> None:
        """As `run` does it; `watch` hears each event when MLflow has been told."""
        self.study.listeners += [watch] if watch else []
        self.session.open()
        self.session.search(cluster_of(self.study))
        self.session.recorder.interrupt()

    def trials(self) -> list[FrozenTrial]:
        """The record as it is on the disk."""
        return read_trials(self.folder)

    def run(self, key: str) -> Any:
        """MLflow's run, once all that is known is sent."""
        from mlflow import MlflowClient

        assert self.tracker.flush(60) == 0, self.tracker.error
        client = MlflowClient(self.tracker.uri)
        ids = [client.get_experiment_by_name("e").experiment_id]
        tag = f"tags.`vgg_search.key` = '{self.tracker.id}/{key}'"
        runs = client.search_runs(ids, tag)
        assert len(runs) <= 1
        return runs[0] if runs else None

    def seen(self, number: int) -> tuple[str, bool, str | None, str | None]:
        """Optuna's state, whether infeasible; MLflow's status and tag `state` (None: no run)."""
        trial, run = self.trials()[number], self.run(run_key(number))
        infeasible = any(value > 0 for value in trial.constraints.values())
        told = (run.info.status, run.data.tags["state"]) if run else (None, None)
        return (trial.state.name, infeasible, *told)


@contextmanager
def driver(folder: Path, config: Config, splits: Splits) -> Iterator[Driver]:
    made = Driver(folder, config, splits)
    try:
        yield made
    finally:
        made.tracker.close(10)
        made.study.release()


def tiny(**fields: Any) -> Config:
    given = {"batch_size": 64, "precision": "fp32", "grace_epochs": 4, "max_epochs": 6}
    given |= {"max_concurrent": 1}
    return experiment(**given | {"space": SPACE | {"lr": [1e-6, 1e30]}} | fields)


def by_hand(*lrs: float, **more: Any) -> list[dict[str, Any]]:
    return [{"arch": ((1, 8),), "lr": lr} | more for lr in lrs]


GOOD, SAME, DIVERGED, ERROR, MEMORY, DYING, DIED_ONCE, POOR = range(8)


@pytest.fixture(scope="module")
def asha(
    tmp_path_factory: pytest.TempPathFactory, splits: Splits
) -> Iterator[tuple[Driver, list[Any]]]:
    """A search in which nearly all can happen that does; what was seen of who was retried."""
    folder, retried = tmp_path_factory.mktemp("asha") / "study", []
    hidden = {"choices": [32, HUGE]}
    space = SPACE | {"lr": [1e-6, 1e30], "hidden_features": hidden, "max_params": 60_000}
    enqueue = by_hand(0.1, 0.1, 1e30, 0.1, hidden_features=32)
    enqueue[ERROR]["lr"] = 0.11
    enqueue += by_hand(0.1, hidden_features=HUGE) + by_hand(0.12, 0.13, 1e-6, hidden_features=32)
    # Seven enqueued trials count, for one is a duplicate; one more is proposed by the sampler
    config = tiny(num_trials=8, enqueue=enqueue, space=space, seed=1)
    with driver(folder, config, splits) as made:
        (folder / "trials" / str(ERROR)).mkdir(parents=True)
        # One that names code, which is not run
        torch.save({"of": os.getcwd}, folder / "trials" / str(ERROR) / "last.pt")

        def watch(event: Event) -> None:
            number, row = event.number, event.row
            # The first rung is at epoch 4: a worker that has told of an earlier epoch is busy
            if row and row["epoch"] <= {DYING: 3, DIED_ONCE: 1}.get(number, 0):
                os.kill(int(row["worker"].partition(":")[2]), signal.SIGKILL)
            if event.kind == "retried":
                retried.append((number, made.seen(number)))

        made.search(watch)
        yield made, retried


def test_completed(asha: tuple[Driver, list[Any]]) -> None:
    trial = asha[0].trials()[GOOD]
    assert asha[0].seen(GOOD) == ("COMPLETE", False, "FINISHED", "completed")
    assert trial.value == trial.intermediate_values[6]
    assert list(trial.intermediate_values) == [1, 2, 3, 4, 5, 6]


def test_stopped_at_a_rung(asha: tuple[Driver, list[Any]]) -> None:
    trial = asha[0].trials()[POOR]
    assert asha[0].seen(POOR) == ("PRUNED", False, "FINISHED", "pruned")
    assert list(trial.intermediate_values) == [1, 2, 3, 4], "the last too"


def test_not_finite(asha: tuple[Driver, list[Any]]) -> None:
    trial = asha[0].trials()[DIVERGED]
    assert asha[0].seen(DIVERGED) == ("PRUNED", True, "FINISHED", "diverged")
    assert trial.constraints == {"infeasible": 1.0}
    assert rows_of(trial)[-1]["val_loss"] is None


def test_over_a_constraint_before_any_worker_is_asked(asha: tuple[Driver, list[Any]]) -> None:
    over = [t for t in asha[0].trials() if t.user_attrs["state"] == "infeasible"]
    assert over
    for trial in over:
        assert asha[0].seen(trial.number) == ("PRUNED", True, None, None)
        assert trial.constraints["max_params"] > 0
        assert not rows_of(trial)
    tags = asha[0].run(PARENT).data.tags
    assert tags["infeasible_proposals"] == str(len(over))


def test_equal_to_a_finished_trial(asha: tuple[Driver, list[Any]]) -> None:
    twin, trial = (asha[0].trials()[number] for number in (GOOD, SAME))
    assert asha[0].seen(SAME) == ("COMPLETE", False, None, None)
    assert (trial.value, trial.intermediate_values) == (twin.value, twin.intermediate_values)
    assert trial.user_attrs["duplicate_of"] == GOOD
    assert asha[0].run(PARENT).data.tags["duplicate_proposals"] == "1"


def test_error_in_the_trial(asha: tuple[Driver, list[Any]]) -> None:
    trial, run = asha[0].trials()[ERROR], asha[0].run(run_key(ERROR))
    assert asha[0].seen(ERROR) == ("PRUNED", True, "FAILED", "failed")
    assert "weights_only" in trial.user_attrs["error"]
    assert "weights_only" in run.data.tags["error"]
    assert ERROR not in [number for number, _ in asha[1]], "it would happen again"


def test_out_of_memory(asha: tuple[Driver, list[Any]]) -> None:
    assert asha[0].seen(MEMORY) == ("PRUNED", True, "FAILED", "failed")
    assert "can't allocate memory" in asha[0].trials()[MEMORY].user_attrs["error"]
    assert [number for number, _ in asha[1]].count(MEMORY) == 1, "once more, alone"


def test_its_worker_died(asha: tuple[Driver, list[Any]]) -> None:
    made, retried = asha
    numbers = [number for number, _ in retried]
    assert (numbers.count(DIED_ONCE), numbers.count(DYING)) == (1, RETRIES)
    for number, seen in retried:
        assert seen == ("RUNNING", False, "RUNNING", "retried"), number
    # From its checkpoint, under the same number and in the same run
    again = made.trials()[DIED_ONCE]
    state = again.user_attrs["state"]
    optuna = {"completed": "COMPLETE", "pruned": "PRUNED"}[state]
    assert made.seen(DIED_ONCE) == (optuna, False, "FINISHED", state)
    assert [row["epoch"] for row in rows_of(again)] == [*range(1, len(rows_of(again)) + 1)]
    assert len({row["worker"] for row in rows_of(again)}) == 2
    # Each time it is retried
    assert made.seen(DYING) == ("PRUNED", True, "FAILED", "failed")
    assert "died" in made.trials()[DYING].user_attrs["error"]
    assert len({row["worker"] for row in rows_of(made.trials()[DYING])}) == RETRIES + 1


def test_every_epochs_value_is_in_the_study_and_in_mlflow(asha: tuple[Driver, list[Any]]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(asha[0].tracker.uri)
    trained = [trial for trial in asha[0].trials() if rows_of(trial)]
    assert len(trained) >= 5
    for trial in trained:
        run = asha[0].run(run_key(trial.number))
        points = client.get_metric_history(run.info.run_id, "val_accuracy")
        finite = {r["epoch"]: r["val_accuracy"] for r in rows_of(trial) if r["val_accuracy"]}
        assert {p.step: p.value for p in points} == pytest.approx(finite)
        assert trial.intermediate_values == finite
        assert all(map(math.isfinite, finite.values()))


def test_waiting_stopped_and_never_promoted(tmp_path: Path, splits: Splits) -> None:
    folder, seen = tmp_path / "study", {}
    lrs = by_hand(0.1, 0.05, 1e-6, 2e-6)
    config = tiny(num_trials=4, enqueue=lrs, scheduler="asha-promote", grace_epochs=2)

    with driver(folder, config, splits) as made:

        def watch(event: Event) -> None:
            if event.kind == "waiting" and event.number == 0:
                seen["waiting"] = made.seen(0)
            made.study.stopping = made.study.stopping or (event.number == 1 and bool(event.row))

        made.search(watch)
        assert seen.pop("waiting") == ("RUNNING", False, "RUNNING", "waiting")
        # The driver is stopped: one waits, the other was trained
        assert made.study.unfinished == [0, 1]
        for number in (0, 1):
            assert made.seen(number) == ("RUNNING", False, "KILLED", "interrupted")
    with driver(folder, config, splits) as made:

        def watch_again(event: Event) -> None:
            seen[event.kind, event.number] = made.seen(event.number)

        made.search(watch_again)
        assert made.study.finished
        # A resume opens the runs again, one that waits too
        assert seen["started", 0][0::2] == ("RUNNING", "RUNNING")
        assert seen["waiting", 1] == ("RUNNING", False, "RUNNING", "waiting")
        promoted = [told for (kind, _), told in seen.items() if kind == "promoted"]
        assert set(promoted) == {("RUNNING", False, "RUNNING", "running")}
        states = [trial.user_attrs["state"] for trial in made.trials()]
        assert sorted(states) == ["completed", "pruned", "pruned", "pruned"]
        for trial in made.trials():
            never = trial.user_attrs["state"] == "pruned"
            optuna = "PRUNED" if never else "COMPLETE"
            state = trial.user_attrs["state"]
            assert made.seen(trial.number) == (optuna, False, "FINISHED", state)
            epochs = [row["epoch"] for row in rows_of(trial)]
            assert list(trial.intermediate_values) == epochs
            assert epochs == [1, 2] if never and trial.number > 1 else epochs[-1] in (2, 4, 6)
