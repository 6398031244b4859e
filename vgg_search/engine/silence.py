"""Workers that say nothing, without being dead: stopped, or hung in a driver or a file system.

Ray notices the processes that end, and no others.
"""

import time
from collections.abc import Iterable

from vgg_search.records import EpochRow

LEAST_SECONDS = 60.0  # of silence; a first epoch also loads libraries and data
EPOCHS = 10  # as long as so many epochs of this network should take at most
LOOK_SECONDS = 5.0  # a longer time between two looks is one in which the driver itself was stopped


class Silence:
    """How long each segment at work has said nothing, beside what its epochs should take.

    An epoch's time is that of the slowest so far, by FLOPs of the network's forward pass: before
    the first one nothing is known, and no silence is too long.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}  # of silence, by segment
        self._flops: dict[str, int] = {}
        self._seconds_per_flop = 0.0  # of an epoch, the slowest so far
        self._last_look = time.monotonic()

    def began(self, segment: str, flops: int) -> None:
        self._seconds[segment], self._flops[segment] = 0.0, flops

    def heard(self, segment: str, rows: Iterable[EpochRow]) -> None:
        self._seconds[segment] = 0.0
        for row in rows:
            seconds = row["epoch_seconds"] / self._flops[segment]
            self._seconds_per_flop = max(self._seconds_per_flop, seconds)

    def ended(self, segment: str) -> None:
        del self._seconds[segment], self._flops[segment]

    def too_long(self) -> set[str]:
        """Segments that have said nothing for longer than they may. To be called often."""
        now = time.monotonic()
        elapsed, self._last_look = min(now - self._last_look, LOOK_SECONDS), now
        for segment in self._seconds:
            self._seconds[segment] += elapsed
        if not self._seconds_per_flop:
            return set()
        return {
            segment
            for segment, seconds in self._seconds.items()
            if seconds > max(LEAST_SECONDS, EPOCHS * self._seconds_per_flop * self._flops[segment])
        }
