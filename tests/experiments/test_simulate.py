"""The simulator of searches, on a space of two dimensions whose values are a formula."""

import math
from typing import Any

import peers
import pytest
from measures import reached, value_at
from simulate import Ours, Trace, opened, simulate
from tables import FlatSpace, Row

from vgg_search.space.dimension import Dim

WORKERS, BUDGET = 4, 60


class Hill:
    """The best is at (700, "2"); "0" is lost in its second epoch; an epoch takes 1 to 11 s."""

    epochs, best = 9, 0.9

    def __init__(self) -> None:
        self.space = FlatSpace({"x": Dim(int, (), 0, 1000), "kind": Dim(str, ("0", "1", "2"))})

    def value(self, candidate: Row, seed: int, epoch: int) -> float:
        lost = candidate.indices[1] == 0 and epoch > 1
        return math.nan if lost else self.true(candidate) * epoch / 9

    def true(self, candidate: Row) -> float:
        x, kind = candidate.indices
        return 0.7 - 0.0005 * abs(x - 700) + 0.1 * kind

    def seconds(self, candidate: Row) -> float:
        return 1 + candidate.indices[0] / 100


def check(trace: Trace) -> None:
    """What holds of every search."""
    assert trace.epochs == BUDGET
    epochs, seconds, trials, observed, true = zip(*trace.changes, strict=True)
    for rising in (epochs, seconds, trials, observed):
        assert list(rising) == sorted(rising)
    assert trace.trials <= BUDGET
    assert true[-1] >= 0.6


@pytest.mark.parametrize("scheduler", ["asha", "asha-promote"])
def test_study_searches_any_space(scheduler: str) -> None:
    hill = Hill()
    with opened(0, hill.space, sampler="tpe", scheduler=scheduler) as study:
        trace = simulate(Ours(study, hill), hill, WORKERS, BUDGET)
    check(trace)
    alone = Hill()
    with opened(0, alone.space, sampler="tpe", scheduler=scheduler) as study:
        assert simulate(Ours(study, alone), alone, 1, BUDGET).seconds > 2 * trace.seconds


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("library", "options"),
    [
        ("optuna", {"pruner": "hyperband"}),
        ("optuna", {"pruner": "halving"}),
        ("syne_tune", {"kind": "ASHA"}),
        ("syne_tune", {"kind": "BOHB"}),
        ("neps", {}),
        ("smac", {}),
    ],
)
def test_peer_is_driven_to_the_end_of_the_budget(library: str, options: dict[str, Any]) -> None:
    pytest.importorskip(library)
    kinds = {"optuna": "Optuna", "syne_tune": "SyneTune", "neps": "NePS", "smac": "SMAC"}
    hill = Hill()
    check(simulate(getattr(peers, kinds[library])(hill, 0, **options), hill, WORKERS, BUDGET))


def test_goal_is_reached_when_the_incumbent_stays_as_good() -> None:
    changes = [(10.0, 0.5), (20.0, 0.8), (30.0, 0.7), (40.0, 0.9)]
    assert reached(changes, 0.75) == 40
    assert reached(changes, 0.7) == 20
    assert math.isinf(reached(changes, 0.95))
    assert [value_at(changes, epochs) for epochs in (9, 10, 39, 99)] == [0.1, 0.5, 0.7, 0.9]
