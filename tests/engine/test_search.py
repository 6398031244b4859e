"""The search on a real Ray: what a trial may ask for, segments on reused workers, and signals."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from fake_workers import SPACE, Workers, experiment, opened, row_at
from nodes import cluster_of
from ray import tune

from vgg_search.config import Config
from vgg_search.data.splits import Splits
from vgg_search.engine.search import (
    StudySearcher,
    StudyStopper,
    _Places,
    run_search,
)
from vgg_search.study.record import read_trials, rows_of
from vgg_search.study.segment import Event
from vgg_search.study.study import FINISHED, Study

CORES = os.cpu_count() or 1


def tiny(**fields: Any) -> Config:
    given = {"num_trials": 5, "max_epochs": 2, "batch_size": 64, "precision": "fp32"}
    return experiment(**given | {"space": SPACE | {"lr": [0.01, 0.2]}} | fields)


# ---- the search -------------------------------------------------------------------------------


@pytest.mark.usefixtures("cluster")
def test_segments_are_trained_on_workers_that_stay(tmp_path: Path, splits: Splits) -> None:
    folder, drawn, config = tmp_path / "s", [], tiny(scheduler="asha-promote")
    with opened(folder, config) as study:
        run_search(study, splits, cluster_of(study), lambda: drawn.append(1))
        assert study.finished
        assert not study.running
    assert drawn
    trials = read_trials(folder)
    assert len(trials) == 5
    assert all(trial.state.is_finished() for trial in trials)
    states = [trial.user_attrs["state"] for trial in trials]
    assert states.count("completed") >= 1
    rows = [row for trial in trials for row in rows_of(trial)]
    assert len({row["worker"] for row in rows}) <= CORES
    assert str(os.getpid()) not in {row["worker"].partition(":")[2] for row in rows}
    for trial in trials:
        assert [row["epoch"] for row in rows_of(trial)] == list(trial.intermediate_values)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.pt")}
    assert files == {f"trials/{number}/last.pt" for number in range(5)}  # nothing of Ray's here
    assert {path.name for path in folder.iterdir()} <= {"trials", "study.journal", ".driver.lock"}


@pytest.mark.usefixtures("cluster")
def test_a_bad_trial_is_recorded_and_the_others_go_on(tmp_path: Path, splits: Splits) -> None:
    enqueue: list[dict[str, Any]] = [
        {"arch": ((1, 8),), "lr": 0.1, "hidden_features": 2**40},
        {"arch": ((1, 8),), "lr": 1e6},
        {"arch": ((1, 8),), "lr": 0.1, "hidden_features": 32},
    ]
    space = SPACE | {"lr": [0.01, 1e7], "hidden_features": {"choices": [32, 2**40]}}
    events: list[Event] = []
    config = tiny(num_trials=3, scheduler="none", space=space, enqueue=enqueue, max_concurrent=1)
    with opened(tmp_path / "s", config, [events.append]) as study:
        run_search(study, splits, cluster_of(study), lambda: None)
    trials = read_trials(tmp_path / "s")
    assert [t.user_attrs["state"] for t in trials] == ["failed", "diverged", "completed"]
    assert "can't allocate memory" in trials[0].user_attrs["error"]
    # Once more, alone on the device
    assert [event.kind for event in events if event.number == 0][-2:] == ["retried", "ended"]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_stopped_search_leaves_its_trials_to_a_resume(tmp_path: Path, splits: Splits) -> None:
    config = tiny(num_trials=1000, scheduler="none", max_epochs=1000, max_concurrent=1)
    with opened(tmp_path / "s", config) as study:

        def stop(event: Event) -> None:
            study.stopping = study.stopping or event.kind == "epoch"

        study.listeners.append(stop)
        run_search(study, splits, cluster_of(study), lambda: None)
        assert not study.finished
        assert study.unfinished
    assert not any(trial.state.is_finished() for trial in read_trials(tmp_path / "s"))


@pytest.mark.usefixtures("cluster")
def test_a_search_without_budget_left_trains_nothing(tmp_path: Path, splits: Splits) -> None:
    with opened(tmp_path / "s", tiny(time_budget=5)) as study:
        study.budget._before = 5.0  # what a resumed study has used up
        run_search(study, splits, cluster_of(study), lambda: None)
        assert not study.finished
    assert not any(rows_of(trial) for trial in read_trials(tmp_path / "s"))


@pytest.mark.usefixtures("cluster")
def test_places_that_are_waited_for_are_looked_for_again_on_other_nodes() -> None:
    request, here = tune.PlacementGroupFactory([{"CPU": 1}]), ray.nodes()[0]["NodeID"]
    for _ in range(5):  # which of several Ray calls off is chance
        places = _Places()
        places.choose({"ray.io/node-id": "in(none)"})
        for _ in range(2):
            places.request_resources(request)
        assert not places.has_resources_ready(request)
        places.choose({"ray.io/node-id": f"in({here})"})
        selectors = [asked.selector for asked in places._pg_to_request.values()]  # type: ignore[attr-defined]
        assert selectors == [places.selector] * 2
        until = time.monotonic() + 60
        while not places.has_resources_ready(request) and time.monotonic() < until:
            time.sleep(0.05)
        assert places.has_resources_ready(request)
        places.clear()


# ---- between Ray and the study, without Ray ---------------------------------------------------


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row as Ray hands it on."""
    return {"number": 0, "training_iteration": 1} | {f"row/{k}": v for k, v in row.items()}


