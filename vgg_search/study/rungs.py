"""Rungs and decisions: how far each trial may train, decided from val_accuracy at its rungs.

ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020,
arXiv:1810.05934). Names of the paper: r = grace_epochs, R = max_epochs, eta = reduction_factor,
rung k at epoch r * eta^(k + s), with s = 0 except in Hyperband's brackets. Pure: it is told numbers
and answers with epochs, so that a resumed study, a simulation and a real run decide alike.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from vgg_search.config import Config

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
    # The same best first, as (-value, number): a rung may hold thousands. Ties: the earlier trial
    _order: dict[int, list[tuple[float, int]]] = field(init=False)

    def __post_init__(self) -> None:
        self.values = {epoch: {} for epoch in self.epochs}
        self._order = {epoch: [] for epoch in self.epochs}

    def first(self, number: int) -> int:
        """Epochs that the new trial `number` may train."""
        return self.epochs[0]

    @property
    def expected_epochs(self) -> float:
        """Mean epochs of a trial, if one in eta goes on at each rung."""
        return sum(
            (rung - before) / self.reduction_factor**i
            for i, (before, rung) in enumerate(pairwise((0, *self.epochs)))
        )

    def next_rung(self, epoch: int) -> int:
        """The first rung after `epoch`."""
        return next(rung for rung in self.epochs if rung > epoch)

    def let_on(self, number: int, epoch: int) -> int:
        """The epoch that a trial may train to which goes on whatever the others say."""
        self.waiting.pop(number, None)
        return self.next_rung(epoch)

    def restore(self, number: int, values: Iterable[tuple[int, float]]) -> None:
        """Take over a trial's (epoch, value) rows from the record, without deciding anything."""
        for epoch, value in values:
            if epoch in self.values:
                self._put(number, epoch, value)

    def _put(self, number: int, epoch: int, value: float) -> None:
        self._drop(number, epoch)
        self.values[epoch][number] = value
        insort(self._order[epoch], (-value, number))

    def _drop(self, number: int, epoch: int) -> None:
        value, order = self.values[epoch].pop(number, None), self._order[epoch]
        if value is not None:
            del order[bisect_left(order, (-value, number))]

    def forget(self, number: int) -> None:
        """A trial failed: it takes nobody's place at any rung from now on."""
        for epoch in self.epochs:
            self._drop(number, epoch)

    def arrived(self, number: int, epoch: int, value: float) -> int | str:
        """A trial reached its rung: the epoch it may train to, or WAIT, or STOP (last rung too)."""
        self._put(number, epoch, value)
        if epoch == self.epochs[-1]:
            return STOP
        if self.promote:
            self.waiting[number] = epoch
            return WAIT
        order = self._order[epoch]
        better = bisect_left(order, (-value, number))
        goes_on = better < max(1, len(order) // self.reduction_factor)
        return self.next_rung(epoch) if goes_on else STOP

    def promotable(self, closing: bool = False) -> tuple[int, int] | None:
        """(number, epoch it may train to) of the trial to promote next, from the highest rung down.

        When `closing` (no trial will come any more) the best of a rung goes on even where fewer
        than eta have reached it, unless a trial of that rung has gone on already: so every search
        ends with a network trained to the end.
        """
        for epoch in reversed(self.epochs[:-1] if self.waiting else ()):
            order, beyond = self._order[epoch], self.values[self.next_rung(epoch)]
            places = len(order) // self.reduction_factor
            if closing and not places and not beyond:
                places = int(all(number in self.waiting for _, number in order))
            for _, number in order[:places]:
                if self.waiting.get(number) == epoch:
                    del self.waiting[number]
                    return number, self.next_rung(epoch)
        return None

    def hopeless(self, live: Collection[int], to_come: int) -> list[int]:
        """Waiting trials that no arrival can lift among the best 1/eta of their rung any more.

        `live` trials have not ended, `to_come` have not begun; at most these still arrive. Places
        at a rung are floor(n / eta) of n arrivals, and the best that can happen to a trial is that
        all who still come are worse: out are those who stand no higher than that. This is asked
        once a trial has reached R, when `closing` has no say any more. A place that somebody loses
        later by failing goes to those who still wait, not to those told so.
        """
        out: list[int] = []
        for epoch in self.epochs[:-1] if self.values[self.epochs[-1]] and self.waiting else ():
            order, here = self._order[epoch], self.values[epoch]
            most = len(order) + to_come
            if most // self.reduction_factor < len(order):  # else nobody is out, which is cheap
                most += sum(number not in here for number in {*live}.difference(out))
                lost = order[most // self.reduction_factor :]
                out += [number for _, number in lost if self.waiting.get(number) == epoch]
        return out


class Hyperband:
    """ASHA brackets s = 0, 1, ... side by side, of which bracket s has its first rung at r * eta^s.

    Hyperband (Li et al., JMLR 18, 2018, arXiv:1603.06560) hedges against first rungs that say
    little. With s_max + 1 brackets, s gets eta^(s_max - s) * (s_max + 1) / (s_max - s + 1) trials
    of each round (its Algorithm 1 counts s the other way round), which is about the same number of
    epochs each. Trials take turns by their number; no bracket waits for another.
    """

    def __init__(self, epochs: tuple[int, ...], reduction_factor: int) -> None:
        self.brackets = [Scheduler(epochs[s:], reduction_factor) for s in range(len(epochs))]
        count, eta = len(epochs), reduction_factor
        self._turns: list[Scheduler] = []
        for left, bracket in zip(reversed(range(count)), self.brackets, strict=True):
            self._turns += [bracket] * -(-(eta**left) * count // (left + 1))
        self.waiting: dict[int, int] = {}  # nobody does

    def _of(self, number: int) -> Scheduler:
        return self._turns[number % len(self._turns)]

    def first(self, number: int) -> int:
        return self._of(number).first(number)

    @property
    def expected_epochs(self) -> float:
        return sum(bracket.expected_epochs for bracket in self._turns) / len(self._turns)

    def restore(self, number: int, values: Iterable[tuple[int, float]]) -> None:
        self._of(number).restore(number, values)

    def forget(self, number: int) -> None:
        self._of(number).forget(number)

    def arrived(self, number: int, epoch: int, value: float) -> int | str:
        return self._of(number).arrived(number, epoch, value)

    def let_on(self, number: int, epoch: int) -> int:
        return self._of(number).let_on(number, epoch)

    def promotable(self, closing: bool = False) -> None:
        return None

    def hopeless(self, live: Collection[int], to_come: int) -> list[int]:
        return []


def make_scheduler(config: Config) -> Scheduler | Hyperband:
    """The experiment's scheduler."""
    kind, eta = config.scheduler, config.reduction_factor
    first = config.max_epochs if kind == "none" else config.grace_epochs
    epochs = rung_epochs(first, config.max_epochs, eta)
    if kind == "hyperband":
        return Hyperband(epochs, eta)
    return Scheduler(epochs, eta, promote=kind == "asha-promote")
