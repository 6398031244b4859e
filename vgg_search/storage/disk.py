"""When the disk takes no more: what is wrong with it, told from the error that it led to."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vgg_search.errors import SearchError, causes
from vgg_search.storage.addresses import resume_command
from vgg_search.storage.folder import CONFIG, JOURNAL

# Of an OSError, what a disk does that takes no more
DISK_FAULTS = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full as far as this user's quota goes",
    errno.EFBIG: "takes no file that is as large",
    errno.EROFS: "is read-only",
    errno.EIO: "cannot be read or written",
}
SQLITE_FAULTS = {
    "SQLITE_FULL": errno.ENOSPC,
    "SQLITE_READONLY": errno.EROFS,
    "SQLITE_IOERR": errno.EIO,
    "SQLITE_CANTOPEN": errno.EIO,
}


def disk_fault(error: BaseException | None, folder: Path) -> str | None:
    """What is wrong with the disk that `folder` is on, in a line, if that is why `error` came, or
    one that it came from."""
    for cause in causes(error):
        number = getattr(cause, "errno", None)
        if name := getattr(cause, "sqlite_errorname", None):
            number = next((n for kind, n in SQLITE_FAULTS.items() if name.startswith(kind)), None)
        texts = (n for n in DISK_FAULTS if os.strerror(n) in str(cause))  # as a worker tells it
        if (number := number if number in DISK_FAULTS else next(texts, None)) is not None:
            where = getattr(cause, "filename", None)
            if not isinstance(where, str):  # it may be in the text of a worker's
                named = re.search(rf"{os.strerror(number)}: '(.+?)'", str(cause))
                where = named[1] if named else folder
            return _disk_line(number, Path(where).absolute())
    return None


def _disk_line(number: int, folder: Path) -> str:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    disk = next(parent for parent in (there, *there.parents) if os.path.ismount(parent))
    state, fault = os.statvfs(there), DISK_FAULTS[number]
    if state.f_flag & os.ST_RDONLY:
        fault = DISK_FAULTS[errno.EROFS]
    elif state.f_files and not state.f_favail:
        fault = "has no room for another file (no inode is free)"
    return f"the disk at {disk}, where {folder} is, {fault}"


@contextmanager
def disk_watched(folder: Path, storage_path: str | None = None) -> Iterator[None]:
    """An error that its disk is to blame for says so in a line, of a search (which has
    a `storage_path`) with the way to go on."""
    try:
        yield
    except Exception as error:
        missing = [str(c.filename) for c in causes(error) if isinstance(c, FileNotFoundError)]
        if any(name.startswith(f"{folder}/") for name in missing):
            for gone, sign in ((folder, folder / CONFIG), (folder / JOURNAL, folder / JOURNAL)):
                if not sign.exists():
                    raise SearchError(f"{gone} was removed while it was worked in") from error
        if (fault := disk_fault(error, folder)) is None:
            raise
        if storage_path is None:
            raise SearchError(fault) from error
        again = "start again"
        if (folder / CONFIG).exists():
            again = f"go on with {resume_command(folder.name, storage_path)}"
        raise SearchError(f"{fault}: once it takes files again, {again}") from error
