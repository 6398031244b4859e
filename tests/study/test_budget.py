"""What a search has used up of its budget: over several sessions, by a clock set by hand."""

from pathlib import Path
from typing import Any

import pytest
from fake_workers import experiment, opened, row_at

from vgg_search.config import Config
from vgg_search.records import EpochRow
from vgg_search.space.candidate import Candidate
from vgg_search.study import budget
from vgg_search.study.budget import Budget
from vgg_search.study.segment import Segment

CANDIDATE = Candidate(arch=((1, 8),), lr=0.5, batch_size=64)


class Clock:
    """Seconds of a machine that has been on for a day."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 86_400.0
        monkeypatch.setattr(budget, "time", self)

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def row(epoch: int, time: float) -> EpochRow:
    """An epoch of 2 s, heard of after so many seconds of search."""
    fields: dict[str, Any] = row_at(CANDIDATE, epoch) | {"time": time}
    return EpochRow(**fields)


def session(config: Config, *trials: list[EpochRow]) -> Budget:
    """The budget of a session that has just begun, on a record of these trials."""
    used = Budget(config)
    for rows in trials:
        used.restore(rows)
    used.start()
    return used


def test_a_time_budget_goes_on_where_the_record_ends_at_each_resume(clock: Clock) -> None:
    config = experiment(time_budget=100)
    first = session(config)
    clock.now += 40
    assert first.clock == 40
    clock.now += 1_000_000  # nobody searches
    # The trial that ended last is not the last by number; its rows are of both sessions
    second = session(config, [row(1, 10.0), row(2, 40.0)], [row(1, 30.0)])
    assert second.clock == 40
    clock.now += 35
    assert (second.clock, second.used_up) == (75, False)
    clock.now += 1_000_000
    third = session(config, [row(1, 10.0), row(2, 40.0), row(3, 75.0)], [row(1, 30.0)], [])
    clock.now += 24.5
    assert (third.clock, third.used_up) == (99.5, False)
    clock.now += 0.5
    assert third.used_up


def test_the_rows_of_each_session_go_on_in_time_where_the_last_one_ended(
    clock: Clock, tmp_path: Path
) -> None:
    config = experiment(num_trials=1, scheduler="none", time_budget=100)
    for epoch, seconds in ((1, 30.0), (2, 20.0), (3, 40.0)):
        clock.now += 1_000_000
        with opened(tmp_path / "a", config) as study:
            study.budget.start()
            segment = study.propose()
            assert isinstance(segment, Segment)
            clock.now += seconds
            study.report(0, row_at(segment.candidate, epoch))
            assert not study.budget.used_up
    assert [row["time"] for row in study.rows(0)] == [30.0, 50.0, 90.0]
    clock.now += 10
    assert study.budget.used_up


def test_time_after_the_search_is_not_counted(clock: Clock) -> None:
    used = Budget(experiment(time_budget=100))
    assert used.clock == 0, "it has not begun"
    clock.now += 50
    used.start()
    clock.now += 30
    used.stop()
    clock.now += 500  # the champion
    assert (used.clock, used.used_up) == (30, False)


def test_epochs_and_device_seconds_are_counted_over_all_sessions() -> None:
    used = session(experiment(gpus_per_trial=0.5), [row(1, 2.0), row(2, 4.0)], [row(1, 3.0)])
    assert (used.epochs, used.worker_seconds, used.device_seconds) == (3, 6.0, 3.0)
    used.spend(5.0)
    assert (used.epochs, used.worker_seconds, used.device_seconds) == (4, 11.0, 5.5)


def test_hours_of_devices_end_a_search_at_their_last_second() -> None:
    used = Budget(experiment(gpu_hours=0.01, workers_per_trial=2))  # 36 s by two processes
    used.spend(17.5)
    assert not used.used_up
    used.spend(0.5)
    assert used.used_up


def test_a_search_without_a_limit_is_never_used_up(clock: Clock) -> None:
    used = session(experiment())
    clock.now += 1e9
    used.spend(1e9)
    assert not used.used_up


@pytest.mark.parametrize(
    ("fields", "trials", "seconds"),
    [
        # Ten trials of 4 epochs, of which 2 have ended and 6 epochs are done: 26 at 3 s each
        ({}, 10.0, 78.0),
        # 40 s have passed: 20 more epochs in 60 s, so 2 trials and (6 + 20) / 4 more
        ({"time_budget": 100}, 8.5, 60.0),
        # 12 s of a device are used: 16 more epochs of 3 s until 60 s
        ({"gpu_hours": 60 / 3600}, 7.5, 48.0),
        # The first to be used up counts
        ({"time_budget": 100, "gpu_hours": 60 / 3600}, 7.5, 48.0),
        ({"time_budget": 70, "gpu_hours": 60 / 3600}, 6.0, 30.0),
        ({"time_budget": 10}, 3.5, 0.0),  # none is left: those under way are counted
    ],
)
def test_an_outlook_is_bounded_by_the_first_budget_that_ends(
    clock: Clock, fields: dict[str, Any], trials: float, seconds: float
) -> None:
    used = session(experiment(num_trials=10, **fields))
    clock.now += 40
    used.spend(12.0)
    outlook = used.outlook(epochs_a_trial=4.0, pace=3.0, device_pace=3.0, resting=2, under_way=6)
    assert outlook == pytest.approx((trials, seconds))


def test_an_outlook_takes_the_pace_of_the_devices_for_their_hours() -> None:
    used = Budget(experiment(num_trials=1000, gpu_hours=1))
    trials, seconds = used.outlook(epochs_a_trial=2.0, pace=5.0, device_pace=36.0)
    assert (trials, seconds) == pytest.approx((50.0, 500.0))  # 100 epochs of the devices
