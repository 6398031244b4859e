"""The journal as a file whose lines are known to be as they were written.

JSON lines as Optuna's own backend writes them, with a checksum in each that covers the line and, by
the one before, all before it: a disk or a hand that changes, removes or swaps lines is noticed. A
line without one, as older versions and other programs write them, is taken as it is.
"""

import json
import os
import time
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from vgg_search.errors import InputError

CHECKSUM = "checksum"  # key of a line
SYNC_SECONDS = 1.0  # between two lines after which the file is made sure to be on the disk


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
        self._file_lock = JournalFileSymlinkLock(str(path))
        super().__init__(str(path), self._file_lock)
        self._path, self._synced = path, -SYNC_SECONDS
        self._line, self._checksum = 0, 0  # the last that was read, and of all up to it

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Optuna reads what it has appended before it appends more.

        It would also sync the disk after each of a trial's 37 lines: of the driver's time that was
        nine tenths. A line is the kernel's once it is written, whatever becomes of the process; a
        power failure may take what came after the last sync, and the search goes on before it.
        """
        checksum, lines = self._checksum, []
        for log in logs:
            checksum = _checksum(log, checksum)
            lines.append(json.dumps(log | {CHECKSUM: checksum}, separators=(",", ":")) + "\n")
        self._file_lock.acquire()
        try:
            with self._path.open("ab") as file:
                file.write("".join(lines).encode())
                file.flush()
                if (now := time.monotonic()) >= self._synced + SYNC_SECONDS:
                    os.fsync(file.fileno())
                    self._synced = now
        finally:
            self._file_lock.release()

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
