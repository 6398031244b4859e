"""A study that is killed and resumed decides as one that was never interrupted.

Both are told the same rows in the same order. What workers do, what becomes of trials, and where
the driver is killed is generated; DECISION_CASES says how often.
"""

import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fake_workers import experiment, opened, record, row_at
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vgg_search.config import Config
from vgg_search.records import diverged
from vgg_search.study.segment import Segment
from vgg_search.study.study import FINISHED, Study

CASES = int(os.environ.get("DECISION_CASES", "25"))
MEMORY = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
# Few networks, so that proposals repeat, and some too large
SPACE = {"num_blocks": 1, "num_convs": 1, "out_channels": [8, 16, 32], "lr": [0.2, 0.4, 0.6, 0.8]}
BEFORE, BETWEEN = "before a row", "between a segment's last row and what is decided"


@dataclass
class Course:
    """What happens to a search, whoever drives it."""

    slots: int
    turns: list[int]  # which of the busy workers ends an epoch next
    values: list[float]  # of trial n at epoch e, by n and e
    faults: dict[int, tuple[str, int]]  # trial -> what befalls it at which epoch
    kills: dict[int, str] = field(default_factory=dict)  # turn -> when within it

    def row(self, segment: Segment, epoch: int) -> dict[str, Any]:
        kind, at = self.faults.get(segment.number, ("", 0))
        row = row_at(segment.candidate, epoch, diverged=(kind, at) == ("diverged", epoch))
        if not diverged(row):
            row["val_accuracy"] = self.values[(7 * segment.number + epoch) % len(self.values)]
        return row


def drive(folder: Path, config: Config, course: Course) -> dict[int, Any]:
    """The record of a whole search."""
    turn, before = 0, frozenset[int]()
    while True:
        with opened(folder, config) as study:
            busy: dict[int, tuple[Segment, int]] = {}  # trial -> its segment and last epoch
            while True:
                answer: Any = None
                while len(busy) < course.slots and isinstance(answer := study.propose(), Segment):
                    busy[answer.number] = answer, answer.known
                assert before <= busy.keys(), "who was being trained goes on first"
                if not busy:
                    assert answer == FINISHED
                    study.close()
                    return record(study)
                kill = course.kills.pop(turn, None)
                before = frozenset(busy) if kill == BEFORE else frozenset()
                if kill == BEFORE:
                    break
                number = sorted(busy)[course.turns[turn % len(course.turns)] % len(busy)]
                turn += 1
                if not step(study, course, busy, number, kill == BETWEEN):
                    break


def step(
    study: Study, course: Course, busy: dict[int, Any], number: int, killed_between: bool
) -> bool:
    """A worker ends an epoch; False if the driver is killed before it decides what follows."""
    segment, epoch = busy.pop(number)
    if course.faults.get(number) == ("failed", epoch + 1):
        study.segment_ended(number, "failed", "RuntimeError: as ordered")
        return True
    row = course.row(segment, epoch + 1)
    study.report(number, row)
    if diverged(row) or epoch + 1 == segment.until:
        if killed_between:
            return False
        study.segment_ended(number, "diverged" if diverged(row) else "reached")
    else:
        busy[number] = segment, epoch + 1
    return True


COURSES = st.builds(
    Course,
    slots=st.integers(1, 4),
    turns=st.lists(st.integers(0, 11), min_size=1, max_size=12),
    values=st.lists(st.integers(1, 99).map(lambda n: n / 100), min_size=1, max_size=23),
    faults=st.dictionaries(
        st.integers(0, 11),
        st.tuples(st.sampled_from(["diverged", "failed"]), st.integers(1, 4)),
        max_size=4,
    ),
    kills=st.dictionaries(st.integers(0, 40), st.sampled_from([BEFORE, BETWEEN]), min_size=1),
)
ONE, TWO = ("val_accuracy",), ("val_accuracy", "num_params")
PROPOSALS = st.sampled_from(
    [("random", ONE), ("tpe", ONE), ("curves", ONE), ("random", TWO), ("tpe", TWO)]
)
SEARCHES = st.fixed_dictionaries(
    {
        "num_trials": st.integers(1, 14),
        "reduction_factor": st.sampled_from([2, 3]),
        "max_epochs": st.sampled_from([4, 3]),
        "seed": st.integers(0, 3),
        "space": st.sampled_from(
            [SPACE, SPACE | {"max_params": 60_000}, SPACE | {"lr": [0.1, 0.9]}]
        ),
    }
)


@pytest.mark.parametrize("scheduler", ["asha", "asha-promote"])
@settings(deadline=None, max_examples=CASES, suppress_health_check=[HealthCheck.too_slow])
@given(PROPOSALS, SEARCHES, COURSES)
def test_kills_change_no_decision(
    scheduler: str, proposals: tuple[str, Any], fields: dict[str, Any], course: Course
) -> None:
    sampler, objectives = proposals
    config = experiment(scheduler=scheduler, sampler=sampler, objectives=objectives, **fields)
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        whole = drive(Path(place, "study"), config, replace(course, kills={}))
        Path(place, "study").rename(Path(place, "whole"))
        killed = drive(Path(place, "study"), config, replace(course, kills=dict(course.kills)))
        assert killed == whole
