"""What a data set is to the rest of the package: the base class of the files beside this one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from vgg_search.errors import InputError

Array = npt.NDArray[np.uint8]
Split = Literal["train", "test"]


class DataError(InputError):
    """The data is missing or damaged, or cannot be split as asked; one line for the user."""


class UnavailableError(DataError):
    """The data is not on this machine and could not be downloaded; nobody named a folder for it."""


@dataclass(frozen=True)
class DatasetInfo:
    """What a network needs to know of the images that it is trained on, and used for."""

    name: str
    classes: tuple[str, ...]
    """By label."""
    channels: int
    mean: float
    """Of the training images' pixels, scaled to [0, 1]; so is `std`."""
    std: float


# Images that no data set describes, such as noise: used as fractions in [0, 1]
UNKNOWN = DatasetInfo("unknown", (), 1, mean=0.0, std=1.0)


class Source(ABC):
    """One data set: what it is, where its files are, and how they are read."""

    info: ClassVar[DatasetInfo]
    is_sample: ClassVar[bool] = False
    """Whether it is a small part of a data set: sizes are then cut to what it holds."""

    @abstractmethod
    def locate(self, data_dir: str | Path | None, split: Split) -> Path:
        """Where the files of a split are, which are not read; downloaded if they can be.

        Raises DataError if the folder that the user named lacks them, UnavailableError if none was
        named and they cannot be had.
        """

    @abstractmethod
    def load(self, location: Path, split: Split) -> tuple[Array, Array]:
        """Images (N, H, W) and labels (N,), C-contiguous and writable, in the files' order.

        `location` is what `locate` returned; nothing is written there. Raises DataError naming a
        file that cannot be read, or is not what was published.
        """
