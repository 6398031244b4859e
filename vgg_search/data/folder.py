"""A folder of class folders: `train/<class>/*` and perhaps `test/<class>/*`, or `<class>/*` alone.

Images of any size, decoded side by side into the cache as squares of one size.
"""

import os
import stat
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vgg_search.data.decoding import ImageError, read_square, size_and_channels
from vgg_search.data.own_images import (
    SUBSET_SEED,
    Broken,
    Collection,
    OwnImages,
    check_memory,
)
from vgg_search.data.source import DataError, Reading, Split, as_labels
from vgg_search.data.splits import stratified_order
from vgg_search.machine import cores
from vgg_search.space.data_shape import MOST_SIDE

TRAIN, TEST = "train", "test"
BY_THE_SYSTEM = ("thumbs.db", "desktop.ini")  # what Windows leaves; as hidden files, passed over
SHOWN_FROM = 2_000  # files, for which a progress bar is worth its lines


class ImageFile(NamedTuple):
    """A file in a class folder, as it was when it was listed."""

    path: str
    name: str
    """Relative to the data set, the same on every machine."""
    label: int
    is_test: bool
    size: int
    changed: int
    """ns."""


class Folder(OwnImages):
    """Class folders at a path."""

    def locate(self, data_dir: str | Path | None, split: Split) -> Path:
        if not self.path.is_dir():
            raise DataError(f"dataset must be a folder of class folders, got {self.path}")
        return self.path

    def stamp(self, location: Path, reading: Reading) -> Iterable[str]:
        broken = Broken(skip=True)
        _, files = list_images(location, broken)
        yield from broken.lines
        yield from (f"{f.name} {f.size} {f.changed}" for f in files)

    def collect(self, location: Path, reading: Reading, room: Path, broken: Broken) -> Collection:
        classes, files = list_images(location, broken)
        if len(classes) < 2:
            raise DataError(f"{location} must hold >= 2 folders of a class each, got {classes}")
        if reading.max_images and len(files) > reading.max_images:
            parts = as_labels([2 * file.label + file.is_test for file in files])
            files = [files[i] for i in stratified_order(parts, SUBSET_SEED)[: reading.max_images]]
        files, heads = _each(
            files, lambda file: size_and_channels(file.path), "reading sizes", broken
        )
        if not files:
            raise DataError(f"{location} must hold images, found none that can be read")
        sides, channels = zip(*heads, strict=True)
        side = reading.resolution or min(MOST_SIDE, int(np.median(sides)))
        check_memory(len(files), max(channels), side)
        shape = (len(files), max(channels), side, side)
        images = np.lib.format.open_memmap(room / "decoded.npy", "w+", np.uint8, shape)
        (room / "decoded.npy").unlink()  # it is gone with this process

        rows = {file.name: i for i, file in enumerate(files)}

        def decode(file: ImageFile) -> int:
            images[rows[file.name]] = read_square(file.path, side, shape[1])
            status = os.stat(file.path)
            if (status.st_size, status.st_mtime_ns) != (file.size, file.changed):
                raise ImageError("must stay as it is while it is read, and has changed")
            return rows[file.name]

        files, kept = _each(files, decode, "decoding", broken)
        return Collection(
            classes,
            images if len(kept) == len(images) else images[np.array(kept)],
            as_labels([file.label for file in files]),
            [file.name for file in files],
            np.array([file.is_test for file in files]),
        )


def at(path: str) -> Folder:
    return Folder(path)


def list_images(root: Path, broken: Broken) -> tuple[list[str], list[ImageFile]]:
    """(class names, sorted; their files, by class and name, in no file system's order).

    What is no image by its place goes to `broken`: a folder within a class, a link to nowhere or in
    a circle, what is no file, an image outside of any class, a class without images.
    """
    parts = [part for part in (TRAIN, TEST) if (root / part).is_dir()]
    if TRAIN not in parts:
        parts = [""]
    per_part = {part: _class_folders(root / part, broken) for part in parts}
    classes = sorted({name for names in per_part.values() for name in names})
    files: list[ImageFile] = []
    for part, folders in per_part.items():
        for label, name in enumerate(classes):
            own = _files_of(root, folders[name], label, part == TEST, broken)
            if not own and part != TEST:
                broken.add(f"{folders.get(name, root / part / name)} must hold images, found none")
            files += own
    with_images = sorted({classes[file.label] for file in files})
    if with_images != classes:
        labels = {name: i for i, name in enumerate(with_images)}
        files = [file._replace(label=labels[classes[file.label]]) for file in files]
    return with_images, files


def _class_folders(folder: Path, broken: Broken) -> dict[str, Path]:
    """The class folders in a folder, by class."""
    found: dict[str, Path] = {}
    for name, entry in _named_entries(folder):
        if entry.is_dir():
            found[name] = Path(entry.path)
        elif entry.name.lower().endswith((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")):
            broken.add(f"{entry.path} must lie in the folder of its class")
    return found


def _files_of(
    root: Path, folder: Path | None, label: int, is_test: bool, broken: Broken
) -> list[ImageFile]:
    files = []
    prefix = unicodedata.normalize("NFC", folder.relative_to(root).as_posix()) if folder else ""
    for name, entry in _named_entries(folder) if folder else ():
        try:
            status = entry.stat()
        except OSError as error:  # a link to nowhere, or in a circle
            broken.add(f"{entry.path} cannot be read: {error.strerror}")
            continue
        if stat.S_ISDIR(status.st_mode):
            broken.add(f"{entry.path} must be an image, got a folder in a class folder")
        elif not stat.S_ISREG(status.st_mode):
            broken.add(f"{entry.path} must be a file")
        else:
            facts = (status.st_size, status.st_mtime_ns)
            files.append(ImageFile(entry.path, f"{prefix}/{name}", label, is_test, *facts))
    return files


def _named_entries(folder: Path) -> list[tuple[str, os.DirEntry[str]]]:
    """What lies in a folder, sorted by name, as every system writes it, without what systems hide
    or leave. Raises DataError."""
    try:
        with os.scandir(folder) as entries:
            shown = {
                unicodedata.normalize("NFC", entry.name): entry
                for entry in entries
                if not entry.name.startswith(".") and entry.name.lower() not in BY_THE_SYSTEM
            }
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    return sorted(shown.items())


def _each(
    files: Sequence[ImageFile], work: Callable[[ImageFile], Any], title: str, broken: Broken
) -> tuple[list[ImageFile], list[Any]]:
    """The files on which `work` succeeds and what it returns, in order; by as many threads as
    there are cores, for Pillow decodes outside of Python's lock."""

    def attempt(file: ImageFile) -> Any:
        try:
            if not file.size:
                raise ImageError("must be an image, got an empty file")
            return work(file)
        except ImageError as error:
            return error

    from rich.progress import track  # heavy, for what is seen once a data set

    kept, results = [], []
    with warnings.catch_warnings(), ThreadPoolExecutor(cores()) as pool:
        warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata, large images
        answers: Iterable[Any] = pool.map(attempt, files)
        if len(files) >= SHOWN_FROM:
            answers = track(answers, title, len(files), transient=True)
        for file, answer in zip(files, answers, strict=True):
            if isinstance(answer, ImageError):
                broken.add(f"{file.path} {answer}")
                continue
            kept.append(file)
            results.append(answer)
    return kept, results
