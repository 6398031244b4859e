"""The names of what lies in a run folder, and the lock of the driver that works in it."""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from vgg_search.errors import InputError

RUNS = "runs"  # where run folders are by default, and those of studies in a bucket
CONFIG, JOURNAL, OUTBOX, LOG = "config.yaml", "study.journal", "outbox.db", "log.txt"
OUTBOX_LOCK = "outbox.lock"
SUMMARY, TRIALS_TABLE, EPOCHS_TABLE = "summary.json", "trials.csv", "epochs.csv"
REPORT, PLOTS = "report.html", "plots"
RESULTS = (
    REPORT,
    PLOTS,
    TRIALS_TABLE,
    EPOCHS_TABLE,
    SUMMARY,
    JOURNAL,
)  # sent at the end
WORST_IMAGES, WORST_COLUMNS = "worst.png", 5  # a contact sheet, so many pictures side by side
TRIALS, BEST, LAST = "trials", "best", "last.pt"  # trials/<number>/last.pt, trials/<number>/best/
CHAMPION, WEIGHTS, CARD = "champion", "model.safetensors", "model.json"
LOCK = ".driver.lock"


class FolderInUseError(InputError):
    def __init__(self, folder: Path) -> None:
        super().__init__(f"study {folder.name} is in use by a running search")


def expanded(path: str) -> str:
    """A path as the user wrote it, with the home for a ~ at its beginning: no shell expands that of
    a file, a variable or --flag=~/x. Raises ValueError if there is no such home."""
    place = os.path.expanduser(path)
    if place.startswith("~"):
        raise ValueError("be a folder; of ~ there is no home here (a folder of that name is ./~)")
    return place


def plain_name(text: str, default: str) -> str:
    """A user's text as the name of a file or folder: letters, digits, '.', '_' and '-', the first
    a letter or digit; `default` if nothing is left. Two texts can have the same."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:80]
    return re.sub(r"^[^A-Za-z0-9]+", "", name) or default


def is_remote(storage_path: str | Path) -> bool:
    """Whether run folders are in a bucket (s3://...), not in a folder."""
    return "://" in str(storage_path)


def local_folder(storage_path: str | Path, name: str) -> Path:
    """The run folder on the driver's disk."""
    return Path(RUNS if is_remote(storage_path) else storage_path, name)


def new_name(stem: str, storage_path: str | Path) -> str:
    """A study's name that nobody has: the stem and the time, to the microsecond, for another search
    may start in the same second."""
    while True:
        name = f"{stem[:77]}-{datetime.now():%Y%m%d-%H%M%S.%f}"  # 100 characters at most
        if not local_folder(storage_path, name).exists():
            return name


def trial_folder(number: int | str) -> str:
    """Where the checkpoints of a trial are, relative to the run folder."""
    return f"{TRIALS}/{number}"


def champion_folder(folder: Path, place: int = 1) -> Path:
    """Where a run folder has its champion, or the second, third... of several."""
    return folder / (CHAMPION if place == 1 else f"{CHAMPION}-{place}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path` that takes its place, at once, if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class FolderLock:
    """Held while a driver works in a run folder; the kernel releases it however the driver ends."""

    def __init__(self, folder: Path) -> None:
        """Raises FolderInUseError if another process holds the folder."""
        self._file: IO[str] = (folder / LOCK).open("a")
        for seconds in (0.0, 0.1):  # `in_use` takes it for an instant
            time.sleep(seconds)
            with suppress(BlockingIOError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
        self._file.close()
        raise FolderInUseError(folder)

    def release(self) -> None:
        self._file.close()


def in_use(folder: Path) -> bool:
    """Whether a driver works in the folder now."""
    try:
        with (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError) as error:
        return isinstance(error, BlockingIOError)
    return False
