"""The journal as a file whose lines are known to be as they were written.

JSON lines as Optuna's own backend writes them, with a checksum at the end of each that covers the
line and, by the one before, all before it: a disk or a hand that changes, removes or swaps lines is
noticed. A line without one, as older versions and other programs write them, is taken as it is.
"""

import json
import os
import time
import zlib
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock

from vgg_search.errors import InputError

CHECKSUM = b',"crc32":'  # before the checksum, of what is before this
BATCH = 500  # lines that are decoded at once, in half of the time
SYNC_SECONDS = 1.0  # between two lines after which the file is made sure to be on the disk


class JournalDamagedError(InputError):
    def __init__(self, path: Path, line: int, fault: str) -> None:
        super().__init__(
            f"line {line} of {path} {fault}; restore the file from a copy (MLflow has one of a "
            "study that has ended), or go on from what is before that line: "
            f"head -n {line - 1} {path} > good && mv good {path}"
        )


def _existing(path: str, flags: int) -> int:
    """Opens no file anew: a journal that was removed is not begun again in the middle."""
    return os.open(path, flags & ~os.O_CREAT)


class JournalFile(BaseJournalBackend):
    """Raises JournalDamagedError, at reading."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, JournalFileSymlinkLock(str(path))
        self._synced = -SYNC_SECONDS
        self._line = self._offset = self._checksum = 0  # of all that was read
        if not path.exists():  # what exists may be on a disk that only reads
            path.touch()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Optuna reads what it has appended before it appends more.

        Its own backend syncs the disk after each of a trial's 37 lines: of the driver's time that
        was nine tenths. A line is the kernel's once it is written, whatever becomes of the process;
        a power failure may take what came after the last sync, and the search goes on before it.
        """
        checksum, lines = self._checksum, []
        for log in logs:
            line = json.dumps(log, separators=(",", ":")).encode()[:-1]
            checksum = zlib.crc32(line, checksum)
            lines.append(b"%s%s%d}\n" % (line, CHECKSUM, checksum))
        self._lock.acquire()
        try:
            with open(self._path, "ab", opener=_existing) as file:
                file.writelines(lines)
                file.flush()
                if (now := time.monotonic()) >= self._synced + SYNC_SECONDS:
                    os.fsync(file.fileno())
                    self._synced = now
        finally:
            self._lock.release()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        if log_number_from != self._line:  # only where it stopped are the sums known
            self._line = self._offset = self._checksum = 0
        for text in self._texts():
            if self._line > log_number_from:
                yield self._log(text)

    def logs_without(self, beginnings: tuple[bytes, ...]) -> Iterator[dict[str, Any]]:
        """All logs but those of lines that begin so, which are checked and not decoded."""
        self._line = self._offset = self._checksum = 0
        texts = (text for text in self._texts() if not text.startswith(beginnings))
        try:
            while batch := list(islice(texts, BATCH)):
                yield from json.loads(b"[%s]" % b",".join(batch))
        except (ValueError, JournalDamagedError):
            yield from self.read_logs(0)  # which names the first such line

    def _texts(self) -> Iterator[bytes]:
        """The JSON of each line after the last that was read, which is then the last."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # another process is writing it
                text, mark, told = line.rpartition(CHECKSUM)
                if mark:
                    self._checksum = zlib.crc32(text, self._checksum)
                self._line, self._offset = self._line + 1, self._offset + len(line)
                if mark and told != b"%d}\n" % self._checksum:
                    raise JournalDamagedError(self._path, self._line, "is not as it was written")
                yield text + b"}" if mark else line

    def _log(self, text: bytes) -> dict[str, Any]:
        """What the line that was read last says."""
        try:
            log: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise JournalDamagedError(self._path, self._line, "is no JSON") from error
        return log
