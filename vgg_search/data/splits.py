"""Fashion-MNIST as uint8 arrays: where it comes from, that it is whole, and how it is split.

`load_splits` gives training and validation, both from the training split; the test split is read
by `load_test` alone. Data: Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747.
"""

import gzip
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from vgg_search.errors import InputError

Array = npt.NDArray[np.uint8]

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# Of the 60,000 training images' pixels, scaled to [0, 1].
MEAN, STD = 0.2860, 0.3530
SPLIT_IMAGES, SAMPLE_IMAGES = 60_000, 6_000  # of the training split, and of the sample's

SAMPLE = Path(__file__).with_name("sample") / "fashion-mnist-sample.npz"
SPLIT_SEED = 2017
# The whole download is 30 MB; the second bound is for one silent connection.
DOWNLOAD_SECONDS, SILENCE_SECONDS = 180, 5

# split: shape of the images; name -> MD5 of the packed file (torchvision's), of the unpacked one.
_SHAPES = {"train": (60_000, 28, 28), "t10k": (10_000, 28, 28)}
_MD5 = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe 9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79 8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310 15d484375f8d13e6eb1aabb0c3f46965",
}
# torchvision's download knows no time-out (a dropped packet hangs it) and unpacks beside what it
# fetches, so it runs in a process that can be ended, in a folder that is thrown away.
_CHILD = """
import socket, sys
socket.setdefaulttimeout(float(sys.argv[2]))
from torchvision.datasets import FashionMNIST
FashionMNIST(sys.argv[1], download=True)
"""

USING_SAMPLE = "USING THE BUNDLED SAMPLE, NOT THE WHOLE OF FASHION-MNIST"
_said = False  # that the sample is used

logger = logging.getLogger("vgg_search")


class DataError(InputError):
    """The data is missing or damaged, or cannot be split as asked; one line for the user."""


@dataclass(frozen=True, eq=False)
class Splits:
    """Training and validation images (N, 28, 28) with labels (N,), uint8, C-contiguous."""

    name: Literal["fashion-mnist", "sample"]
    digest: str
    """Of the whole training split, so the same however it is cut: sha256, first 16 hex digits."""
    train_images: Array
    train_labels: Array
    val_images: Array
    val_labels: Array

    def whole(self) -> tuple[Array, Array]:
        """Training and validation together, for the champion."""
        return (
            np.concatenate([self.train_images, self.val_images]),
            np.concatenate([self.train_labels, self.val_labels]),
        )


