"""The journal as a file whose lines are known to be as they were written.

JSON lines as Optuna's own backend writes them, with a checksum in each that covers the line and, by
the one before, all before it: a disk or a hand that changes, removes or swaps lines is noticed. A
line without one, as older versions and other programs write them, is taken as it is.
"""

import json
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from vgg_search.errors import InputError

CHECKSUM = "checksum"  # key of a line


class JournalDamagedError(InputError):
    def __init__(self, path: Path, line: int, fault: str) -> None:
        super().__init__(
            f"line {line} of {path} {fault}; restore the file from a copy (MLflow has one of a "
            "study that has ended), or go on from what is before that line: "
            f"head -n {line - 1} {path} > good && mv good {path}"
        )


class JournalFile(JournalFileBackend):
    """Raises JournalDamagedError, at reading."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._line, self._checksum = 0, 0  # the last that was read, and of all up to it

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Optuna reads what it has appended before it appends more."""
        checksum, checked = self._checksum, []
        for log in logs:
            checksum = _checksum(log, checksum)
            checked.append(log | {CHECKSUM: checksum})
        super().append_logs(checked)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        if log_number_from != self._line:  # only where it stopped are the sums known
            self._line = self._checksum = 0
        try:
            for log in super().read_logs(self._line):
                told, before = log.pop(CHECKSUM, None), self._checksum
                if told is not None and told != (before := _checksum(log, before)):
                    raise JournalDamagedError(
                        self._path, self._line + 1, "is not as it was written"
                    )
                self._line, self._checksum = self._line + 1, before
                if self._line > log_number_from:
                    yield log
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise JournalDamagedError(self._path, self._line + 1, "is no JSON") from error


def _checksum(log: dict[str, Any], before: int) -> int:
    return zlib.crc32(json.dumps(log).encode(), before)
