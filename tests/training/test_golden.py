"""Fixed trainings give the rows that they gave before: a change of the code changes no result.

`golden_rows.json` holds rows in float32 on one thread; `python tests/training/test_golden.py`
writes it anew, for a change that is meant to change them. On one machine they repeat to the last
bit; other CPUs add up in another order, so a tolerance is all that can be asserted. It was chosen
by running with the instructions of SSE, AVX2 and AVX-512 (ATEN_CPU_CAPABILITY,
ONEDNN_MAX_CPU_ISA): losses differed by a relative 1e-6 at most, 1e-4 with batch norm. Learning
rates are small, for at those of a real search a last bit grows to percents within three epochs.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vgg_search.data.splits import load_splits
from vgg_search.training.model import build
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident, Training

GOLDEN = Path(__file__).with_name("golden_rows.json")
TRAIN, VAL, EPOCHS = 1000, 500, 2
NETWORK: dict[str, Any] = {"resolution": 28, "hidden_features": 32, "num_hidden": 1}
TOLERANCE = {"plain": 1e-5, "default": 5e-4, "augmented": 1e-5}  # of losses, relative
# Name -> (network, recipe)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (
        {"arch": ((1, 8), (1, 16)), "dropout": 0.0, "batch_norm": False},
        {"batch_size": 64, "lr": 0.01, "schedule": "constant", "momentum": 0.0}
        | {"flip": False, "ema": False},
    ),
    "default": (
        {"arch": ((1, 8), (2, 16)), "dropout": 0.3, "batch_norm": True},
        {"batch_size": 100, "lr": 0.002, "weight_decay": 5e-2},
    ),
    "augmented": (
        {"arch": ((2, 8),), "resolution": 32, "num_hidden": 2, "dropout": 0.5},
        {"batch_size": 128, "lr": 0.005, "crop": 2, "erase": 8, "label_smoothing": 0.1},
    ),
}


def rows_of(case: str) -> list[dict[str, Any]]:
    """Rows of one training, without times."""
    network, options = CASES[case]
    recipe = Recipe(max_epochs=EPOCHS, precision="fp32", **options)
    data = Resident.load(load_splits("sample", val_images=VAL, train_images=TRAIN), "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = list(Training(build(NETWORK | network, 3), data, recipe, 7).run(EPOCHS))
    finally:
        torch.set_num_threads(threads)
    times = ("epoch_seconds", "images_per_second")
    return [{name: row[name] for name in row if name not in times} for row in rows]


@pytest.mark.parametrize("case", CASES)
def test_rows_are_what_they_were(case: str) -> None:
    golden = json.loads(GOLDEN.read_text())[case]
    rows = rows_of(case)
    assert [set(row) for row in rows] == [set(row) for row in golden]
    for row, old in zip(rows, golden, strict=True):
        assert (row["epoch"], row["lr"]) == (old["epoch"], pytest.approx(old["lr"]))
        for name in ("train_loss", "val_loss"):
            assert row[name] == pytest.approx(old[name], rel=TOLERANCE[case])
        assert row["train_accuracy"] == pytest.approx(old["train_accuracy"], abs=3 / TRAIN)
        assert row["val_accuracy"] == pytest.approx(old["val_accuracy"], abs=3 / VAL)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({case: rows_of(case) for case in CASES}, indent=1) + "\n")
