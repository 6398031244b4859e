"""Finished trials by score: the incumbent, the front, which checkpoints are worth keeping."""

import math
from bisect import insort
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from vgg_search.objectives import KNEE
from vgg_search.records import METRIC, EpochRow
from vgg_search.study.pareto import Vector, best_first, front, knee


@dataclass
class Ranking:
    """Finished trials by score: the incumbent, and the top K."""

    top_k: int
    several: bool = False  # objectives
    best: dict[int, float] = field(default_factory=dict)  # number -> best val_accuracy
    incumbent: tuple[float, int] | None = None  # (val_accuracy at the last epoch, number)
    completed: dict[int, Vector] = field(default_factory=dict)  # number -> that, and costs
    costs: dict[int, Vector] = field(default_factory=dict)  # of those in `best`
    _order: list[tuple[float, int]] = field(default_factory=list)  # `best` as (-value, number)

    def add(
        self,
        number: int,
        state: str,
        rows: Iterable[EpochRow],
        value: float | None,
        costs: Vector = (),
    ) -> None:
        """A trial has ended; `value` is that of a completed one, `costs` are its further
        objectives."""
        finite = [row[METRIC] for row in rows if math.isfinite(row[METRIC])]
        if finite and state in ("completed", "pruned"):
            self.best[number], self.costs[number] = max(finite), costs
            insort(self._order, (-max(finite), number))
        if state == "completed" and value is not None:
            self.completed[number] = (value, *costs)
            # Of equals the first by number, whatever the order in which they ended
            best = self.incumbent
            if best is None or (value, -number) > (best[0], -best[1]):
                self.incumbent = value, number

    def top(self) -> list[int]:
        """Numbers of the top K by their best val_accuracy, or by all objectives, best first."""
        if self.several:
            return best_first({n: (x, *self.costs[n]) for n, x in self.best.items()})[: self.top_k]
        return [number for _, number in self._order[: self.top_k]]

    def keep_above(self) -> float:
        """The val_accuracy from which on a checkpoint may be among the top K."""
        if self.top_k and (self.several or len(self._order) < self.top_k):
            return 0.0
        return -self._order[self.top_k - 1][0] if self.top_k else math.inf

    @property
    def front(self) -> list[int]:
        """Completed trials that no other beats in every objective, the most accurate first."""
        return front(self.completed)

    @property
    def knee(self) -> int | None:
        """The trial at the bend of the front."""
        return knee({n: self.completed[n] for n in self.front}) if self.completed else None

    def best_of(self, numbers: Collection[int], pick: str) -> list[int]:
        """These completed trials, the one that the rule picks first, then what differs most."""
        start = self.knee if pick == KNEE else None
        return best_first({number: self.completed[number] for number in numbers}, start)
