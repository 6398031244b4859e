"""How a search is stopped: in order by the first Ctrl-C or SIGTERM, at once by a second; and who
says so where it is ended in a way that no process survives."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vgg_search.study.study import Study

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# The pipe's other end closes with the process that has it; what is written there is a farewell
WITNESS = 'read -r farewell || printf "%s\\n" "$1" >&2'


class StopSignals:
    """Handles SIGINT and SIGTERM while it is entered; true once one came.

    The first stops the attached study in order. While there is no study there is nothing to be
    left in order: the process ends, with exit code 128 + the signal's number. So does it with the
    second signal. In Python (`in_python`) the process is not ours to end: KeyboardInterrupt is
    raised instead, and SIGTERM is left to whoever has it. Outside of the main thread, where Python
    allows no handlers, nothing is handled.
    """

    def __init__(self, in_python: bool = False) -> None:
        self.in_python = in_python
        self.numbers = SIGNALS[:1] if in_python else SIGNALS
        self.received: list[int] = []
        self.study: Study | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            # Ray sets handlers of its own, for SIGTERM too
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self.install()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self and self.study is None and isinstance(error, Exception):
            # What `_handle` raised, in the middle of a library that made an error of its own of it
            raise self._ending(self.received[0]) from error
        by_ray = isinstance(error, SystemExit) and error.code == signal.SIGTERM
        if by_ray and not self.in_python:  # its handler, in `ray.init`, makes that the exit code
            raise self._ending(signal.SIGTERM) from error

    def __bool__(self) -> bool:
        return bool(self.received)

    def install(self) -> None:
        """To be called again after `ray.init`, which sets handlers of its own."""
        if self._before:
            for number in self.numbers:
                signal.signal(number, self._handle)

    def attach(self, study: "Study") -> None:
        """From now on a signal stops the study; so does one whose exception went no further, as
        one that is raised in a destructor."""
        self.study = study
        study.stopping = bool(self)

    def _handle(self, number: int, _: FrameType | None) -> None:
        again = bool(self)
        self.received.append(number)
        if self.study is not None and not again:
            self.study.stopping = True
        elif again and not self.in_python:
            os._exit(128 + number)
        else:
            raise self._ending(number)

    def _ending(self, number: int) -> BaseException:
        return KeyboardInterrupt() if self.in_python else SystemExit(128 + number)


@contextmanager
def told_if_killed(line: str) -> Iterator[None]:
    """If this process ends within the block, a shell beside it prints `line` on stderr: after
    kill -9, where memory ran out, where Ray has ended a driver that lost its raylet."""
    command = ["/bin/sh", "-c", WITNESS, "sh", line]
    # In a session of its own: Ctrl-C in a terminal does not reach it
    witness = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        witness.communicate(b"\n")
