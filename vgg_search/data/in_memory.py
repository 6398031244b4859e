"""Images that a Python program has in memory, kept as an .npz, so that a study that is resumed and
a champion that is tested find them again.
"""

import hashlib
from typing import Any

import numpy as np

from vgg_search.data.decoding import GREY_MODES, ImageError, flattened
from vgg_search.data.npz import KEYS, SUFFIX
from vgg_search.data.source import DataError
from vgg_search.machine import cache_folder
from vgg_search.storage.folder import replacing

RULE = "dataset must be a name, a path, (x_train, y_train), (x_train, y_train, x_test, y_test)"
RULE += ", a Dataset or (training Dataset, test Dataset)"


def keep(dataset: Any) -> str:
    """The path of an .npz with arrays, tensors or the items of torchvision-style data sets, by
    their content. Raises DataError."""
    arrays = _arrays(dataset)
    digest = hashlib.sha256()
    for key, array in arrays.items():
        digest.update(f"{key} {array.dtype} {array.shape}".encode() + array.tobytes())
    path = cache_folder() / "arrays" / f"{digest.hexdigest()[:32]}{SUFFIX}"
    if not path.exists():
        try:
            with replacing(path) as temporary:
                np.savez(temporary, **arrays)  # type: ignore[arg-type]  # of other names
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
    return str(path)


def _arrays(dataset: Any) -> dict[str, np.ndarray]:
    """By the names that an .npz has for them."""
    parts = dataset if isinstance(dataset, tuple | list) else (dataset,)
    arrays: list[Any]
    if len(parts) in (1, 2) and all(map(_is_dataset, parts)):
        arrays = [array for part in parts for array in _items(part)]
    elif len(parts) in (2, 4) and not any(map(_is_dataset, parts)):
        arrays = [part.detach().cpu() if hasattr(part, "detach") else part for part in parts]
    else:
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise DataError(f"{RULE}, got ({kinds})")
    try:
        named = dict(zip(KEYS, map(np.asarray, arrays), strict=False))
    except ValueError as error:  # of lists of several lengths
        raise DataError(f"{RULE}, got what is no array: {error}") from error
    classes = getattr(parts[0], "classes", None)
    if classes is not None and len(classes):
        named["classes"] = np.array(list(map(str, classes)))
    return named


def _is_dataset(part: Any) -> bool:
    """Whether it has items, and is no array, tensor or list of labels."""
    return hasattr(part, "__getitem__") and not (
        hasattr(part, "__array__") or isinstance(part, list | tuple)
    )


def _items(part: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a Dataset, whose items are (image, label)."""
    try:
        images, labels = zip(*(part[i] for i in range(len(part))), strict=True)
        numbers = np.array([int(np.asarray(label).item()) for label in labels])
    except (TypeError, ValueError, LookupError) as error:
        rule = "a Dataset must hold items (image, label), each label an integer"
        raise DataError(f"{rule}, got {error!r}") from error
    if hasattr(images[0], "convert"):  # Pillow's: as those of files
        mode = "L" if {image.mode for image in images} <= {*GREY_MODES} else "RGB"
        try:
            images = tuple(flattened(image, mode) for image in images)
        except ImageError as error:
            raise DataError(f"an image of a Dataset {error}") from error
    pixels = [np.asarray(image) for image in images]
    if len(shapes := {image.shape for image in pixels}) > 1:
        raise DataError(f"images of a Dataset must be of one size, got {sorted(shapes)[:3]}")
    return np.stack(pixels), numbers
