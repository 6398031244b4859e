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


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (X, r"^dataset must be a name, a path, \(x_train, y_train\).*, got \(ndarray\)$"),
        ((X, Y, X), r"got \(ndarray, ndarray, ndarray\)$"),
        ((Pictures(), X, Y), r"got \(Pictures, ndarray, ndarray\)$"),
        (7, r"got \(int\)$"),
        (Pictures(side=20), r"^images of a Dataset must be of one size, got \[\("),
    ],
)
def test_what_is_no_data_set_is_refused(given: Any, rule: str, own_cache: Path) -> None:
    with pytest.raises(DataError, match=rule):
        keep(given)
    assert not own_cache.exists()


def test_floats_are_refused_with_a_hint() -> None:
    with pytest.raises(DataError, match=r"x_train must be uint8 \(0 to 255\), got float32; multi"):
        load_splits(keep((torch.tensor(X) / 255, torch.tensor(Y))))
