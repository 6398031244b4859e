"""Fronts, their order and their knee, by hand and against a slow second implementation."""

import math
import random

import pytest

from vgg_search.study.pareto import Vector, best_first, dominators, front, knee


def beats(one: Vector, other: Vector) -> bool:
    """val_accuracy is better higher, costs lower."""
    pairs = [(one[0], other[0]), *((-a, -b) for a, b in zip(one[1:], other[1:], strict=True))]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def drawn(seed: int, count: int, objectives: int) -> dict[int, Vector]:
    """With equal values among them."""
    source = random.Random(seed)
    values = [
        (
            source.randint(50, 99) / 100,
            *(float(source.randint(1, 9)) for _ in range(objectives - 1)),
        )
        for _ in range(count)
    ]
    return dict(zip(source.sample(range(1000), count), values, strict=True))


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_front_after_front(seed: int, objectives: int) -> None:
    vectors = drawn(seed, 40, objectives)
    order, left = best_first(vectors), dict(vectors)
    assert dominators(vectors) == {
        n: sum(beats(other, mine) for other in vectors.values()) for n, mine in vectors.items()
    }
    assert front(vectors) == sorted(
        (n for n in vectors if not dominators(vectors)[n]), key=lambda n: (-vectors[n][0], n)
    )
    while order:
        best = {n for n, v in left.items() if not any(beats(w, v) for w in left.values())}
        assert set(order[: len(best)]) == best
        assert vectors[order[0]][0] == max(vectors[n][0] for n in best)
        order = order[len(best) :]
        left = {n: v for n, v in left.items() if n not in best}
    assert not left


def test_one_objective_is_ranked_by_its_value_and_of_equals_the_first_by_number() -> None:
    vectors = drawn(3, 60, 1)
    assert best_first(vectors) == sorted(vectors, key=lambda n: (-vectors[n][0], n))
    assert best_first({}) == []
    assert front({}) == []


def test_a_few_of_a_front_span_it() -> None:
    """Errors and costs halve and double from one to the next: places 0, 1/8 ... 1 on both axes."""
    vectors = {n: (1 - 0.4 / 2**n, 100.0 * 2**n) for n in range(9)}
    assert best_first(vectors)[:5] == [8, 0, 4, 2, 6]
    assert best_first(vectors, start=4)[:3] == [4, 0, 8]
    assert best_first(vectors, start=4_000)[0] == 8, "a trial of no front is no start"


def test_the_knee_is_where_the_front_bends() -> None:
    vectors = {0: (0.5, 100.0), 1: (0.9, 200.0), 2: (0.91, 3_000.0), 3: (0.92, 50_000.0)}
    assert knee(vectors) == 1
    assert knee({7: (0.5, 3.0)}) == 7
    assert knee({7: (0.5, 3.0), 2: (0.5, 3.0)}) == 7
    assert knee({0: (1.0, 9.0), 1: (0.99, 1.0)}) == 0, "of two ends the first; no log of 0"


def test_three_objectives_have_a_knee_too() -> None:
    vectors = {0: (0.9, 1e5, 1e7), 1: (0.89, 1e3, 2e5), 2: (0.5, 1e2, 1e5)}
    assert front(vectors) == [0, 1, 2]
    assert knee(vectors) == 1
    assert math.isfinite(sum(vectors[knee(vectors)]))
