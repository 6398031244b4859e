"""Rungs, and who goes on from them: by hand, by the paper, and the same after an interruption."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vgg_search.config import Config
from vgg_search.study.schedulers import STOP, WAIT, Asha, make_scheduler, rung_epochs


@pytest.mark.parametrize(
    ("grace", "most", "factor", "rungs"),
    [
        (1, 9, 3, (1, 3, 9)),
        (1, 10, 3, (1, 3, 9, 10)),
        (1, 8, 3, (1, 3, 8)),
        (2, 16, 2, (2, 4, 8, 16)),
        (1, 81, 3, (1, 3, 9, 27, 81)),
        (5, 5, 3, (5,)),
        (1, 1, 2, (1,)),
        (4, 6, 4, (4, 6)),
    ],
)
def test_rungs_end_with_the_last_epoch(
    grace: int, most: int, factor: int, rungs: tuple[int, ...]
) -> None:
    assert rung_epochs(grace, most, factor) == rungs


def test_next_rung() -> None:
    scheduler = Asha((1, 3, 9), 3)
    assert [scheduler.next_rung(epoch) for epoch in (0, 1, 2, 3, 8)] == [1, 3, 3, 9, 9]


# ---- stopping ---------------------------------------------------------------------------------


def test_stopping_judges_on_arrival_among_those_that_came_before() -> None:
    scheduler = Asha((1, 3, 9), 3)
    # 1, 2, 3, 4, 5: one goes on; from the sixth on, two
    arrivals = [(0.5, 3), (0.4, STOP), (0.6, 3), (0.55, STOP), (0.1, STOP), (0.58, 3), (0.57, STOP)]
    for number, (value, verdict) in enumerate(arrivals):
        assert scheduler.arrived(number, 1, value) == verdict, number


def test_stopping_judges_each_rung_by_itself_and_ends_at_the_last() -> None:
    scheduler = Asha((1, 3, 9), 3)
    scheduler.arrived(0, 1, 0.5)
    scheduler.arrived(1, 1, 0.6)
    assert scheduler.arrived(1, 3, 0.7) == 9
    assert scheduler.arrived(0, 3, 0.69) == STOP
    assert scheduler.arrived(1, 9, 0.1) == STOP
    assert scheduler.promotable() is None
    assert scheduler.promotable(closing=True) is None


def test_of_equals_the_earlier_goes_on() -> None:
    scheduler = Asha((1, 3), 3)
    assert scheduler.arrived(1, 1, 0.5) == 3
    assert scheduler.arrived(2, 1, 0.5) == STOP
    assert scheduler.arrived(0, 1, 0.5) == 3


def test_one_rung_is_no_stopping() -> None:
    scheduler = Asha((9,), 3)
    assert scheduler.arrived(0, 9, 0.1) == STOP


# ---- promotion (Algorithm 2 of the ASHA paper) --------------------------------------------------


def test_promotion_in_the_papers_smallest_bracket() -> None:
    """Bracket s = 0 of table 1: r = 1, R = 9, eta = 3, n = 9; one worker."""
    scheduler = Asha((1, 3, 9), 3, promote=True)
    errors = [0.9, 0.8, 0.2, 0.7, 0.6, 0.1, 0.3, 0.5, 0.4]
    promoted: list[tuple[int, int]] = []
    for number, error in enumerate(errors):
        assert scheduler.arrived(number, 1, 1 - error) == WAIT
        while job := scheduler.promotable():
            promoted.append(job)
            verdict = scheduler.arrived(job[0], job[1], 1 - errors[job[0]])
            assert verdict == (STOP if job[1] == 9 else WAIT)
    # The best of 3, the best two of 6, the best three of 9, and of those three the best.
    assert promoted == [(2, 3), (5, 3), (6, 3), (5, 9)]
    assert set(scheduler.waiting) == {0, 1, 2, 3, 4, 6, 7, 8}
    # Table 1: 9 configurations for 1 epoch, 3 until 3, 1 until 9
    assert [len(scheduler.values[epoch]) for epoch in (1, 3, 9)] == [9, 3, 1]


def test_nobody_is_promoted_before_eta_have_reached_the_rung() -> None:
    scheduler = Asha((1, 3), 3, promote=True)
    for number in range(2):
        scheduler.arrived(number, 1, 0.5)
        assert scheduler.promotable() is None
    scheduler.arrived(2, 1, 0.4)
    assert scheduler.promotable() == (0, 3)
    assert scheduler.promotable() is None, "promoted once only"


def test_the_highest_rung_comes_first() -> None:
    scheduler = Asha((1, 2, 4), 2, promote=True)
    for number, value in enumerate((0.4, 0.3, 0.2, 0.1)):
        scheduler.arrived(number, 1, value)
    assert [scheduler.promotable(), scheduler.promotable()] == [(0, 2), (1, 2)]
    scheduler.arrived(0, 2, 0.4)
    scheduler.arrived(1, 2, 0.5)
    for number in (4, 5):
        scheduler.arrived(number, 1, 0.9)
    assert scheduler.promotable() == (1, 4)
    assert scheduler.promotable() == (4, 2)


def test_a_later_arrival_may_take_a_waiting_trials_place() -> None:
    scheduler = Asha((1, 3), 2, promote=True)
    scheduler.arrived(0, 1, 0.4)
    scheduler.arrived(1, 1, 0.6)
    scheduler.arrived(2, 1, 0.7)
    assert scheduler.promotable() == (2, 3), "one of three goes on: the best"
    assert scheduler.promotable() is None
    scheduler.arrived(3, 1, 0.1)
    assert scheduler.promotable() == (1, 3)


def test_closing_carries_one_trial_to_the_end() -> None:
    scheduler = Asha((1, 3, 9), 3, promote=True)
    for number, value in enumerate((0.4, 0.6)):
        scheduler.arrived(number, 1, value)
    assert scheduler.promotable() is None
    assert scheduler.promotable(closing=True) == (1, 3)
    assert scheduler.promotable(closing=True) is None, "one is on its way"
    scheduler.arrived(1, 3, 0.6)
    assert scheduler.promotable(closing=True) == (1, 9)
    assert scheduler.arrived(1, 9, 0.6) == STOP
    assert scheduler.promotable(closing=True) is None
    assert set(scheduler.waiting) == {0}


@pytest.mark.parametrize(("baseline", "other", "goes_on"), [(0.37, 0.74, True), (0.8, 0.7, False)])
def test_closing_carries_the_best_to_the_end_beside_an_exempt_one(
    baseline: float, other: float, goes_on: bool
) -> None:
    scheduler = Asha((1, 4), 3, promote=True)
    scheduler.arrived(0, 1, baseline)
    assert scheduler.exempt(0, 1) == 4
    scheduler.arrived(1, 1, other)
    scheduler.arrived(0, 4, baseline)
    assert scheduler.unpromotable({1}, 0) == ([] if goes_on else [1])
    assert scheduler.promotable(closing=True) == ((1, 4) if goes_on else None)


def test_a_trial_that_failed_stands_in_nobodys_way() -> None:
    scheduler = Asha((1, 3), 2, promote=True)
    for number, value in enumerate((0.6, 0.5, 0.4)):
        scheduler.arrived(number, 1, value)
    assert scheduler.promotable() == (0, 3)
    assert scheduler.promotable(closing=True) is None
    scheduler.forget(0)
    assert scheduler.promotable() == (1, 3)


def test_nobody_is_out_while_a_late_arrival_may_lift_him_or_nobody_has_reached_the_end() -> None:
    scheduler = Asha((1, 2), 2, promote=True)
    for number, value in enumerate((0.4, 0.3, 0.2, 0.1)):
        scheduler.arrived(number, 1, value)
    assert [scheduler.promotable(), scheduler.promotable()] == [(0, 2), (1, 2)]
    live = {0, 1, 2, 3}
    assert scheduler.unpromotable(live, 0) == [], "if 0 and 1 fail, 2 is to close the search"
    scheduler.arrived(0, 2, 0.4)
    live.remove(0)
    assert scheduler.unpromotable(live, 4) == []
    assert scheduler.unpromotable(live, 2) == [3], "of six three go on at most: 2 may be the third"
    assert scheduler.unpromotable({*live, 4}, 1) == [3], "one more to come, and one on its way"
    assert scheduler.unpromotable(live, 0) == [2, 3]


def test_who_is_out_at_a_rung_does_not_come_to_the_next() -> None:
    scheduler = Asha((1, 2, 4), 2, promote=True)
    for number, value in enumerate((0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)):
        scheduler.arrived(number, 1, value)
        while job := scheduler.promotable():
            scheduler.arrived(*job, 1 - value)
    assert scheduler.values[4].keys() == {1, 2, 3}
    assert scheduler.waiting == {0: 2, 4: 1, 5: 1, 6: 1, 7: 1}
    live = set(scheduler.waiting)
    # Four of eight have gone on; with none to come none comes to rung 2, where 0 is last of four
    assert scheduler.unpromotable(live, 0) == [4, 5, 6, 7, 0]
    # With two to come they and 4 may go on: seven at rung 2, of which three do, and 0 is not one
    assert scheduler.unpromotable(live, 2) == [5, 6, 7, 0]
    # With four to come, five may go on from rung 2, where ten would be
    assert scheduler.unpromotable(live, 4) == [6, 7]


# ---- several objectives -----------------------------------------------------------------------


def test_a_rung_of_several_objectives_is_ranked_by_fronts() -> None:
    scheduler = Asha((1, 3), 3, promote=True)
    # 0 and 1 are the front's ends; 2 is dominated by 1, and 3 to 5 by more
    arrivals = [(0.9, 900.0), (0.5, 100.0), (0.4, 200.0), (0.3, 300.0), (0.2, 400.0), (0.1, 500.0)]
    for number, (value, cost) in enumerate(arrivals):
        assert scheduler.arrived(number, 1, value, (cost,)) == WAIT
    assert [scheduler.promotable(), scheduler.promotable()] == [(0, 3), (1, 3)]
    assert scheduler.promotable() is None
    scheduler.arrived(6, 1, 0.95, (800.0,))  # before 0, which has gone on already
    assert scheduler.promotable() == (6, 3)


def test_stopping_with_several_objectives() -> None:
    scheduler = Asha((1, 3), 3)
    arrivals = [(0.5, 50.0, 3), (0.4, 60.0, STOP), (0.4, 40.0, STOP), (0.6, 70.0, 3)]
    # Of six the second goes on too: the small one, farthest from the most accurate
    arrivals += [(0.55, 60.0, STOP), (0.3, 4.0, 3)]
    for number, (value, cost, verdict) in enumerate(arrivals):
        assert scheduler.arrived(number, 1, value, (cost,)) == verdict, number


def test_with_several_objectives_only_who_is_dominated_by_enough_is_out() -> None:
    scheduler = Asha((1, 2), 2, promote=True)
    for number, (value, cost) in enumerate([(0.9, 9.0), (0.8, 8.0), (0.1, 1.0), (0.05, 9.0)]):
        scheduler.arrived(number, 1, value, (cost,))
    assert scheduler.promotable() == (0, 2)
    scheduler.arrived(0, 2, 0.9, (9.0,))
    scheduler.forget(9)
    # 1 is third at the moment; an arrival that dominates 0 and 2 would lift it
    assert scheduler.unpromotable({1, 2, 3}, 0) == [3]
    assert scheduler.unpromotable({1, 2, 3}, 4) == []


# ---- forecast ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "epochs"),
    [
        # Rungs 1, 2, 4: all train 1 epoch, a half one more, a quarter two more
        ({"max_epochs": 4, "reduction_factor": 2}, 1 + 1 / 2 + 2 / 4),
        # Rungs 1, 3, 6: all 1, a third two more, a ninth three more
        ({"max_epochs": 6, "reduction_factor": 3}, 1 + 2 / 3 + 3 / 9),
        ({"max_epochs": 27, "grace_epochs": 3, "reduction_factor": 3}, 3 + 6 / 3 + 18 / 9),
        ({"max_epochs": 5, "grace_epochs": 5}, 5),
        ({"max_epochs": 7, "scheduler": "none"}, 7),
    ],
)
def test_expected_epochs(fields: dict[str, Any], epochs: float) -> None:
    given = {"reduction_factor": 3, "baseline": None} | fields
    assert make_scheduler(Config(**given)).expected_epochs == pytest.approx(epochs)


# ---- interruption -----------------------------------------------------------------------------

EPOCHS = (1, 2, 4)


class Search:
    """The bookkeeping that a study does around a scheduler, with a dict as its record."""

    def __init__(
        self, promote: bool, record: dict[int, dict[str, Any]], several: bool = False
    ) -> None:
        self.scheduler, self.record = Asha(EPOCHS, 2, promote), record
        self.promote, self.several = promote, several
        for number, trial in record.items():
            if not trial["failed"]:
                self.scheduler.restore(number, trial["values"].items(), self._costs(number))
        for number, trial in record.items():
            if not trial["told"] and trial["until"] in trial["values"]:
                self._decide(number, trial["until"])

    def _costs(self, number: int) -> tuple[float, ...]:
        return (float(2 + number % 5),) if self.several else ()

    def _decide(self, number: int, epoch: int) -> int | str:
        trial = self.record[number]
        value = trial["values"][epoch]
        verdict = self.scheduler.arrived(number, epoch, value, self._costs(number))
        if verdict == STOP:
            trial["told"] = True
        elif verdict != WAIT:
            trial["until"] = verdict
        return verdict

    def step(self, number: int, value: float) -> Any:
        """Trial `number` trains to its rung, or fails where its value is below 0.1."""
        new = {"values": {}, "until": 1, "told": False, "failed": False}
        trial = self.record.setdefault(number, new)
        if trial["told"] or trial["until"] in trial["values"]:
            return None
        if value < 0.1:
            trial["told"] = trial["failed"] = True
            return self.scheduler.forget(number)
        trial["values"][trial["until"]] = value
        return self._decide(number, trial["until"])

    def go_on(self, closing: bool) -> Any:
        job = self.scheduler.promotable(closing)
        if job:
            self.record[job[0]]["until"] = job[1]
        return job


def decisions(
    promote: bool, several: bool, steps: list[tuple[int, float]], interrupted: frozenset[int]
) -> Iterator[Any]:
    search = Search(promote, {}, several)
    for i, (number, value) in enumerate(steps):
        if i in interrupted:
            search = Search(promote, search.record, several)
        yield search.step(number, value)
        yield search.go_on(closing=False)
    while job := search.go_on(closing=True):
        yield job
        yield search.step(job[0], 0.5)
    yield dict(sorted(search.scheduler.waiting.items()))
    yield search.scheduler.values


STEPS = st.lists(
    st.tuples(st.integers(0, 8), st.floats(0, 1).map(lambda value: round(value, 2))), max_size=40
)


@settings(deadline=None, max_examples=150)
@given(st.booleans(), st.booleans(), STEPS, st.frozensets(st.integers(0, 40), max_size=6))
def test_decisions_are_the_same_after_interruptions(
    promote: bool, several: bool, steps: list[tuple[int, float]], interrupted: frozenset[int]
) -> None:
    expected = list(decisions(promote, several, steps, frozenset()))
    assert list(decisions(promote, several, steps, interrupted)) == expected


@settings(deadline=None, max_examples=100)
@given(st.booleans(), STEPS)
def test_a_search_of_trials_that_do_not_fail_trains_one_to_the_end(
    promote: bool, steps: list[tuple[int, float]]
) -> None:
    search = Search(promote, {})
    for number, value in steps:
        search.step(number, 0.1 + value)
        search.go_on(closing=False)
    for number in search.record:
        while search.step(number, 0.5) not in (None, STOP, WAIT):
            pass
    while job := search.go_on(closing=True):
        search.step(job[0], 0.5)
    ended = [trial for trial in search.record.values() if 4 in trial["values"]]
    assert bool(ended) == bool(steps)


@settings(deadline=None, max_examples=150)
@given(st.booleans(), STEPS)
def test_who_is_out_would_not_have_been_promoted_and_who_is_left_over_is_out(
    several: bool, steps: list[tuple[int, float]]
) -> None:
    search, out = Search(True, {}, several), set[int]()
    total = len({number for number, _ in steps})

    def promote(closing: bool) -> Any:
        live = {number for number, trial in search.record.items() if not trial["told"]}
        out.update(search.scheduler.unpromotable(live, total - len(search.record)))
        job = search.go_on(closing)
        assert job is None or job[0] not in out
        return job

    for number, value in steps:
        search.step(number, 0.1 + value)
        promote(closing=False)
    moving = True
    while moving:
        going_on = [n for n in search.record if search.step(n, 0.5) is not None]
        moving = bool(promote(closing=not going_on) or going_on)
    left = {n for n in out if not search.record[n]["told"]}
    waiting = set(search.scheduler.waiting)
    assert waiting >= left if several else waiting == left
