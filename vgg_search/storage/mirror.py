"""The driver's files of a study that has a bucket: copied there, and brought from there.

The run folder, whose journal is the record, stays on the driver's disk. A driver on another machine
goes on from the copy, seconds behind, or some times what a copy takes; epochs that a checkpoint has
and the record lacks are reported from it.
"""

import logging
import os
import platform
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

from vgg_search.storage.folder import (
    BEST,
    JOURNAL,
    LAST,
    OUTBOX,
    TRIALS,
    FolderInUseError,
    trial_folder,
)
from vgg_search.storage.place import Place, StorageError

DRIVER = ".driver"  # in the bucket while a driver works, written again and again
COPY_SECONDS = 3.0  # between two copies, and two signs of life
PAUSES = 4  # as long as a copy took: of a long record it takes a fifth of the time, and no more
ALIVE_SECONDS = 12.0  # a driver that has not written for so long is gone
# The bucket's; a file that was there is not any more; no room for the outbox's copy
COPY_ERRORS = StorageError, OSError, sqlite3.Error

log = logging.getLogger("vgg_search")


def _is_last(file: Path) -> bool:
    """Whether it is a trial's last checkpoint, also a half-written one of a killed worker."""
    return file.name.startswith(f"{Path(LAST).stem}.")


def bring(place: Place, folder: Path) -> None:
    """Bring a study's run folder from the bucket, if what is there is ahead of what is here.

    The checkpoints of the best come along; the others stay where the workers find them.
    """
    files = place.files()
    journal, here = files.get(JOURNAL), folder / JOURNAL
    if journal is None or (here.exists() and here.stat().st_size >= journal.size):
        return
    live = {name.rsplit("/", 1)[0] for name in files if _is_last(Path(name))}
    for suffix in ("-wal", "-shm"):  # SQLite would apply those of the old outbox to the new one
        (folder / f"{OUTBOX}{suffix}").unlink(missing_ok=True)
    # The journal comes last: until all the rest is here, what is there is ahead
    for name in sorted(files, key=lambda name: name == JOURNAL):
        trial, best, _ = name.partition(f"/{BEST}/")
        skipped = name.startswith(f"{TRIALS}/") and (not best or trial in live)
        if not skipped and not name.startswith(DRIVER):
            place.get(name, folder / name)


class Checkpoints:
    """The checkpoints of finished trials, as the driver keeps or removes them: in a folder that
    workers and driver share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def numbers(self) -> set[int]:
        """Trials that have a checkpoint of any kind."""
        return _numbers(file.relative_to(self.folder) for file in self.folder.glob(f"{TRIALS}/*"))

    def is_kept(self, number: int) -> bool:
        """Whether `keep` has been called for a finished trial, and `drop` has not."""
        folder = self.folder / trial_folder(number)
        return (folder / BEST).exists() and not any(map(_is_last, folder.glob("*")))

    def keep(self, number: int) -> Path:
        """Keep a trial's best checkpoint, in the folder returned, and not its last."""
        folder = self.folder / trial_folder(number)
        for file in filter(_is_last, folder.glob("*")):
            file.unlink()
        return folder / BEST

    def drop(self, number: int) -> None:
        """Remove a trial's checkpoints."""
        shutil.rmtree(self.folder / trial_folder(number), ignore_errors=True)

    def claim(self) -> None:
        """Make sure that no other driver copies, if anything is copied."""

    def start(self) -> None:
        """Begin to copy what has to be copied."""

    def stop(self) -> None:
        """Copy the end, if anything is copied."""


def _numbers(names: Iterable[Path]) -> set[int]:
    """Of trials/<number> and what is in it."""
    return {int(name.parts[1]) for name in names if name.parts[1].isdigit()}