def rows(study: Study, count: int) -> list[dict[str, Any]]:
    """What a worker would tell of trial 0."""
    return [row_at(study.running[0].candidate, epoch) for epoch in range(1, count + 1)]


def test_the_searcher_hands_segments_out_and_hears_every_row(tmp_path: Path) -> None:
    with opened(tmp_path / "s", experiment(num_trials=1, scheduler="none")) as study:
        searcher = StudySearcher(study, lambda: 2)
        given = searcher.suggest("ray-a")
        assert isinstance(given, dict)
        assert (given["segment"].number, given["segment"].until) == (0, 4)
        assert searcher.suggest("ray-b") is None  # one runs, and there are no more
        told = [flat(row) for row in rows(study, 4)]
        for result in told[:3]:
            searcher.on_trial_result("ray-a", result)
        searcher.on_trial_complete("ray-a", told[3] | {"end": "reached", "done": True})
        assert [row["epoch"] for row in study.rows(0)] == [1, 2, 3, 4]
        assert "row/epoch" not in study.rows(0)[0]
        assert searcher.suggest("ray-b") == StudySearcher.FINISHED
        assert FINISHED == "finished"


@pytest.mark.parametrize(
    ("result", "error"),
    [(None, True), (None, False), ({"number": 0}, True)],
)
def test_a_worker_that_is_gone_is_a_death_and_not_a_failure(
    tmp_path: Path, result: dict[str, Any] | None, error: bool
) -> None:
    with opened(tmp_path / "s", experiment(num_trials=1, scheduler="none")) as study:
        searcher = StudySearcher(study, lambda: 2)
        searcher.suggest("ray-a")
        searcher.on_trial_complete("ray-a", result, error)
        again = searcher.suggest("ray-b")
        assert isinstance(again, dict)
        assert again["segment"].number == 0


def test_no_more_segments_than_places_are_handed_out(tmp_path: Path) -> None:
    places = [1]
    with opened(tmp_path / "s", experiment(num_trials=9)) as study:
        searcher = StudySearcher(study, lambda: places[0])
        assert isinstance(searcher.suggest("ray-a"), dict)
        assert searcher.suggest("ray-b") is None
        places[0] = 2  # a node has joined
        assert isinstance(searcher.suggest("ray-b"), dict)
        assert searcher.suggest("ray-c") is None
        places[0] = 0  # all are gone: the next to come is waited for
        searcher.on_trial_complete("ray-a", error=True)
        assert searcher.suggest("ray-c") is None
        searcher.on_trial_complete("ray-b", error=True)
        assert isinstance(searcher.suggest("ray-c"), dict)


def test_the_stopper_looks_at_the_study(tmp_path: Path) -> None:
    config = experiment(num_trials=1, gpu_hours=1 / 3600)
    with opened(tmp_path / "s", config) as study:
        stopper = StudyStopper(study)
        assert not stopper("any", {})
        assert not stopper.stop_all()
        Workers().run(study, turns=1)  # 2 s of a device
        assert stopper.stop_all()
    with opened(tmp_path / "t", experiment()) as study:
        study.stopping = True
        assert StudyStopper(study).stop_all()


def test_nothing_of_ours_is_pickled_for_a_restore(tmp_path: Path) -> None:
    with opened(tmp_path / "s", experiment()) as study:
        for part in (StudySearcher(study, lambda: 2), StudyStopper(study)):
            assert type(ray.cloudpickle.loads(ray.cloudpickle.dumps(part))) is object