def load_splits(
    dataset: str = "auto",
    data_dir: str | Path | None = None,
    val_images: int = 10_000,
    train_images: int | None = None,
) -> Splits:
    """Training and validation images, both from the training split, stratified.

    The order of the images is drawn once, by a seed of its own: validation is its first
    `val_images`, training the next `train_images` (None: all the rest), so that a smaller
    validation or training set is part of a larger one. With the bundled sample both are cut to
    what it holds, validation to a sixth. Raises DataError.
    """
    folder, why = _locate(dataset, data_dir, "train")
    images, labels = read_split(folder, "train") if folder else _read_sample("train")
    total = len(labels)
    if not folder:
        val_images = min(val_images, total // 6)
        if train_images is not None:
            train_images = min(train_images, total - val_images)
        _say_sample(f"{total:,} training images, {val_images:,} of them for validation", why)
    _check_count("val_images", val_images, total - len(CLASSES))
    if train_images is not None:
        _check_count("train_images", train_images, total - val_images)
    order = stratified_order(labels, SPLIT_SEED)
    val, train = order[:val_images], order[val_images:][:train_images]
    digest = hashlib.sha256(images.data)
    digest.update(labels.data)
    return Splits(
        name="fashion-mnist" if folder else "sample",
        digest=digest.hexdigest()[:16],
        train_images=images[train],
        train_labels=labels[train],
        val_images=images[val],
        val_labels=labels[val],
    )


def load_test(dataset: str, data_dir: str | Path | None = None) -> tuple[Array, Array]:
    """Test images (N, 28, 28) and labels (N,), in the files' order: the only way to them.

    Raises DataError.
    """
    folder, why = check_test(dataset, data_dir)
    images, labels = read_split(folder, "t10k") if folder else _read_sample("t10k")
    if not folder:
        _say_sample(f"{len(labels):,} test images", why)
    return images, labels


def check_test(dataset: str, data_dir: str | Path | None = None) -> tuple[Path | None, str]:
    """Where the test split is, as in `_locate`, without reading it. Raises DataError.

    A search looks at its start: that the split is not there is to be known before hours are spent.
    """
    return _locate(dataset, data_dir, "t10k")


def stratified_order(labels: Array, seed: int) -> npt.NDArray[np.intp]:
    """A random order of the images in which every prefix is stratified.

    Each class is spread evenly over the order: with classes of one size, their counts in any
    prefix differ by at most one. Only the raw words of the bit generator are used, whose stream
    NumPy never changes (NEP 19), so that studies made with two versions stay comparable.
    """
    shuffled = np.argsort(np.random.PCG64(seed).random_raw(len(labels)), kind="stable")
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        place[members] = np.arange(len(members)) / len(members)
    return shuffled[np.argsort(place, kind="stable")]


def find_split(data_dir: Path, split: str) -> Path | None:
    """The folder that holds both files of a split; `data_dir` or torchvision's folders in it."""
    folders = (data_dir / "FashionMNIST" / "raw", data_dir / "raw", data_dir)
    return next((f for f in folders if all(_find_file(f, n) for n in _names(split))), None)


def read_split(folder: Path, split: str) -> tuple[Array, Array]:
    """Images and labels of "train" or "t10k" from `folder`, packed or not; nothing is written.

    Raises DataError naming the file when it cannot be read, or is not what was published.
    """
    images, labels = (
        _read(_find_file(folder, name) or folder / name, _SHAPES[split][:ndim])
        for name, ndim in zip(_names(split), (3, 1), strict=True)
    )
    return images, labels


def _names(split: str) -> tuple[str, str]:
    return f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"


def _find_file(folder: Path, name: str) -> Path | None:
    # Unpacked first, as in torchvision. os.path, as Path.is_file raises in a closed folder.
    return next((p for p in (folder / name, folder / f"{name}.gz") if os.path.isfile(p)), None)


def _read(path: Path, shape: tuple[int, ...]) -> Array:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    packed = path.suffix == ".gz"
    published = _MD5[path.name.removesuffix(".gz")].split()[0 if packed else 1]
    try:
        array = _parse_idx(gzip.decompress(raw) if packed else raw, shape)
        md5 = hashlib.md5(raw, usedforsecurity=False).hexdigest()
        if md5 != published:
            raise ValueError(f"MD5 must be {published}, got {md5}")
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged (wrong checksum): {error}") from error
    return array


def _parse_idx(content: bytes, shape: tuple[int, ...]) -> Array:
    """IDX: two zero bytes, type (8: uint8), number of dims, the dims as big-endian int32, data."""
    magic, header = bytes((0, 0, 8, len(shape))), 4 + 4 * len(shape)
    if content[:4] != magic:
        raise ValueError(f"first bytes must be {magic.hex()}, got {content[:4].hex()}")
    dims = tuple(np.frombuffer(content[4:header].ljust(header - 4, b"\0"), ">i4").tolist())
    if dims != shape:
        raise ValueError(f"dims must be {shape}, got {dims}")
    size = header + int(np.prod(shape))
    if len(content) != size:
        raise ValueError(f"length must be {size} bytes, got {len(content)}")
    return np.frombuffer(bytearray(content), np.uint8, offset=header).reshape(shape)


def _read_sample(split: str) -> tuple[Array, Array]:
    with np.load(SAMPLE, allow_pickle=False) as arrays:
        return arrays[f"{split}_images"], arrays[f"{split}_labels"]


def _say_sample(what: str, why: str) -> None:
    """Loudly once a process: said at each reading, it would be read by nobody."""
    global _said
    logger.log(logging.INFO if _said else logging.WARNING, "%s: %s (%s)", USING_SAMPLE, what, why)
    _said = True


def _check_count(field: str, value: int, most: int) -> None:
    if value < len(CLASSES):
        raise DataError(f"{field} must be >= {len(CLASSES)}, got {value}")
    if value > most:
        raise DataError(f"{field} must be <= {most}, got {value}")


def _locate(dataset: str, data_dir: str | Path | None, split: str) -> tuple[Path | None, str]:
    """The folder with `split`, or None for the bundled sample and why it is used.

    A folder that the user named is never passed over in silence, not even by "auto".
    """
    if dataset not in ("auto", "fashion-mnist", "sample"):
        raise DataError(f"dataset must be auto, fashion-mnist or sample, got {dataset}")
    if dataset == "sample":
        return None, "dataset is sample"
    variable = "VGG_SEARCH_DATA_DIR"
    for origin, named in (("data_dir", data_dir), (variable, os.environ.get(variable))):
        if named:
            found = find_split(Path(named).expanduser(), split)
            if found:
                return found, ""
            wanted = " and ".join(f"{name}[.gz]" for name in _names(split))
            raise DataError(f"{origin} must hold {wanted}, or FashionMNIST/raw, got {named}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vgg_search"
    found = find_split(cache, split)
    if found:
        return found, ""
    try:
        return _download(cache), ""
    except DataError as error:
        why = f"{error}; data_dir or {variable} can name a folder that holds the data"
        if dataset == "fashion-mnist":
            raise DataError(f"fashion-mnist is not here: {why}") from error
        return None, why


def _download(cache: Path) -> Path:
    """The four packed files by torchvision's download, into `cache`, whole or not at all."""
    logger.info("Downloading Fashion-MNIST (30 MB) to %s", cache)
    folder = cache / "FashionMNIST" / "raw"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as fetched:
            subprocess.run(
                [sys.executable, "-P", "-c", _CHILD, fetched, str(SILENCE_SECONDS)],
                timeout=DOWNLOAD_SECONDS,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
            )
            folder.mkdir(parents=True, exist_ok=True)
            for file in Path(fetched, "FashionMNIST", "raw").glob("*.gz"):
                file.replace(folder / file.name)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"download took more than {DOWNLOAD_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").split("\n")
        reason = next((line for line in reversed(lines) if line.strip()), "no reason given")
        raise DataError(f"download failed: {reason.strip()}") from error
    except OSError as error:
        raise DataError(f"download cannot be kept: {error}") from error
    return folder
