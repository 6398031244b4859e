"""Trials by several objectives: the front, the order in which they are worth going on, the knee.

A vector is a trial's val_accuracy, of which more is better, then what its network costs, of which
less is. All takes memory and time of the square of the number of trials: 20 ms for 2,000.
"""

from collections.abc import Mapping, Sequence

import numpy as np

Vector = tuple[float, ...]
LEAST_ERROR = 1e-3  # of 1 - val_accuracy, on a log scale


def _dominates(vectors: Sequence[Vector]) -> np.ndarray:
    """(n, n) whether the first is as good as the second in every objective, and better in one."""
    table = np.array(vectors)
    table[:, 1:] *= -1
    as_good = np.logical_and.reduce([column[:, None] >= column for column in table.T])
    return as_good & ~as_good.T


def dominators(vectors: Mapping[int, Vector]) -> dict[int, int]:
    """By how many others each is dominated: none of them can ever come after it in the order."""
    return dict(zip(vectors, _dominates([*vectors.values()]).sum(0).tolist(), strict=True))


def _places(vectors: Sequence[Vector]) -> np.ndarray:
    """(n, objectives) from 0, the best that anybody has, to 1, the worst: logarithms of errors and
    of costs, as the report draws them."""
    table = np.array(vectors)
    table[:, 0] = np.maximum(1 - table[:, 0], LEAST_ERROR)
    table = np.log(table)
    table -= table.min(0)
    return table / np.maximum(table.max(0), 1e-12)


def _net(places: np.ndarray, start: int) -> list[int]:
    """All points, each as far as possible from those before it."""
    order, distances = [start], np.full(len(places), np.inf)
    while len(order) < len(places):
        last = places[order[-1]]
        np.minimum(distances, ((places - last) ** 2).sum(1), out=distances)
        distances[order[-1]] = -1  # an equal one is still to come
        order.append(int(distances.argmax()))
    return order


def best_first(vectors: Mapping[int, Vector], start: int | None = None) -> list[int]:
    """Numbers, front after front (non-dominated sorting; Deb et al., NSGA-II, 2002). The first of a
    front is the most accurate, or `start`, and each further one the farthest from those before it:
    so a few span the whole front (the epsilon-net of MOASHA; Schmucker et al., arXiv:2106.12639).
    """
    numbers, order = sorted(vectors), list[int]()
    if not numbers:
        return []
    table = [vectors[number] for number in numbers]
    dominates, places, accuracy = _dominates(table), _places(table), np.array(table)[:, 0]
    above = dominates.sum(0)
    while len(order) < len(numbers):
        front = np.flatnonzero(above == 0)
        members = [numbers[i] for i in front]
        first = members.index(start) if start in members else int(accuracy[front].argmax())
        order += [members[i] for i in _net(places[front], first)]
        above -= dominates[front].sum(0)
        above[front] = -1
    return order


def front(vectors: Mapping[int, Vector]) -> list[int]:
    """Those that nobody dominates, the most accurate first."""
    above = dominators(vectors) if vectors else {}
    return sorted((n for n in vectors if not above[n]), key=lambda n: (-vectors[n][0], n))


def knee(vectors: Mapping[int, Vector]) -> int:
    """Of a front, the one that lies farthest from the line between its ends: with the smallest sum
    of places. From there on, either way, more is lost of one objective than is won of another."""
    numbers = [*vectors]
    return numbers[int(_places([*vectors.values()]).sum(1).argmin())]
