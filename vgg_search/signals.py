"""How a search is stopped: in order by the first Ctrl-C or SIGTERM, at once by a second."""

import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vgg_search.study.study import Study

STOPS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """What stops a search, while it is entered; true once a signal came.

    The first ends the process as long as there is nothing to be left in order, with exit code 128 +
    its number; from `stop(study)` on it tells the study to stop.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.study: Study | None = None

    def __enter__(self) -> "Signals":
        self._before = {number: signal.getsignal(number) for number in STOPS}
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return bool(self.received)

    def take(self) -> None:
        """To be called again after `ray.init`, which sets handlers of its own."""
        for number in STOPS:
            signal.signal(number, self._handle)

    def stop(self, study: "Study") -> None:
        """From now on a signal stops the study; so does one that was lost in a destructor."""
        self.study = study
        study.stopping = bool(self)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self:
            os._exit(128 + number)
        self.received.append(number)
        if self.study is None:
            sys.exit(128 + number)
        self.study.stopping = True
