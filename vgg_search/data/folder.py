"""A folder of class folders: `train/<class>/*` and perhaps `test/<class>/*`, or `<class>/*` alone.

Images of any size, decoded side by side into the cache as squares of one size.
"""

import logging
import os
import stat
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vgg_search.data.decoders import Decoders, Head
from vgg_search.data.decoding import ImageError
from vgg_search.data.own_images import Broken, Collection, OwnImages, check_memory, subset
from vgg_search.data.source import Array, DataError, Reading, Split, as_labels
from vgg_search.space.data_shape import MOST_SIDE

TRAIN, TEST = "train", "test"
BY_THE_SYSTEM = ("thumbs.db", "desktop.ini")  # what Windows leaves; as hidden files, passed over
SAMPLE = 500  # files by which size and channels are guessed
MANY = 2_000  # files, which take seconds

log = logging.getLogger("vgg_search")


class ImageFile(NamedTuple):
    """A file in a class folder, as it was when it was listed."""

    path: str
    size: int
    changed: int
    """ns."""
    name: str
    """Relative to the data set, the same on every machine."""
    label: int
    is_test: bool


class Folder(OwnImages):
    """Class folders at a path."""

    def locate(self, data_dir: str | Path | None, split: Split) -> Path:
        if not os.path.isdir(self.path):  # Path.is_dir raises for a name that is too long
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
        labels, is_test = [file.label for file in files], [file.is_test for file in files]
        files = [files[i] for i in subset(labels, is_test, reading.max_images)]
        if len(files) >= MANY:
            log.warning("decoding %d images of %s, once", len(files), location)
        images, files = _decoded(files, reading, room / "pixels", broken)
        if not files:
            raise DataError(f"{location} must hold images, found none that can be read")
        return Collection(
            classes,
            images,
            as_labels([file.label for file in files]),
            [file.name for file in files],
            np.array([file.is_test for file in files]),
        )


at = Folder  # by which a path becomes a source


def list_images(root: Path, broken: Broken) -> tuple[list[str], list[ImageFile]]:
    """(class names, sorted; their files, by class and name, in no file system's order).

    What is no image by its place goes to `broken`: a folder within a class, a link to nowhere or in
    a circle, what is no file, an image outside of any class, a class without images.
    """
    parts = [part for part in (TRAIN, TEST) if os.path.isdir(root / part)]
    if TRAIN not in parts:
        parts = [""]
    per_part = {part: _class_folders(root / part, broken) for part in parts}
    classes = sorted({name for names in per_part.values() for name in names})
    files: list[ImageFile] = []
    for part, folders in per_part.items():
        for label, name in enumerate(classes):
            own = _files_of(root, folders.get(name), label, part == TEST, broken)
            if not own and part != TEST:
                broken.add(f"{folders.get(name, root / part / name)} must hold images, found none")
            files += own
    kept = sorted({file.label for file in files if not file.is_test})  # what can be learned
    labels = {label: i for i, label in enumerate(kept)}
    files = [file._replace(label=labels[file.label]) for file in files if file.label in labels]
    return [classes[label] for label in kept], files


def _class_folders(folder: Path, broken: Broken) -> dict[str, Path]:
    """The class folders in a folder, by class."""
    found: dict[str, Path] = {}
    for name, entry in _named_entries(folder):
        if os.path.isdir(entry.path):  # entry.is_dir raises for a link in a circle
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
            facts = (entry.path, status.st_size, status.st_mtime_ns)
            files.append(ImageFile(*facts, f"{prefix}/{name}", label, is_test))
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


def _decoded(
    files: list[ImageFile], reading: Reading, pixels: Path, broken: Broken
) -> tuple[Array, list[ImageFile]]:
    """(images, the files that they are of), of those that can be read; `pixels` is a file for them,
    which is gone with this process.

    All heads, which say the size and the channels, are known when all files are read: both are
    guessed from some, and where that was wrong all are read again.
    """
    with Decoders(len(files)) as decoders:
        some = [file[:3] for file in files[:: -(-len(files) // SAMPLE)]]
        shape, wanted = (0, 0), _shape(reading, decoders.decode(some))
        while files and shape != wanted:
            shape = side, channels = wanted
            check_memory(len(files), channels, side)
            pixels.touch()
            heads = decoders.decode([file[:3] for file in files], shape, pixels)
            kept, sound = [], []
            for i, head in enumerate(heads):
                if isinstance(head, ImageError):
                    broken.add(f"{files[i].path} {head}")
                else:
                    kept.append(i)
                    sound.append(head)
            images: Array = np.memmap(
                pixels, np.uint8, "r", shape=(len(files), channels, side, side)
            )
            if len(kept) < len(files):
                images, files = images[np.array(kept, np.intp)], [files[i] for i in kept]
            wanted = _shape(reading, sound)
    pixels.unlink()
    return images, files


def _shape(reading: Reading, heads: Iterable[Head | ImageError]) -> Head:
    """(px, channels) of the squares: what is asked for, else the median of the shorter sides; in
    colour if any image is."""
    sound = [head for head in heads if not isinstance(head, ImageError)] or [(MOST_SIDE, 3)]
    sides, channels = zip(*sound, strict=True)
    return reading.resolution or min(MOST_SIDE, int(np.median(sides))), max(channels)
