"""Data sets that torchvision reads, from small files in its own layout that this test writes."""

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torchvision.datasets
from torchvision.datasets.utils import calculate_md5

from vgg_search.data.published import SOURCES
from vgg_search.data.source import DataError
from vgg_search.data.splits import load_splits, load_test
from vgg_search.records import DATASETS
from vgg_search.training.model import build
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident, Training

TRAIN, TEST = 600, 100
RNG = np.random.default_rng(0)


def pixels(count: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, *shape), dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def mnist_like(root: Path, subfolder: str, stem: str, first: int, classes: int) -> None:
    folder = root / subfolder
    folder.mkdir(parents=True)
    parts = {"train": TRAIN, ("test" if stem else "t10k"): TEST}
    for part, count in parts.items():
        labels = np.arange(count) % classes + first
        for kind, array in (("images-idx3", pixels(count, 28, 28)), ("labels-idx1", labels)):
            (folder / f"{stem}{part}-{kind}-ubyte").write_bytes(idx(array))


def cifar(root: Path, kind: Any, classes: int, key: str, patch: pytest.MonkeyPatch) -> None:
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    for name, files in (("train_list", kind.train_list), ("test_list", kind.test_list)):
        count = TRAIN // len(files) if name == "train_list" else TEST
        listed = []
        for file, _ in files:
            content = {"data": pixels(count, 3072), key: (np.arange(count) % classes).tolist()}
            (folder / file).write_bytes(pickle.dumps(content))
            listed.append([file, calculate_md5(folder / file)])
        patch.setattr(kind, name, listed)
    names = {kind.meta["key"]: [f"thing {i}" for i in range(classes)]}
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps(names))
    digest = calculate_md5(folder / kind.meta["filename"])
    patch.setattr(kind, "meta", kind.meta | {"md5": digest})


def svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    kind, lists = torchvision.datasets.SVHN, {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        labels = (np.arange(count) % 10)[:, None]
        content = {"X": pixels(32, 32, 3, count), "y": np.where(labels == 0, 10, labels)}
        url, file, _ = kind.split_list[split]
        scipy.io.savemat(root / file, content)
        lists[split] = [url, file, calculate_md5(root / file)]
    patch.setattr(kind, "split_list", lists)


class Payload:
    """What a malicious file carries: unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_pickle_is_read_only_if_it_is_the_published_one(name: str, tmp_path: Path) -> None:
    """CIFAR's files are pickles, whose digests torchvision has."""
    kind, trace = getattr(torchvision.datasets, SOURCES[name].kind), tmp_path / "trace"
    (tmp_path / kind.base_folder).mkdir()
    for file, *_ in (*kind.train_list, *kind.test_list, (kind.meta["filename"],)):
        (tmp_path / kind.base_folder / file).write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(DataError, match="must hold cifar"):
        SOURCES[name].locate(tmp_path, "train")
    assert not trace.exists()


LAYOUTS: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], None], int, int, bool]] = {
    # Name -> (writes the files, channels, classes, whether mirror images are the same)
    "mnist": (lambda p, _: mnist_like(p, "MNIST/raw", "", 0, 10), 1, 10, False),
    "kmnist": (lambda p, _: mnist_like(p, "KMNIST/raw", "", 0, 10), 1, 10, False),
    "emnist-balanced": (
        lambda p, _: mnist_like(p, "EMNIST/raw", "emnist-balanced-", 0, 47),
        1,
        47,
        False,
    ),
    "emnist-letters": (
        lambda p, _: mnist_like(p, "EMNIST/raw", "emnist-letters-", 1, 26),
        1,
        26,
        False,
    ),
    "cifar10": (
        lambda p, patch: cifar(p, torchvision.datasets.CIFAR10, 10, "labels", patch),
        3,
        10,
        True,
    ),
    "cifar100": (
        lambda p, patch: cifar(p, torchvision.datasets.CIFAR100, 100, "fine_labels", patch),
        3,
        100,
        True,
    ),
    "svhn": (svhn, 3, 10, False),
}


def test_every_row_is_tested() -> None:
    assert set(LAYOUTS) == set(SOURCES)
    assert {name for name, module in DATASETS.items() if module == "published"} == set(SOURCES)


@pytest.mark.parametrize("name", LAYOUTS)
def test_torchvisions_files_are_read_and_trained_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, channels, classes, flip = LAYOUTS[name]
    write(tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    splits = load_splits(name, tmp_path)
    images, labels = load_test(name, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    info, side = splits.info, 28 if channels == 1 else 32
    assert (info.name, info.channels, info.side, info.flip) == (name, channels, side, flip)
    assert len(info.classes) == len(set(info.classes)) == classes
    assert info.light_on_dark == (channels == 1)
    assert len(splits.val_labels) == 100
    assert images.shape == (TEST, channels, side, side)
    assert sorted(set(labels)) == list(range(min(classes, TEST)))
    np.testing.assert_allclose(info.mean, splits.whole()[0].mean((0, 2, 3)) / 255, atol=1e-3)
    options = {"arch": ((1, 8),), "resolution": side, "hidden_features": 16, "num_hidden": 1}
    network = build(options | splits.shape.network(), 0)
    recipe = Recipe(max_epochs=1, batch_size=100, lr=0.01, crop=2)
    training = Training(network, Resident.load(splits, "cpu"), recipe, 0)
    (row,) = training.run(1)
    assert np.isfinite(row["val_loss"])


def test_emnists_letters_stand_upright(tmp_path: Path) -> None:
    mnist_like(tmp_path, "EMNIST/raw", "emnist-letters-", 1, 26)
    file = tmp_path / "EMNIST" / "raw" / "emnist-letters-test-images-idx3-ubyte"
    stored = np.frombuffer(file.read_bytes()[16:], np.uint8).reshape(TEST, 28, 28)
    images, _ = load_test("emnist-letters", tmp_path)
    np.testing.assert_array_equal(images[:, 0], stored.swapaxes(1, 2))


def test_missing_and_damaged_files_are_one_line(tmp_path: Path) -> None:
    rule = f"^data_dir must hold mnist as torchvision's MNIST has it, got {tmp_path}: Dataset not f"
    with pytest.raises(DataError, match=rule):
        load_splits("mnist", tmp_path)
    mnist_like(tmp_path, "MNIST/raw", "", 0, 10)
    (tmp_path / "MNIST/raw/train-images-idx3-ubyte").write_bytes(gzip.compress(b"no images"))
    with pytest.raises(DataError, match=r"^data_dir must hold mnist as torchvision's MNIST") as got:
        load_splits("mnist", tmp_path)
    assert "\n" not in str(got.value)


def test_without_data_and_network_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VGG_SEARCH_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(
        DataError, match=r"^cifar10 is not here: download failed: .*VGG_SEARCH_DATA"
    ):
        load_splits("cifar10")
    assert list((tmp_path / "vgg_search").iterdir()) == []
