"""Searches on a virtual clock: the product's, and other libraries' by their own ask and tell.

Whoever searches is real (`Study` with its scheduler and journal, or a class of `peers.py`); only
workers are not. Each takes the values of its trainings from a world, such as `curve_model.py`, and
needs as long for an epoch as that world says. Events come in the order of that clock, so a search
that never waits for all of its workers is given what that is worth.
"""

import heapq
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from record_curves import experiment

from vgg_search.records import METRIC, diverged
from vgg_search.study.segment import Segment
from vgg_search.study.study import Study

STARTUP = 0.1  # seconds before a worker trains another trial than its last, as in real runs
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


class World(Protocol):
    """What trainings would say."""

    space: Any  # as `vgg_search.space.search_space.Space`
    epochs: int  # of a whole training
    best: float  # a value without noise that hardly any configuration has

    def value(self, candidate: Any, seed: int, epoch: int) -> float: ...
    def true(self, candidate: Any) -> float: ...
    def seconds(self, candidate: Any) -> float: ...


class Searcher(Protocol):
    """Who decides what is trained."""

    def ask(self) -> Segment | None:
        """The next work; None until running work has brought something."""

    def tell(self, segment: Segment, epoch: int, value: float) -> bool:
        """A training's value (NaN: lost). Whether the same worker goes on with it at once."""


@dataclass
class Trace:
    """Each change of the incumbent: (epochs, seconds, trials, observed, true) at that moment.

    The incumbent is what the search would hand over: the configuration with the best value that was
    observed, after whatever epoch. `cpu` are seconds that the searcher itself took.
    """

    changes: list[tuple[int, float, int, float, float]] = field(default_factory=list)
    epochs: int = 0
    seconds: float = 0.0
    trials: int = 0
    cpu: float = 0.0


class Ours:
    """The product's study as a searcher."""

    def __init__(self, study: Study, world: World) -> None:
        self.study, self.world = study, world

    def ask(self) -> Segment | None:
        segment = self.study.propose()
        return segment if isinstance(segment, Segment) else None

    def tell(self, segment: Segment, epoch: int, value: float) -> bool:
        loss = 1.0 if math.isfinite(value) else math.nan
        row: Any = {"epoch": epoch, "train_loss": loss, "val_loss": loss, METRIC: value}
        row["epoch_seconds"] = self.world.seconds(segment.candidate)
        self.study.report(segment.number, row)
        if diverged(row) or epoch == segment.until:
            self.study.segment_ended(segment.number, "diverged" if diverged(row) else "reached")
            return False
        return True


@contextmanager
def opened(seed: int, space: Any = None, **fields: Any) -> Iterator[Study]:
    """A study as a real run has it, in memory where there is room for files."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        config = experiment(seed=seed, num_trials=1_000_000, **fields)
        study = Study(Path(folder), config, space=space)
        study.open()
        yield study
        study.release()


def simulate(searcher: Searcher, world: World, workers: int, budget: int) -> Trace:
    """Search until `budget` epochs are trained, or nothing is left to train."""
    trace, order = Trace(), count()
    busy: list[tuple[float, int, Segment, int]] = []  # (when its epoch ends, _, segment, epoch)
    just_ended, best = -1, -math.inf  # best: value of the incumbent, as observed
    while trace.epochs < budget:
        began = time.process_time()
        while len(busy) < workers and (segment := searcher.ask()):
            trace.trials += segment.known == 0
            start = STARTUP if segment.number != just_ended else 0.0
            ends = trace.seconds + start + world.seconds(segment.candidate)
            heapq.heappush(busy, (ends, next(order), segment, segment.known + 1))
            just_ended = -1
        trace.cpu += time.process_time() - began
        if not busy:
            break
        trace.seconds, _, segment, epoch = heapq.heappop(busy)
        value = world.value(segment.candidate, segment.seed, epoch)
        trace.epochs += 1
        if value > best:  # no NaN is
            best = value
            spent = trace.epochs, trace.seconds, trace.trials
            trace.changes.append((*spent, value, world.true(segment.candidate)))
        began = time.process_time()
        goes_on = searcher.tell(segment, epoch, value)
        trace.cpu += time.process_time() - began
        if goes_on:
            ends = trace.seconds + world.seconds(segment.candidate)
            heapq.heappush(busy, (ends, next(order), segment, epoch + 1))
        else:
            just_ended = segment.number
    return trace