class Mirror(Checkpoints):
    """A run folder whose study has a bucket. A thread copies it there, every few seconds and at the
    end; an outage is reported once and survived. Checkpoints in the bucket are removed once the
    record that gives them up is there."""

    def __init__(self, folder: Path, place: Place) -> None:
        super().__init__(folder)
        self.place = place
        self.sign = f"{DRIVER}/{platform.node()}-{os.getpid()}"
        self._removals: list[str] = []
        self._copied: dict[str, tuple[int, ...]] = {}
        self._ended, self._left = threading.Event(), threading.Event()
        self._copier = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._signer = threading.Thread(target=self._live, name="sign of life", daemon=True)

    def numbers(self) -> set[int]:
        return super().numbers() | _numbers(map(Path, self.place.files(TRIALS)))

    def keep(self, number: int) -> Path:
        folder, best = trial_folder(number), f"{trial_folder(number)}/{BEST}"
        try:
            for name in self.place.files(best):
                self.place.get(name, self.folder / name)
        except StorageError as error:
            log.warning("the best checkpoint of trial %d was not kept: %s", number, error)
        self._removals.append(f"{folder}/{LAST}")
        return self.folder / best

    def drop(self, number: int) -> None:
        super().drop(number)
        self._removals.append(trial_folder(number))

    def claim(self) -> None:
        """Take the bucket's copy over. Raises FolderInUseError if a live driver writes to it.

        A bucket has no lock. Whoever begins puts a sign there and then looks for others': of two
        that see each other the one whose sign comes first goes on, once the other has gone.
        """
        before = self.place.files(DRIVER)
        if before:
            time.sleep(ALIVE_SECONDS)
            after = self.place.files(DRIVER)
            if any(after[name].mtime_ns != before[name].mtime_ns for name in before.keys() & after):
                raise FolderInUseError(self.folder)
            self.place.remove(DRIVER)
        self._sign()
        if (others := self._others()) and min(others) > self.sign:
            time.sleep(COPY_SECONDS)
            others = self._others()
        if others:
            self.place.remove(self.sign)
            raise FolderInUseError(self.folder)
        self._signer.start()

    def start(self) -> None:
        """Copy a first time, before MLflow has a run: the outbox's id is there, by which a driver
        that goes on from the copy finds them all."""
        self.copy()
        self._copier.start()

    def _sign(self) -> None:
        """The driver's sign of life."""
        self.place.put(Path(os.devnull), self.sign)  # its name and time say it

    def _others(self) -> set[str]:
        return self.place.files(DRIVER).keys() - {self.sign}

    def stop(self) -> None:
        """Copy a last time and leave the bucket to others."""
        self._ended.set()
        try:
            if self._copier.ident is not None:  # it was started
                self._copier.join()
                self.copy()
        except COPY_ERRORS as error:
            log.warning("%s; the last of the run folder is here only", error)
        finally:
            self._left.set()
        self._signer.join()
        with suppress(StorageError, OSError):
            self.place.remove(DRIVER)

    def _live(self) -> None:
        """Sign again and again, also while a file takes longer than ALIVE_SECONDS."""
        while not self._left.wait(COPY_SECONDS):
            with suppress(StorageError, OSError):  # the copies say so
                self._sign()

    def _run(self) -> None:
        failing, pause = False, COPY_SECONDS
        while not self._ended.wait(pause):
            began = time.monotonic()
            try:
                self.copy()
                failing = False
            except COPY_ERRORS as error:
                if not failing:
                    log.warning("%s; the run folder is copied when it can be", error)
                failing = True
            pause = max(COPY_SECONDS, PAUSES * (time.monotonic() - began))

    def copy(self) -> None:
        """One round: the record, the rest, then the removals."""
        removals = self._removals[:]  # of what a record that is at least this old gives up
        with tempfile.TemporaryDirectory(prefix="vgg_search-") as scratch:
            # The journal before the outbox: what MLflow is to get is then never behind it
            for file in sorted(self.folder.rglob("*"), key=lambda file: file.name != JOURNAL):
                self._copy(file, Path(scratch))
        for name in removals:
            self.place.remove(name)
        del self._removals[: len(removals)]

    def _copy(self, file: Path, scratch: Path) -> None:
        name = file.relative_to(self.folder).as_posix()
        skipped = file.name.startswith((".", f"{OUTBOX}-")) or name.startswith(f"{TRIALS}/")
        if skipped or not file.is_file():
            return
        # SQLite writes to a log beside the file first
        parts = [p for p in (file, file.with_name(f"{file.name}-wal")) if p.exists()]
        state = tuple(value for p in parts for value in (p.stat().st_mtime_ns, p.stat().st_size))
        if self._copied.get(name) == state:
            return
        if name == OUTBOX:
            with closing(sqlite3.connect(file)) as source:
                file = scratch / OUTBOX
                with closing(sqlite3.connect(file)) as copy:
                    source.backup(copy)
        self.place.put(file, name)
        self._copied[name] = state
