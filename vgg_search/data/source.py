"""What a data set is to the rest of the package: the base class of the files beside this one."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from vgg_search.errors import InputError

Array = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer]
Split = Literal["train", "test"]
DATA_DIR = "VGG_SEARCH_DATA_DIR"  # names a folder with data


class DataError(InputError):
    """The data is missing or damaged, or cannot be split as asked; one line for the user."""


class UnavailableError(DataError):
    """The data is not on this machine and could not be downloaded; nobody named a folder for it."""


@dataclass(frozen=True)
class DatasetInfo:
    """What a network needs to know of the images that it is trained on, and used for."""

    name: str
    """By which they are found again: of a table, or a path."""
    classes: tuple[str, ...]
    """By label."""
    mean: tuple[float, ...]
    """Of the training images' pixels, scaled to [0, 1], a number a channel; so is `std`."""
    std: tuple[float, ...]
    side: int = 28
    """px; all images are squares."""
    flip: bool = True
    """Whether an image and its mirror image show the same: not so for digits and letters."""
    light_on_dark: bool = False
    """Whether they show single light things on black, as a scan or a catalogue's photo inverted."""
    drawn_test: bool = False
    """Whether the test split was drawn from images that came without one."""
    max_images: int | None = None
    skip_broken: bool = False
    """As in `Reading`."""

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (red, green, blue)."""
        return len(self.mean)

    @property
    def reading(self) -> "Reading":
        """How to read the same images again."""
        return Reading(self.side, self.max_images, self.skip_broken)


def unknown(channels: int) -> DatasetInfo:
    """Of images that no data set describes, such as noise: used as fractions in [0, 1]."""
    return DatasetInfo("unknown", (), (0.0,) * channels, (1.0,) * channels)


@dataclass(frozen=True)
class Reading:
    """How images are read that are not of one size, whole and ready."""

    resolution: int | None = None
    """px that the user asks for; None: the images' own, at most MOST_SIDE."""
    max_images: int | None = None
    """At most so many are read, training and test images together; None: all."""
    skip_broken: bool = False
    """Leave out what cannot be read and say how many, instead of an error."""


class LabelledImages(NamedTuple):
    """A split: images (N, C, H, W) uint8, C-contiguous, and labels (N,), in a fixed order."""

    info: DatasetInfo
    images: Array
    labels: Labels
    notes: tuple[str, ...] = ()
    """What a user should know of how they were read."""


class Source(ABC):
    """One data set: what it is, where its files are, and how they are read."""

    is_sample: ClassVar[bool] = False
    """Whether it is a small part of a data set: sizes are then cut to what it holds."""

    @abstractmethod
    def locate(self, data_dir: str | Path | None, split: Split) -> Path:
        """Where the files of a split are, which are not read; downloaded if they can be.

        Raises DataError if the folder that the user named lacks them, UnavailableError if none was
        named and they cannot be had.
        """

    @abstractmethod
    def load(self, location: Path, split: Split, reading: Reading) -> LabelledImages:
        """A split. `location` is what `locate` returned; nothing is written there.

        Raises DataError naming a file that cannot be read, or is not what was published.
        """


def statistics(images: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of each channel of (N, C, H, W), scaled to [0, 1], 4 digits."""
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256)
        for part in np.array_split(images, max(1, len(images) // 10_000)):
            counts += np.bincount(part[:, channel].ravel(), minlength=256)
        values = np.arange(256) / 255
        mean = float(np.average(values, weights=counts))
        deviation = float(np.average((values - mean) ** 2, weights=counts)) ** 0.5
        means.append(round(mean, 4))
        deviations.append(round(deviation, 4) or 1.0)  # of images that are all the same
    return tuple(means), tuple(deviations)


def as_labels(labels: Sequence[int] | npt.NDArray[np.generic]) -> Labels:
    """Labels (N,) in the smallest type that holds them: uint8 up to 256 classes, else int64."""
    array = np.asarray(labels)
    return array.astype(np.uint8 if array.size == 0 or array.max() < 256 else np.int64)
