"""Finished trials by score: the incumbent, and which checkpoints are worth keeping."""

import math
from bisect import insort
from dataclasses import dataclass, field

from vgg_search.records import METRIC, EpochRow


@dataclass
class Ranking:
    """Finished trials by score: the incumbent, and the top K."""

    top_k: int
    best: dict[int, float] = field(default_factory=dict)  # number -> best val_accuracy
    incumbent: tuple[float, int] | None = None  # (val_accuracy at the last epoch, number)
    _order: list[tuple[float, int]] = field(default_factory=list)  # `best` as (-value, number)

    def add(self, number: int, state: str, rows: list[EpochRow], value: float | None) -> None:
        """A trial has ended; `value` is that of a completed one."""
        finite = [row[METRIC] for row in rows if math.isfinite(row[METRIC])]
        if finite and state in ("completed", "pruned"):
            self.best[number] = max(finite)
            insort(self._order, (-max(finite), number))
        if state == "completed" and value is not None:
            # Of equals the first by number, whatever the order in which they ended
            best = self.incumbent
            if best is None or (value, -number) > (best[0], -best[1]):
                self.incumbent = value, number

    def top(self) -> list[int]:
        """Numbers of the top K by their best val_accuracy, best first."""
        return [number for _, number in self._order[: self.top_k]]

    def keep_above(self) -> float:
        """The val_accuracy from which on a checkpoint may be among the top K."""
        if len(self._order) < self.top_k:
            return 0.0
        return -self._order[self.top_k - 1][0] if self.top_k else math.inf
