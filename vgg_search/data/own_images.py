"""A user's own images: what a folder of class folders and an .npz have in common.

They are read once into the cache, in an order of their content: by label, then by the pixels'
digest, so that every machine and file system has the same. Of images with the same pixels one is
kept, and never on both sides of a split. Where no test split exists one is drawn.
"""

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vgg_search.data import cache
from vgg_search.data.source import (
    Array,
    DataError,
    DatasetInfo,
    LabelledImages,
    Labels,
    Reading,
    Source,
    Split,
    as_labels,
    statistics,
)
from vgg_search.data.splits import stratified_order

TEST_SEED, TEST_PART = 2018, 6  # where no test split exists, one image in so many is drawn
SUBSET_SEED = 2019  # of the images that `max_images` takes
SHARE_OF_MEMORY = 0.4  # that images may take: the driver has them twice, and one copy is shared
_announced: set[str] = set()

log = logging.getLogger("vgg_search")


@dataclass
class Broken:
    """What cannot be used: an error at the first, or counted and left out."""

    skip: bool
    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Raises DataError unless broken files are to be left out."""
        if not self.skip:
            raise DataError(f"{line} (--skip-broken true leaves it out)")
        self.lines.append(line)


@dataclass
class Collection:
    """Images (N, C, H, W) with labels and names, in any order, before they are split."""

    classes: Sequence[str]
    images: Array
    labels: Labels
    names: Sequence[str]
    is_test: npt.NDArray[np.bool_]


class OwnImages(Source):
    """Images at a path."""

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser().absolute()

    @abstractmethod
    def stamp(self, location: Path, reading: Reading) -> Iterable[str]:
        """What changes when the images do: files by path, size and time of change."""

    @abstractmethod
    def collect(self, location: Path, reading: Reading, room: Path, broken: Broken) -> Collection:
        """All images; `room` is a folder for arrays on the way. Raises DataError."""

    def load(self, location: Path, split: Split, reading: Reading) -> LabelledImages:
        files = tuple(self.stamp(location, reading))
        own_size = replace(reading, resolution=None)
        of_own_size, stamp = ((str(location), repr(r), *files) for r in (own_size, reading))
        place = cache.find(of_own_size)
        # What was read at its own size is the same as when asked for at that size
        if not place or reading.resolution not in (None, cache.read(place)[0].shape[-1]):
            place = cache.entry(stamp, partial(self._build, location, reading))
        images, labels, card = cache.read(place)
        for line in card["notes"]:
            # A warning once a process: repeated at each reading, nobody would read it
            log.log(logging.INFO if line in _announced else logging.WARNING, line)
            _announced.add(line)
        info = DatasetInfo(
            name=str(location),
            classes=tuple(card["classes"]),
            mean=tuple(card["mean"]),
            std=tuple(card["std"]),
            side=images.shape[-1],
            drawn_test=card["drawn_test"],
            max_images=reading.max_images,
            skip_broken=reading.skip_broken,
        )
        train = card["train_images"]
        part = slice(None, train) if split == "train" else slice(train, None)
        return LabelledImages(info, images[part], labels[part], tuple(card["notes"]))

    def _build(self, location: Path, reading: Reading, folder: Path) -> dict[str, Any]:
        """Write the arrays, training images first, and return the card."""
        broken = Broken(reading.skip_broken)
        found = self.collect(location, reading, folder, broken)
        order, copies = _without_copies(found, broken)
        given = found.is_test[order]
        test, train = order[given], order[~given]
        notes = [f"{location}: {broken.lines[0]}"] if broken.lines else []
        if len(broken.lines) > 1:
            notes[0] += f", and {len(broken.lines) - 1} more; they are left out"
        if copies:
            notes.append(f"{location}: {copies} copies of other images are left out")
        if not len(test):
            drawn = stratified_order(found.labels[train], TEST_SEED)
            count = max(len(found.classes), len(train) // TEST_PART)
            test, train = train[np.sort(drawn[:count])], train[np.sort(drawn[count:])]
            notes.append(
                f"{location} has no test split: {len(test)} of {len(order)} images were drawn for "
                "it, the same ones each time"
            )
        _check_counts(location, found, train, least=2 + (not given.any()), drawn=test)
        images = cache.new_array(folder / cache.IMAGES, (len(order), *found.images.shape[1:]))
        for target, part in ((images[: len(train)], train), (images[len(train) :], test)):
            for start in range(0, len(part), 1000):
                target[start : start + 1000] = found.images[part[start : start + 1000]]
        np.save(folder / cache.LABELS, as_labels(found.labels[np.concatenate([train, test])]))
        mean, std = statistics(images[: len(train)])
        return {
            "classes": list(found.classes),
            "train_images": len(train),
            "mean": mean,
            "std": std,
            "drawn_test": not given.any(),
            "notes": notes,
        }


def _without_copies(found: Collection, broken: Broken) -> tuple[npt.NDArray[np.intp], int]:
    """(indices in the order of labels and content, one for each different image; how many were
    copies). Of one in both parts that of the test split is kept."""
    digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in found.images]
    order = sorted(
        range(len(digests)),
        key=lambda i: (digests[i], not found.is_test[i], found.labels[i], found.names[i]),
    )
    kept: list[int] = []
    copies = 0
    for i in order:
        twin = kept[-1] if kept and digests[kept[-1]] == digests[i] else None
        if twin is None:
            kept.append(i)
        elif found.labels[twin] != found.labels[i]:
            broken.add(f"{found.names[i]} must be of one class, got a copy: {found.names[twin]}")
        else:
            copies += 1
    kept.sort(key=lambda i: (found.labels[i], digests[i]))
    return np.array(kept, np.intp), copies


def _check_counts(
    location: Path, found: Collection, train: npt.NDArray[np.intp], least: int, drawn: Labels
) -> None:
    """Raise DataError for a class without enough images to train, validate and test on."""
    if len(found.classes) < 2:
        raise DataError(f"{location} must hold >= 2 classes, got {len(found.classes)}")
    part = np.concatenate([train, drawn]) if least > 2 else train
    counts = np.bincount(found.labels[part], minlength=len(found.classes))
    fewest = int(counts.argmin())
    if counts[fewest] < least:
        raise DataError(
            f"{location}: class {found.classes[fewest]} must have >= {least} different images to "
            f"train, validate{' and test' if least > 2 else ''} on, got {counts[fewest]}"
        )


def subset(labels: npt.ArrayLike, is_test: npt.ArrayLike, most: int | None) -> npt.NDArray[np.intp]:
    """Indices of at most so many images, ascending, of each class and part its share."""
    order = stratified_order(2 * np.asarray(labels, np.int64) + np.asarray(is_test), SUBSET_SEED)
    return np.sort(order[:most])


def check_memory(count: int, channels: int, side: int) -> None:
    """Raise DataError for more images than this machine's memory bears."""
    size = count * channels * side**2
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    if size > SHARE_OF_MEMORY * available:
        raise DataError(
            f"images must take <= {SHARE_OF_MEMORY * available / 1e9:.1f} GB of memory, "
            f"got {count:,} of {channels}x{side}x{side}, {size / 1e9:.1f} GB: "
            "lower resolution or max_images"
        )
