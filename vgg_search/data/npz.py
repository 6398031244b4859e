"""An .npz with `x_train, y_train`, perhaps `x_test, y_test`, and perhaps `classes`, their names.

Images are uint8, (N, H, W) or (N, H, W, C) or (N, C, H, W) with 1 or 3 channels; labels are
integers from 0 on.
"""

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vgg_search.data.decoding import as_planes
from vgg_search.data.own_images import Broken, Collection, OwnImages, check_memory, subset
from vgg_search.data.source import Array, DataError, Labels, Reading, Split, as_labels
from vgg_search.space.data_shape import MOST_SIDE

SUFFIX = ".npz"
KEYS = ("x_train", "y_train", "x_test", "y_test", "classes")


class Npz(OwnImages):
    """Arrays in a file."""

    def locate(self, data_dir: str | Path | None, split: Split) -> Path:
        if not os.path.isfile(self.path):  # Path.is_file raises for a name that is too long
            raise DataError(f"dataset must be an {SUFFIX} file, got {self.path}")
        return self.path

    def stamp(self, location: Path, reading: Reading) -> Iterable[str]:
        status = location.stat()
        return [f"{status.st_size} {status.st_mtime_ns}"]

    def collect(self, location: Path, reading: Reading, room: Path, broken: Broken) -> Collection:
        arrays = _read(location)
        parts = [_checked(location, arrays, part) for part in ("train", "test")]
        shapes = {images.shape[1:] for images, _ in parts if len(images)}
        if len(shapes) > 1:
            raise DataError(f"{location}: x_test must be images like x_train's, got {shapes}")
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        is_test = np.arange(len(labels)) >= len(parts[0][0])
        kept = subset(labels, is_test, reading.max_images)
        if len(kept) < len(labels):
            images, labels, is_test = images[kept], labels[kept], is_test[kept]
        names = [f"{location} image {i}" for i in kept]
        classes = _class_names(location, arrays, parts[0][1], parts[1][1])
        return Collection(classes, squares(images, reading.resolution), labels, names, is_test)


at = Npz  # by which a path becomes a source


def _read(location: Path) -> dict[str, Any]:
    """The arrays, none larger than memory bears: what is packed small may be large."""
    try:
        with zipfile.ZipFile(location) as archive:
            size = sum(member.file_size for member in archive.infolist())
        check_memory(size, 1, 1)
        with np.load(location, allow_pickle=False) as file:
            return {key: file[key] for key in KEYS if key in file.files}
    except DataError as error:
        raise DataError(f"{location}: {error}") from error
    except OSError as error:
        raise DataError(f"{location} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # of damaged archives zipfile, zlib and NumPy make many kinds
        rule = f"{location} must be a whole {SUFFIX} file of plain arrays"
        raise DataError(f"{rule}: {error}") from error


def _checked(location: Path, arrays: dict[str, Any], part: str) -> tuple[Array, Labels]:
    """Images (N, C, H, W) and labels (N,) of a part; of a test part that is not there, none."""
    x, y = f"x_{part}", f"y_{part}"
    lacking = [key for key in (x, y) if key not in arrays]
    if len(lacking) == 2 and part == "test":
        images, _ = _checked(location, arrays, "train")
        return images[:0], np.zeros(0, np.uint8)
    if lacking:
        raise DataError(f"{location} must hold {lacking[0]}, got only {', '.join(arrays)}")
    images, labels = arrays[x], arrays[y]
    if images.dtype != np.uint8:
        rule = f"{location}: {x} must be uint8 (0 to 255)"
        hint = "; multiply by 255 what lies in [0, 1]" if images.dtype.kind == "f" else ""
        raise DataError(f"{rule}, got {images.dtype}{hint}")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in (1, 3):
        images = np.moveaxis(images, 3, 1)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise DataError(
            f"{location}: {x} must be (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 "
            f"channels, got {arrays[x].shape}"
        )
    labels = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise DataError(
            f"{location}: {y} must be {len(images)} integers, got {labels.dtype} {labels.shape}"
        )
    if len(labels) and labels.min() < 0:
        raise DataError(f"{location}: {y} must be >= 0, got {labels.min()}")
    return images, as_labels(labels)


def _class_names(location: Path, arrays: dict[str, Any], train: Labels, test: Labels) -> list[str]:
    """Of the file, or the labels' numbers. Raises DataError for a label without a name, or a test
    label that no training image has."""
    count = int(train.max()) + 1 if len(train) else 0
    if "classes" in arrays:
        names = [str(name) for name in arrays["classes"]]
        if count > len(names):
            raise DataError(f"{location}: y_train must be < {len(names)}, got {count - 1}")
        count = len(names)
    else:
        names = list(map(str, range(min(count, len(train) + 1))))
        if count > len(train):  # some class has no image, and the names would fill the memory
            raise DataError(f"{location}: y_train must use each number from 0 on, got {count - 1}")
    if len(test) and test.max() >= count:
        raise DataError(f"{location}: y_test must be < {count}, got {test.max()}")
    return names


def squares(images: Array, resolution: int | None) -> Array:
    """The middle squares of images (N, C, H, W), as they are but no larger than `resolution` px, or
    without one MOST_SIDE."""
    side = min(*images.shape[2:], resolution or MOST_SIDE)
    if images.shape[2:] == (side, side):
        return images
    made = np.empty((*images.shape[:2], side, side), np.uint8)
    for image, target in zip(images, made, strict=True):
        pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, 2)
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        target[:] = as_planes(ImageOps.fit(picture, (side, side)))
    return made
