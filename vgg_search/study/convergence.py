"""Whether more trials would pay: what they are expected to gain, against noise.

Beyond a high threshold values are nearly exponential (Pickands, Ann. Statist. 1975), with their
mean excess over it as scale; the best of twice as many is then expected `scale * ln 2` higher. To
go on below the standard error is to choose by chance (Makarova et al., "Automatic Termination for
Hyperparameter Optimization", AutoML 2022, compare another bound with it). All follows from what is
recorded, in any order.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

TAIL = 10  # best trials whose mean excess over the next one is the scale


class Outlook(NamedTuple):
    gain: float
    """Of the best val_accuracy that is expected of as many trials again."""
    noise: float
    """The standard error of the best val_accuracy."""

    def __str__(self) -> str:
        return f"expected gain {self.gain:.4f}, standard error {self.noise:.4f}"


def standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy measured on so many images (binomial)."""
    return math.sqrt(max(accuracy * (1 - accuracy), 0) / images)


def outlook(accuracies: Iterable[float], images: int) -> Outlook | None:
    """Of completed trials with these val_accuracies; None of too few."""
    best = sorted(accuracies, reverse=True)[: TAIL + 1]
    if len(best) <= TAIL:
        return None
    gain = math.log(2) * (sum(best[:TAIL]) / TAIL - best[TAIL])
    return Outlook(gain, standard_error(best[0], images))
