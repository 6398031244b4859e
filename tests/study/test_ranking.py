"""Who is best, and which checkpoints may be among the best, by hand."""

import math

import pytest
from fake_workers import row_at

from vgg_search.records import EpochRow
from vgg_search.space.candidate import Candidate
from vgg_search.study.ranking import Ranking


def rows(*accuracies: float) -> list[EpochRow]:
    candidate = Candidate(arch=((1, 8),), lr=0.5, batch_size=64)
    return [
        EpochRow(**row_at(candidate, epoch) | {"val_accuracy": accuracy})
        for epoch, accuracy in enumerate(accuracies, 1)
    ]


def ranking(top_k: int, *accuracies: float) -> Ranking:
    """Of trials that were completed with one epoch each, numbered in this order."""
    made = Ranking(top_k)
    for number, accuracy in enumerate(accuracies):
        made.add(number, "completed", rows(accuracy), accuracy)
    return made


def test_the_bound_of_the_top_k_is_the_score_of_its_last() -> None:
    assert ranking(3, 0.5, 0.9).keep_above() == 0.0, "there is still a place"
    assert ranking(3, 0.5, 0.9, 0.7).keep_above() == 0.5
    assert ranking(3, 0.5, 0.9, 0.7, 0.6, 0.1).keep_above() == 0.6
    assert ranking(1, 0.5, 0.9, 0.7).keep_above() == 0.9
    assert ranking(0, 0.5).keep_above() == math.inf


def test_the_top_are_the_best_first_and_of_equals_the_first_by_number() -> None:
    assert ranking(3, 0.5, 0.9, 0.7, 0.9, 0.6).top() == [1, 3, 2]
    assert ranking(3, 0.5).top() == [0]
    assert ranking(0, 0.5).top() == []


def test_a_trial_is_ranked_by_its_best_epoch_and_the_incumbent_by_its_last() -> None:
    made = Ranking(2)
    made.add(0, "completed", rows(0.5, 0.9, 0.6), 0.6)
    made.add(1, "completed", rows(0.7, 0.8), 0.8)
    made.add(2, "pruned", rows(0.95), None)
    assert made.best == {0: 0.9, 1: 0.8, 2: 0.95}
    assert made.top() == [2, 0]
    assert made.incumbent == (0.8, 1)


@pytest.mark.parametrize("state", ["diverged", "failed"])
def test_what_cannot_be_used_is_not_ranked(state: str) -> None:
    made = ranking(2, 0.5)
    made.add(1, state, rows(0.9, math.nan), None)
    assert (made.best, made.top(), made.incumbent) == ({0: 0.5}, [0], (0.5, 0))


def test_values_that_are_not_finite_are_no_scores() -> None:
    made = Ranking(2)
    made.add(0, "pruned", rows(0.5, math.inf, math.nan), None)
    made.add(1, "pruned", rows(math.nan), None)
    made.add(2, "pruned", [], None)
    assert made.best == {0: 0.5}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_equals_the_first_by_number_is_the_incumbent(order: tuple[int, int]) -> None:
    made = Ranking(2)
    for number in order:
        made.add(number, "completed", rows(0.9), 0.9)
    assert made.incumbent == (0.9, 0)
    made.add(2, "completed", rows(0.8), 0.8)
    assert made.incumbent == (0.9, 0)
    made.add(3, "completed", rows(0.91), 0.91)
    assert made.incumbent == (0.91, 3)
