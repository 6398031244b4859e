"""How far each trial may train, decided from val_accuracy at its rungs.

ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020,
arXiv:1810.05934). Names of the paper: r = grace_epochs, R = max_epochs, eta = reduction_factor,
rung k at epoch r * eta^k. Pure: numbers come in and epochs go out, so that a resumed study, a
simulation and a real run decide alike.
"""

from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise

from vgg_search.config import Config
from vgg_search.study.pareto import Vector, best_first, dominators

WAIT = "wait"
STOP = "stop"


def rung_epochs(grace_epochs: int, max_epochs: int, reduction_factor: int) -> tuple[int, ...]:
    """Epochs r, r * eta, r * eta^2 ... below R, then R itself."""
    epochs, epoch = [], grace_epochs
    while epoch < max_epochs:
        epochs.append(epoch)
        epoch *= reduction_factor
    return (*epochs, max_epochs)


class Scheduler(ABC):
    """Decides how far each trial trains. To add one: a subclass here, its name in `make_scheduler`
    and in `Config.scheduler`.

    A value is a val_accuracy. With several objectives a trial has `costs` too, the same at each
    epoch. Every decision has to follow from values and costs alone, in the order in which they
    came: a resumed study derives it again.
    """

    epochs: tuple[int, ...]  # the rungs, ascending; the last is max_epochs
    waiting: dict[int, int]  # trials that wait at a rung for promotion -> the rung's epoch

    @property
    @abstractmethod
    def expected_epochs(self) -> float:
        """Mean epochs of a trial, for a forecast of time."""

    @abstractmethod
    def restore(self, number: int, values: Iterable[tuple[int, float]], costs: Vector = ()) -> None:
        """Take over a trial's (epoch, value) pairs from the record, without deciding anything."""

    @abstractmethod
    def forget(self, number: int) -> None:
        """A trial failed: it takes nobody's place at any rung from now on."""

    @abstractmethod
    def arrived(self, number: int, epoch: int, value: float, costs: Vector = ()) -> int | str:
        """A trial reached its rung: the epoch it may train to, or WAIT, or STOP (last rung too)."""

    def next_rung(self, epoch: int) -> int:
        """The first rung after `epoch`."""
        return next(rung for rung in self.epochs if rung > epoch)

    def exempt(self, number: int, epoch: int) -> int:
        """The epoch to which a trial may train that goes on whatever the others' values are."""
        self.waiting.pop(number, None)
        return self.next_rung(epoch)

    def promotable(self, closing: bool = False) -> tuple[int, int] | None:
        """(number, epoch it may train to) of the next trial to promote, which then waits no more.
        `closing`: no new trial will come."""
        return None

    def unpromotable(self, live: Collection[int], to_come: int) -> list[int]:
        """Waiting trials that can never be promoted any more; `live` trials have not ended,
        `to_come` have not begun."""
        return []


@dataclass
class Asha(Scheduler):
    """Successive halving without waiting for a rung to fill.

    With `promote` a trial waits at each rung and the best promotable one goes on when a worker is
    free: Algorithm 2 of the paper. Without, it is decided on arrival and for good: a trial goes on
    if it is among the best 1/eta of those that have reached the rung so far (the stopping variant
    of Tune and Syne Tune; early arrivals are judged against few).

    With several objectives a rung is in the order of `pareto.best_first`: MOASHA.
    """

    epochs: tuple[int, ...]
    reduction_factor: int
    promote: bool = False

    def __post_init__(self) -> None:
        self.waiting = {}
        self.values: dict[int, dict[int, Vector]] = {epoch: {} for epoch in self.epochs}
        # Their numbers, best first: a rung may hold thousands. Ties: first by number
        self._order: dict[int, list[int]] = {epoch: [] for epoch in self.epochs}

    @property
    def expected_epochs(self) -> float:
        return sum(  # one in eta goes on at each rung
            (rung - before) / self.reduction_factor**i
            for i, (before, rung) in enumerate(pairwise((0, *self.epochs)))
        )

    def restore(self, number: int, values: Iterable[tuple[int, float]], costs: Vector = ()) -> None:
        for epoch, value in values:
            if epoch in self.values:
                self._put(number, epoch, (value, *costs))

    def _put(self, number: int, epoch: int, vector: Vector) -> None:
        self._drop(number, epoch)
        here = self.values[epoch]
        here[number] = vector
        if len(vector) > 1:
            self._order[epoch] = best_first(here)
        else:
            insort(self._order[epoch], number, key=lambda n: (-here[n][0], n))

    def _drop(self, number: int, epoch: int) -> None:
        vector = self.values[epoch].pop(number, ())
        if vector:
            self._order[epoch].remove(number)
        if len(vector) > 1:
            self._order[epoch] = best_first(self.values[epoch])

    def forget(self, number: int) -> None:
        for epoch in self.epochs:
            self._drop(number, epoch)

    def arrived(self, number: int, epoch: int, value: float, costs: Vector = ()) -> int | str:
        self._put(number, epoch, (value, *costs))
        if epoch == self.epochs[-1]:
            return STOP
        if self.promote:
            self.waiting[number] = epoch
            return WAIT
        order = self._order[epoch]
        goes_on = order.index(number) < max(1, len(order) // self.reduction_factor)
        return self.next_rung(epoch) if goes_on else STOP

    def promotable(self, closing: bool = False) -> tuple[int, int] | None:
        """From the highest rung down, the best of those that wait.

        When `closing`, the best of a rung goes on even where fewer than eta have reached it: so
        every search ends with its best network trained to the end, and not with a worse one that
        was exempt.
        """
        for epoch in reversed(self.epochs[:-1] if self.waiting else ()):
            order = self._order[epoch]
            for number in order[: max(len(order) // self.reduction_factor, int(closing))]:
                if self.waiting.get(number) == epoch:
                    del self.waiting[number]
                    return number, self.next_rung(epoch)
        return None

    def unpromotable(self, live: Collection[int], to_come: int) -> list[int]:
        """Waiting trials that are not among the best 1/eta of their rung even if every trial that
        can still arrive there is worse.

        n arrivals have floor(n / eta) places; n can grow by the `live` trials that are not at the
        rung yet and by those `to_come`. None before a trial has reached R: until then `closing`
        may promote. With several objectives an arrival may change the order before it, but never
        takes a trial past those that dominate it.
        """
        ended: list[int] = []
        for epoch in self.epochs[:-1] if self.values[self.epochs[-1]] and self.waiting else ():
            order, here = self._order[epoch], self.values[epoch]
            most = len(order) + to_come
            if most // self.reduction_factor < len(order):  # else all have a place
                most += len({*live}.difference(ended, here))
                places = max(1, most // self.reduction_factor)
                beyond = [n for n in order[places:] if self.waiting.get(n) == epoch]
                if beyond and len(here[beyond[0]]) > 1:
                    above = dominators(here)
                    beyond = [n for n in beyond if above[n] >= places]
                ended += beyond
        return ended


def make_scheduler(config: Config) -> Scheduler:
    """The experiment's scheduler. `none` has one rung: max_epochs."""
    kind, eta = config.scheduler, config.reduction_factor
    first = config.max_epochs if kind == "none" else config.grace_epochs
    return Asha(rung_epochs(first, config.max_epochs, eta), eta, promote=kind == "asha-promote")
