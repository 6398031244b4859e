"""Images that were decoded once: arrays on disk, mapped into memory by every process that reads
them, each entry whole or not there at all.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from vgg_search.data.source import Array, DataError, Labels
from vgg_search.machine import cache_folder

MOST_BYTES = 20 * 10**9  # of all entries; the least recently used go first
VERSION = "1"  # of how images are decoded and stored
UNFINISHED = ".part"
IMAGES, LABELS, CARD = "images.npy", "labels.npy", "card.json"
DIGEST = "sha256"  # on the card, of the card and the arrays

log = logging.getLogger("vgg_search")


def entry(stamp: Iterable[str], build: Callable[[Path], dict[str, Any]]) -> Path:
    """The folder of what `build(folder)` wrote there: IMAGES, LABELS, and the card it returns.

    `stamp` says what the arrays are made from: files by path, size and time of change, and how they
    are read. Of several processes one builds and the others wait. Raises DataError.
    """
    place = _place(stamp)
    folder = place.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(place.with_suffix(".lock")):
            if not _is_sound(place):
                shutil.rmtree(place, ignore_errors=True)
                _make(place, build)
                _make_room(place)
            os.utime(place)
    except OSError as error:
        hint = "XDG_CACHE_HOME can name a folder that has room"
        raise DataError(f"{folder} cannot be written: {error.strerror or error}; {hint}") from error
    return place


def find(stamp: Iterable[str]) -> Path | None:
    """The folder of an entry that is there and sound."""
    place = _place(stamp)
    if not _is_sound(place):
        return None
    with suppress(OSError):  # a disk that only reads
        os.utime(place)
    return place


def _place(stamp: Iterable[str]) -> Path:
    text = "\n".join((VERSION, *stamp)).encode("utf-8", "surrogateescape")
    return cache_folder() / "images" / hashlib.sha256(text).hexdigest()


def new_array(file: Path, shape: tuple[int, ...]) -> Array:
    """Of bytes in a new .npy, mapped into memory. A disk that has no room for them is an OSError
    now, not the end of the process that writes to them later."""
    images: Array = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return images


def read(place: Path) -> tuple[Array, Labels, dict[str, Any]]:
    """(images, mapped into memory, labels, card) of an entry."""
    images = np.load(place / IMAGES, mmap_mode="r")
    return images, np.load(place / LABELS), json.loads((place / CARD).read_text())


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(place: Path, build: Callable[[Path], dict[str, Any]]) -> None:
    unfinished = place.with_suffix(UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    try:
        card = build(unfinished)
        digest = {DIGEST: _digest(unfinished, card)}
        (unfinished / CARD).write_text(json.dumps(card | digest))
        unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _is_sound(place: Path) -> bool:
    """Whether the entry is there and all of it is as it was written."""
    try:
        card = dict(json.loads((place / CARD).read_text()))
        return bool(card.pop(DIGEST) == _digest(place, card))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(place: Path, card: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(card).encode() + (place / LABELS).read_bytes())
    with (place / IMAGES).open("rb") as file:
        while part := file.read(2**24):
            digest.update(part)
    return digest.hexdigest()


def _make_room(newest: Path) -> None:
    """Remove what was not used for longest until the cache holds MOST_BYTES or one entry."""
    folder = newest.parent
    sizes = {
        place: sum(file.stat().st_size for file in place.iterdir())
        for place in folder.iterdir()
        if place.is_dir() and place.suffix != UNFINISHED
    }
    for place in sorted(sizes, key=lambda place: place.stat().st_mtime):
        if place != newest and sum(sizes.values()) > MOST_BYTES:
            shutil.rmtree(place, ignore_errors=True)  # who has it mapped keeps it
            del sizes[place]
    log.info(
        "decoded images are kept, %.1f MB of these, %.1f MB in all (at most %.0f MB): rm -r %s",
        sizes[newest] / 1e6,
        sum(sizes.values()) / 1e6,
        MOST_BYTES / 1e6,
        folder,
    )
