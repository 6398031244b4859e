"""One network trained by two processes is the network that one process trains."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import free_port

from vgg_search.data.splits import Splits, load_splits
from vgg_search.engine.checkpoints import TrainingCheckpoints
from vgg_search.engine.ddp import Rank
from vgg_search.storage.place import Place, StorageError
from vgg_search.training.model import build
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident, Training

NETWORK: dict[str, Any] = {
    "arch": ((1, 8), (1, 16)),
    "resolution": 28,
    "hidden_features": 32,
    "num_hidden": 1,
    "dropout": 0.0,
    "batch_norm": False,
}
# 300 images in 5 batches of 60: each of two ranks has 30 of them
RECIPE = Recipe(
    max_epochs=3, batch_size=60, lr=0.1, flip=True, crop=2, ema=True, precision="fp32", momentum=0.9
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As ranks have: more add floats in another order, of which batch norm makes a tenth of a loss
    in fifteen steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rank_main(rank: int, ranks: int, port: int, out: str, recipe: Recipe, batch_norm: bool) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    data = Resident.load(load_splits("sample", val_images=100, train_images=300), "cpu")
    network = build(NETWORK | {"batch_norm": batch_norm}, 5)
    training = Rank(network, data, recipe, 5, rank, ranks)
    rows = list(training.run(recipe.max_epochs))
    torch.save({"rows": rows, "weights": training.weights()}, f"{out}/{rank}")
    dist.destroy_process_group()


@dataclass
class Trained:
    rows: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]


def trained_by(
    ranks: int, folder: Path, recipe: Recipe = RECIPE, batch_norm: bool = False
) -> list[Trained]:
    folder.mkdir()
    arguments = (ranks, free_port(), str(folder), recipe, batch_norm)
    mp.spawn(rank_main, arguments, nprocs=ranks)
    return [Trained(**torch.load(folder / str(rank))) for rank in range(ranks)]


def resuming_main(rank: int, ranks: int, port: int, places: list[Place], out: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    data = Resident.load(load_splits("sample", val_images=100, train_images=300), "cpu")
    training = Rank(build(NETWORK, 5), data, RECIPE, 5, rank, ranks)
    TrainingCheckpoints(places[rank], "trials/7", RECIPE.max_epochs).resume(training)
    try:
        training.check_start()
        told = f"at epoch {training.epoch}"
    except StorageError as error:
        told = str(error)
    Path(out, str(rank)).write_text(told)
    dist.destroy_process_group()


def test_ranks_start_at_the_same_epoch_or_not_at_all(tmp_path: Path, splits: Splits) -> None:
    place, elsewhere = Place(str(tmp_path / "here")), Place(str(tmp_path / "elsewhere"))
    place.make()
    checkpoints = TrainingCheckpoints(place, "trials/7", 1)
    training = Training(build(NETWORK, 5), Resident.load(splits, "cpu"), RECIPE, 5)
    list(checkpoints.train(training))

    def told(*places: Place) -> list[str]:
        mp.spawn(resuming_main, (2, free_port(), list(places), str(tmp_path)), nprocs=2)
        return [(tmp_path / str(rank)).read_text() for rank in range(2)]

    assert told(place, place) == ["at epoch 1"] * 2
    rule = "storage_path must be a place that all processes of a trial see"
    assert told(place, elsewhere) == [f"{rule}, got checkpoints of epochs [1, 0]"] * 2


def alone(splits: Splits, recipe: Recipe = RECIPE, batch_norm: bool = False) -> Trained:
    network = build(NETWORK | {"batch_norm": batch_norm}, 5)
    training = Training(network, Resident.load(splits, "cpu"), recipe, 5)
    return Trained(list(training.run(recipe.max_epochs)), training.weights())


def test_two_ranks_are_one_training(tmp_path: Path, splits: Splits) -> None:
    one, (first, second) = alone(splits), trained_by(2, tmp_path / "two")
    for ours, theirs in zip(one.rows, first.rows, strict=True):
        assert theirs["lr"] == ours["lr"]
        # Sums of floats in another order, and what fifteen steps make of it
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=0.01)
        assert theirs["val_loss"] == pytest.approx(ours["val_loss"], rel=0.01)
        assert theirs["val_accuracy"] == pytest.approx(ours["val_accuracy"], abs=0.03)
    for name, ours in first.weights.items():
        torch.testing.assert_close(second.weights[name], ours)
    assert [r["train_loss"] for r in first.rows] == [r["train_loss"] for r in second.rows]


def test_one_rank_is_the_plain_loop(tmp_path: Path, splits: Splits) -> None:
    (only,) = trained_by(1, tmp_path / "one")
    for name, ours in alone(splits).weights.items():
        torch.testing.assert_close(only.weights[name], ours, rtol=0.01, atol=1e-3)


def test_one_rank_with_batch_norm_is_the_plain_loop(tmp_path: Path, splits: Splits) -> None:
    (only,), plain = (
        trained_by(1, tmp_path / "one", batch_norm=True),
        alone(splits, batch_norm=True),
    )
    for ours, theirs in zip(plain.rows, only.rows, strict=True):
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=0.01)
    assert plain.weights.keys() == only.weights.keys()


def test_on_cpus_each_rank_normalises_its_part(tmp_path: Path, splits: Splits) -> None:
    """So two ranks of 30 images are near one of 60, and not the same; their weights are."""
    first, second = trained_by(2, tmp_path / "two", batch_norm=True)
    plain = alone(splits, batch_norm=True)
    losses = [run.rows[0]["train_loss"] for run in (first, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    for name in ("layers.block1.0.weight", "layers.block1.1.weight"):
        torch.testing.assert_close(second.weights[name], first.weights[name])


def test_ranks_stop_together_when_the_loss_is_not_finite(tmp_path: Path) -> None:
    wild = Recipe(max_epochs=3, batch_size=60, lr=1e6, precision="fp32")
    first, second = trained_by(2, tmp_path / "wild", wild)
    assert len(first.rows) == len(second.rows) == 1
    assert not torch.tensor(first.rows[0]["train_loss"]).isfinite()


def test_ranks_whose_parts_differ_are_weighted_by_their_images(
    tmp_path: Path, splits: Splits
) -> None:
    """Of three images one rank has two; unweighted, the epoch's loss was 3.5 % off."""
    uneven = RECIPE.model_copy(update={"batch_size": 3, "max_epochs": 1, "lr": 0.01})
    plain, (first, _) = alone(splits, uneven), trained_by(2, tmp_path / "two", uneven)
    assert first.rows[0]["train_loss"] == pytest.approx(plain.rows[0]["train_loss"], rel=1e-4)
    for name, ours in plain.weights.items():
        torch.testing.assert_close(first.weights[name], ours, rtol=0.01, atol=1e-3)
