"""How many threads a step on the CPU has: all of the process's, or one while others need the cores.

The threads of an operation wait for the last of them, some two hundred times a step, and one whose
core another process uses gets it back after milliseconds. Measured on two cores, images a second of
networks of 8, 59 and 309 MFLOPs: two threads 12,000, 2,250 and 940, one 9,000, 1,390 and 490;
beside one busy process two threads 120, 70 and 52, one 9,500, 1,300 and 440.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

ALONE = 2  # steps by one thread at an epoch's start, whose time tells when more do not pay
SHARE = 8  # at most one step in so many
PATIENCE = 5  # steps in a row that must be slow, for a start of another program is soon over
SLOW = 2  # times what one thread takes; where nobody disturbs, more threads are faster than it


class Threads:
    """The threads of a training's steps, which must not depend on when it was stopped and gone on
    with: where nobody disturbs, the first steps of each epoch have one, all others have `most`."""

    def __init__(self, most: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.most, self.clock = most, clock
        self.alone = float("inf")  # least seconds of a step by one thread
        self.slow = 0  # steps in a row

    @contextmanager
    def epoch(self) -> Iterator[None]:
        """All that the training does in an epoch; after it the process has its threads again."""
        self.slow = 0
        try:
            yield
        finally:
            if self.most > 1:
                torch.set_num_threads(self.most)

    @contextmanager
    def step(self, place: int, steps: int) -> Iterator[None]:
        """The step of that place, from 0, in an epoch of so many steps."""
        if self.most == 1:
            yield
            return
        one = place < min(ALONE, steps // SHARE) or self.slow == PATIENCE
        torch.set_num_threads(1 if one else self.most)
        began = self.clock()
        yield
        seconds = self.clock() - began
        if one:
            self.alone = min(self.alone, seconds)
        else:
            self.slow = self.slow + 1 if seconds > SLOW * self.alone else 0
