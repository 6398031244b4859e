"""Fashion-MNIST: Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747, in torchvision's layout.

The files are read packed (.gz) or unpacked, and verified by the MD5 of what was published.
"""

import gzip
import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

from vgg_search.data.download import download
from vgg_search.data.source import (
    DATA_DIR,
    Array,
    DataError,
    DatasetInfo,
    LabelledImages,
    Reading,
    Source,
    Split,
)
from vgg_search.machine import cache_folder

SUBFOLDER = "FashionMNIST/raw"  # torchvision's
PREFIXES: dict[Split, str] = {"train": "train", "test": "t10k"}
SHAPES: dict[Split, tuple[int, ...]] = {"train": (60_000, 28, 28), "test": (10_000, 28, 28)}
# Name -> MD5 of the packed file (torchvision's), of the unpacked one
MD5 = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe 9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79 8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310 15d484375f8d13e6eb1aabb0c3f46965",
}


class FashionMNIST(Source):
    """60,000 training and 10,000 test images of clothes, 28 px, grey."""

    info = DatasetInfo(
        name="fashion-mnist",
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        mean=(0.2860,),
        std=(0.3530,),
        light_on_dark=True,
    )

    def locate(self, data_dir: str | Path | None, split: Split) -> Path:
        """In `data_dir`, else where VGG_SEARCH_DATA_DIR says, else the cache, else a download."""
        for origin, named in (("data_dir", data_dir), (DATA_DIR, os.environ.get(DATA_DIR))):
            if named:
                if folder := find_split(Path(named).expanduser(), split):
                    return folder
                files = " and ".join(f"{name}[.gz]" for name in _names(split))
                raise DataError(f"{origin} must hold {files}, or {SUBFOLDER}, got {named}")
        cache = cache_folder()
        return find_split(cache, split) or download("FashionMNIST", SUBFOLDER, "*.gz", cache)

    def load(self, location: Path, split: Split, reading: Reading) -> LabelledImages:
        images, labels = (
            _read(_find_file(location, name) or location / name, SHAPES[split][:ndim])
            for name, ndim in zip(_names(split), (3, 1), strict=True)
        )
        return LabelledImages(self.info, images[:, None], labels)


SOURCE = FashionMNIST()
SOURCES = {"fashion-mnist": SOURCE}


def find_split(data_dir: Path, split: Split) -> Path | None:
    """The folder that holds both files of a split; `data_dir` or torchvision's folders in it."""
    folders = (data_dir / SUBFOLDER, data_dir / "raw", data_dir)
    return next((f for f in folders if all(_find_file(f, name) for name in _names(split))), None)


def _names(split: Split) -> tuple[str, str]:
    return f"{PREFIXES[split]}-images-idx3-ubyte", f"{PREFIXES[split]}-labels-idx1-ubyte"


def _find_file(folder: Path, name: str) -> Path | None:
    # Unpacked first, as in torchvision. os.path, as Path.is_file raises in a closed folder.
    return next((p for p in (folder / name, folder / f"{name}.gz") if os.path.isfile(p)), None)


def _read(path: Path, shape: tuple[int, ...]) -> Array:
    """One file, verified."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    packed = path.suffix == ".gz"
    published = MD5[path.name.removesuffix(".gz")].split()[0 if packed else 1]
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
