"""Training, validation and test images of a data set.

`load_splits` gives training and validation, both from the training split; the test split is read
by `load_test` alone.
"""

import hashlib
import logging
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vgg_search.config import Config
from vgg_search.data.source import (
    DATA_DIR,
    Array,
    DataError,
    DatasetInfo,
    Labels,
    Reading,
    Source,
    Split,
    UnavailableError,
)
from vgg_search.records import AUTO, DATASETS, OWN, OWN_FILE, OWN_FOLDER
from vgg_search.space.data_shape import DataShape

SPLIT_SEED = 2017
# Held out for validation where nothing is asked for: so many, or of a small set one in so many
VAL_IMAGES, VAL_PART = 10_000, 6
AUTO_ORDER = ("fashion-mnist", "sample")  # what "auto" tries
USING_SAMPLE = "USING THE BUNDLED SAMPLE, NOT THE WHOLE OF FASHION-MNIST"
_sample_announced = False

log = logging.getLogger("vgg_search")


@dataclass(frozen=True, eq=False)
class Splits:
    """Training and validation images (N, C, H, W) uint8 with labels (N,), C-contiguous."""

    info: DatasetInfo
    digest: str
    """Of the whole training split, so the same however it is cut: sha256, first 16 hex digits."""
    train_images: Array
    train_labels: Labels
    val_images: Array
    val_labels: Labels
    notes: tuple[str, ...] = ()
    """What a user should know of how they were read."""

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.info.name

    @property
    def shape(self) -> DataShape:
        """What a network and its training have to know of them."""
        info, counts = self.info, (len(self.train_labels), len(self.val_labels))
        return DataShape(info.side, info.channels, len(info.classes), info.flip, *counts)

    def whole(self) -> tuple[Array, Labels]:
        """Training and validation together, for the champion."""
        return (
            np.concatenate([self.train_images, self.val_images]),
            np.concatenate([self.train_labels, self.val_labels]),
        )


def load(config: Config) -> tuple[Config, Splits]:
    """The experiment with what its data settles, and training and validation images.

    Raises DataError, and ConfigError for what cannot be done at the images' resolution.
    """
    reading = Reading(config.resolution, config.max_images, config.skip_broken)
    splits = load_splits(
        config.dataset, config.data_dir, config.val_images, config.train_images, reading
    )
    return config.for_data(splits.shape), splits


def load_splits(
    dataset: str = AUTO,
    data_dir: str | Path | None = None,
    val_images: int | None = None,
    train_images: int | None = None,
    reading: Reading = Reading(),  # noqa: B008  frozen
) -> Splits:
    """Training and validation images, both from the training split, stratified.

    The order of the images is drawn once, by a seed of its own: validation is its first
    `val_images` (None: VAL_IMAGES, or one in VAL_PART of fewer), training the next
    `train_images` (None: all the rest), so that a smaller validation or training set is part of a
    larger one. With the bundled sample both are cut to what it holds. Raises DataError.
    """
    source, location, reason = _locate(dataset, data_dir, "train")
    info, images, labels, notes = source.load(location, "train", reading)
    total, least = len(labels), len(info.classes)
    share = max(least, min(VAL_IMAGES, total // VAL_PART))
    val_images = share if val_images is None else val_images
    if source.is_sample:
        val_images = min(val_images, share)
        if train_images is not None:
            train_images = min(train_images, total - val_images)
        counts = f"{total:,} training images, {val_images:,} of them for validation"
        _announce_sample(counts, reason)
    _check_count("val_images", val_images, least, total - least)
    if train_images is not None:
        _check_count("train_images", train_images, least, total - val_images)
    order = stratified_order(labels, SPLIT_SEED)
    val, train = order[:val_images], order[val_images:][:train_images]
    digest = hashlib.sha256(images.data)
    digest.update(labels.data)
    return Splits(
        info,
        digest.hexdigest()[:16],
        *(images[train], labels[train]),
        *(images[val], labels[val]),
        (USING_SAMPLE,) if source.is_sample else notes,
    )


def load_test(
    dataset: str,
    data_dir: str | Path | None = None,
    reading: Reading = Reading(),  # noqa: B008  frozen
    digest: str | None = None,
) -> tuple[Array, Labels]:
    """Test images (N, C, H, W) and labels (N,), in the files' order: the only way to them.

    `digest` is of the training split that a network has seen: a test split that was drawn from the
    same images as another training split would hold some of those. Raises DataError.
    """
    source, location, reason = _locate(dataset, data_dir, "test")
    info, images, labels, _ = source.load(location, "test", reading)
    if digest and info.drawn_test:
        now = load_splits(dataset, data_dir, reading=reading).digest
        if now != digest:
            raise DataError(
                f"{dataset} must be what the network was trained on ({digest}), got {now}: the "
                "test split that is drawn from it holds other images now"
            )
    if source.is_sample:
        _announce_sample(f"{len(labels):,} test images", reason)
    return images, labels


def check_test(dataset: str, data_dir: str | Path | None = None) -> None:
    """Raise DataError if the test split is not there; it is not read.

    A search calls this at its start: a missing test split must be known before hours are spent.
    """
    _locate(dataset, data_dir, "test")


def stratified_order(labels: Labels, seed: int) -> npt.NDArray[np.intp]:
    """A random order of the images in which every prefix is stratified.

    Each class is spread evenly over the order: with classes of one size, their counts in any
    prefix differ by at most one, and the first images are one of each class. Only the raw words of
    the bit generator are used, whose stream NumPy never changes (NEP 19), so that studies made with
    two versions stay comparable.
    """
    shuffled = np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")
    position = np.empty(len(labels))
    by_class = np.argsort(labels[shuffled], kind="stable")
    starts = np.flatnonzero(np.diff(labels[shuffled][by_class], prepend=-1))
    for members in np.split(by_class, starts[1:]):
        position[members] = np.arange(len(members)) / len(members)
    return shuffled[np.argsort(position, kind="stable")]


def _locate(dataset: str, data_dir: str | Path | None, split: Split) -> tuple[Source, Path, str]:
    """The source of a data set's name, where its split is, and why it is this source.

    "auto" is the first of AUTO_ORDER that can be had. A folder that the user named is never passed
    over in silence, not even by "auto".
    """
    reason = f"dataset is {dataset}"
    for name in AUTO_ORDER if dataset == AUTO else (dataset,):
        source = _source(name)
        try:
            return source, source.locate(data_dir, split), reason
        except UnavailableError as error:
            reason = f"{error}; data_dir or {DATA_DIR} can name a folder that holds the data"
    raise DataError(f"{dataset} is not here: {reason}")


def _source(name: str) -> Source:
    if name in DATASETS:
        sources: dict[str, Source] = import_module(f"{__package__}.{DATASETS[name]}").SOURCES
        return sources[name]
    kind = OWN_FILE if name.endswith(OWN_FILE) else OWN_FOLDER
    source: Source = import_module(f"{__package__}.{OWN[kind]}").at(name)
    return source


def _announce_sample(counts: str, reason: str) -> None:
    """A warning once a process: repeated at each reading, nobody would read it."""
    global _sample_announced
    level = logging.INFO if _sample_announced else logging.WARNING
    log.log(level, "%s: %s (%s)", USING_SAMPLE, counts, reason)
    _sample_announced = True


def _check_count(field: str, value: int, least: int, most: int) -> None:
    if value < least:
        raise DataError(f"{field} must be >= {least}, got {value}")
    if value > most:
        raise DataError(f"{field} must be <= {most}, got {value}")
