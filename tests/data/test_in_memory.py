"""Images that a Python program hands over: arrays, tensors, torchvision-style data sets."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from vgg_search.data.in_memory import keep
from vgg_search.data.source import DataError
from vgg_search.data.splits import load_splits, load_test

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (60, 3, 12, 12), dtype=np.uint8)
Y = np.arange(60) % 3


class Labelled:
    """One item, with a label that may be anything."""

    def __init__(self, label: object) -> None:
        self.label = label

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> tuple[np.ndarray, object]:
        return X[i], self.label


class Pictures:
    """As torchvision's: items are (image, label)."""

    classes = ("ant", "bee", "cat")

    def __init__(self, mode: str = "RGB", side: int = 12) -> None:
        self.mode, self.side = mode, side

    def __len__(self) -> int:
        return len(Y)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        image = Image.fromarray(np.moveaxis(X[i], 0, 2)).convert(self.mode)
        return image.resize((self.side + (self.side != 12) * i, self.side)), int(Y[i])


class Items(Pictures):
    """The same with other images."""

    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return self.images[i], int(Y[i])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "vgg_search" / "arrays"


GIVEN: dict[str, Any] = {
    "arrays": (X, Y),
    "tensors": (torch.tensor(X), torch.tensor(Y)),
    "lists of labels": [X, list(map(int, Y))],
    "dataset of tensors": TensorDataset(torch.tensor(X), torch.tensor(Y)),
    "dataset of pictures": Pictures(),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_every_kind_is_the_same_data(kind: str) -> None:
    splits = load_splits(keep(GIVEN[kind]))
    assert splits.digest == load_splits(keep((X, Y))).digest
    assert splits.info.classes == (
        Pictures.classes if kind == "dataset of pictures" else tuple("012")
    )
    assert splits.train_images.shape[1:] == (3, 12, 12)


def test_a_test_part_is_the_test_split() -> None:
    for given in ((X[:40], Y[:40], X[40:], Y[40:]), *[two_datasets()]):
        path = keep(given)
        assert len(load_splits(path).whole()[1]) == 40
        assert sorted(load_test(path)[1]) == sorted(Y[40:])


def two_datasets() -> tuple[Any, Any]:
    return Subset(Pictures(), range(40)), Subset(Pictures(), range(40, 60))  # type: ignore[arg-type]


def test_grey_pictures_stay_grey_and_are_kept_once(own_cache: Path) -> None:
    first = keep(Pictures("L"))
    assert load_splits(first).train_images.shape[1:] == (1, 12, 12)
    assert keep(Pictures("L")) == first
    assert os.listdir(own_cache) == [Path(first).name]


DEEP = RNG.integers(0, 2**16, (60, 12, 12), dtype=np.uint16)
GREY, COLOURS = X[:, 0], np.moveaxis(X, 1, 3)
ALPHA = np.repeat([[0], [255]], 6, 0).astype(np.uint8)  # the upper half cannot be seen


def on_white(pixels: np.ndarray) -> np.ndarray:
    white = pixels.copy()
    white[:, :6] = 255
    return white


def with_alpha(pixels: np.ndarray) -> np.ndarray:
    """(60, 12, 12, C) -> (60, 12, 12, C + 1)."""
    return np.concatenate([pixels, np.broadcast_to(ALPHA[..., None], (60, 12, 12, 1))], 3)


# Name -> (pixels of the pictures, as they are kept)
ODD: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "I;16": (DEEP, np.round(DEEP / 257)),
    "RGBA": (with_alpha(COLOURS), on_white(COLOURS)),
    "LA": (with_alpha(GREY[..., None]), on_white(GREY)),
}


@pytest.mark.parametrize("mode", ODD)
def test_pictures_are_read_as_files_are(mode: str, tmp_path: Path) -> None:
    pixels, expected = ODD[mode]
    pictures = [Image.fromarray(array) for array in pixels]
    assert {picture.mode for picture in pictures} == {mode}
    path = keep(Items(pictures))
    with np.load(path) as kept:
        np.testing.assert_array_equal(kept["x_train"], expected)
    for i, picture in enumerate(pictures):
        (tmp_path / "files" / str(Y[i])).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "files" / str(Y[i]) / f"{i}.png")
    assert load_splits(path).digest == load_splits(str(tmp_path / "files")).digest


@pytest.mark.parametrize("names", [["ant", "bee", "cat"], []])
def test_names_of_classes_may_be_an_array(names: list[str]) -> None:
    given = Pictures()
    given.classes = np.array(names)  # type: ignore[assignment]
    assert load_splits(keep(given)).info.classes == tuple(names or "012")


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (X, r"^dataset must be a name, a path, \(x_train, y_train\).*, got \(ndarray\)$"),
        ((X, Y, X), r"got \(ndarray, ndarray, ndarray\)$"),
        ((Pictures(), X, Y), r"got \(Pictures, ndarray, ndarray\)$"),
        (7, r"got \(int\)$"),
        (Pictures(side=20), r"^images of a Dataset must be of one size, got \[\("),
        (Subset(Pictures(), []), r"^a Dataset must hold items \(image, label\), .*unpack"),  # type: ignore[arg-type]
        (Labelled("one"), r"^a Dataset must hold items \(image, label\), each .* integer, got "),
        (Labelled(np.array([0, 1])), r"^a Dataset must hold items \(image, label\), each "),
        ({"images": X}, r"^a Dataset must hold items \(image, label\), .*, got KeyError\(0\)$"),
        (([X[0, 0], X[0, 0, :5]], [0, 1]), r"^dataset must be .*, got what is no array: "),
        ((X, [[0], [1, 2]]), r"^dataset must be .*, got what is no array: "),
        (
            Items([Image.new("F", (12, 12))]),
            r"^an image of a Dataset must have 8 or 16 bits a channel, got 32 \(float\)$",
        ),
    ],
)
def test_what_is_no_data_set_is_refused(given: Any, rule: str, own_cache: Path) -> None:
    with pytest.raises(DataError, match=rule) as caught:
        keep(given)
    assert "\n" not in str(caught.value)
    assert not own_cache.exists()


def test_floats_are_refused_with_a_hint() -> None:
    with pytest.raises(DataError, match=r"x_train must be uint8 \(0 to 255\), got float32; multi"):
        load_splits(keep((torch.tensor(X) / 255, torch.tensor(Y))))
