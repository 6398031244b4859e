"""Rungs and decisions: how far each trial may train, decided from val_accuracy at its rungs.

ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020,
arXiv:1810.05934). Names of the paper: r = grace_epochs, R = max_epochs, eta = reduction_factor,
rung k at epoch r * eta^k, s = 0. Pure: it is told numbers and answers with epochs, so that a
resumed study, a simulation and a real run decide alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

WAIT = "wait"
STOP = "stop"


def rung_epochs(grace_epochs: int, max_epochs: int, reduction_factor: int) -> tuple[int, ...]:
    """Epochs r, r * eta, r * eta^2 ... below R, then R itself."""
    epochs, epoch = [], grace_epochs
    while epoch < max_epochs:
        epochs.append(epoch)
        epoch *= reduction_factor
    return (*epochs, max_epochs)


@dataclass
class Scheduler:
    """Successive halving without waiting for a rung to fill.

    With `promote` a trial waits at each rung and the best promotable one goes on when a worker is
    free: Algorithm 2 of the paper. Without, it is decided on arrival and for good: a trial goes on
    if it is among the best 1/eta of those that have reached the rung so far (the stopping variant
    in section 3.3 of Tune's and Syne Tune's ASHA; early arrivals are judged against few).
    """

    epochs: tuple[int, ...]
    reduction_factor: int
    promote: bool = False
    values: dict[int, dict[int, float]] = field(init=False)  # rung epoch -> trial number -> value
    waiting: dict[int, int] = field(init=False, default_factory=dict)  # number -> its rung's epoch

    def __post_init__(self) -> None:
        self.values = {epoch: {} for epoch in self.epochs}

    @property
    def first(self) -> int:
        """Epochs that a new trial may train."""
        return self.epochs[0]

    def next_rung(self, epoch: int) -> int:
        """The first rung after `epoch`."""
        return next(rung for rung in self.epochs if rung > epoch)

    def restore(self, number: int, values: Iterable[tuple[int, float]]) -> None:
        """Take over a trial's (epoch, value) rows from the record, without deciding anything."""
        for epoch, value in values:
            if epoch in self.values:
                self.values[epoch][number] = value

    def forget(self, number: int) -> None:
        """A trial failed: it takes nobody's place at any rung from now on."""
        for values in self.values.values():
            values.pop(number, None)

    def arrived(self, number: int, epoch: int, value: float) -> int | str:
        """A trial reached its rung: the epoch it may train to, or WAIT, or STOP (last rung too)."""
        self.values[epoch][number] = value
        if epoch == self.epochs[-1]:
            return STOP
        if self.promote:
            self.waiting[number] = epoch
            return WAIT
        # The best 1/eta without sorting them: a rung may hold thousands
        rung, mine = self.values[epoch], (-value, number)
        better = sum((-other, n) < mine for n, other in rung.items())
        goes_on = better < max(1, len(rung) // self.reduction_factor)
        return self.next_rung(epoch) if goes_on else STOP

    def promotable(self, closing: bool = False) -> tuple[int, int] | None:
        """(number, epoch it may train to) of the trial to promote next, from the highest rung down.

        When `closing` (no trial will come any more) the best of a rung goes on even where fewer
        than eta have reached it, unless a trial of that rung has gone on already: so every search
        ends with a network trained to the end.
        """
        for epoch in reversed(self.epochs[:-1] if self.waiting else ()):
            beyond = self.values[self.next_rung(epoch)]
            going_on = any(n not in self.waiting and n not in beyond for n in self.values[epoch])
            for number in self._best(epoch, at_least=int(closing and not beyond and not going_on)):
                if self.waiting.get(number) == epoch:
                    del self.waiting[number]
                    return number, self.next_rung(epoch)
        return None

    def _best(self, epoch: int, at_least: int) -> list[int]:
        """The best 1/eta of a rung, best first; ties go to the earlier trial."""
        rung = self.values[epoch]
        count = max(at_least, len(rung) // self.reduction_factor)
        return sorted(rung, key=lambda number: (-rung[number], number))[:count]
