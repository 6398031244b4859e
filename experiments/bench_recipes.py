"""Short cuts in what is trained and measured: what each gains in time, and what it costs.

    VGG_SEARCH_DATA_DIR=... python experiments/bench_recipes.py [batch | resize | validation]
    add --out results/2026-11-24_training to keep the raw log

`batch`: batches of 128, 256, 512 and 1024 with lr in proportion (Goyal et al., arXiv:1706.02677).
`resize`: the first half of the epochs at 14 px, where convolutions cost a quarter; the features are
stretched to the size that the linear layers want (progressive resizing).
`validation`: networks ranked after their first epoch on all validation images or on a fixed half:
which of them would be kept, and what the time is.
The real data where they are to be had; networks of ((1,16),(1,32)) and around it, one thread.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_training import splits_of
from bench_trials import SMALL, environment
from torch import Tensor, nn
from torch.nn import functional as F

from vgg_search.space.arch import describe
from vgg_search.training.device import prepare_process
from vgg_search.training.inference import logits
from vgg_search.training.model import build
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident, Training

TRAIN, VAL, EPOCHS, SEEDS = 10_000, 10_000, 4, 5
OPTIONS = {"hidden_features": 64, "num_hidden": 1, "dropout": 0.0, "batch_norm": True}
ARCH = ((1, 16), (1, 32))
RECIPE = Recipe(
    max_epochs=EPOCHS, batch_size=128, lr=0.1, weight_decay=5e-4, flip=True, ema=True
)  # fmt: skip


class Stretch(nn.Module):
    """Features (N, C, h, w) -> (N, C, side, side)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[-1] == self.side:
            return features
        return F.interpolate(features, (self.side, self.side), mode="nearest")


def result(name: str, seed: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "seed": seed,
        "seconds": sum(row["epoch_seconds"] for row in rows),
        "images_per_second": statistics.median(row["images_per_second"] for row in rows),
        "val_accuracy": [row["val_accuracy"] for row in rows],
    }


def batch(data: Resident) -> Iterable[dict[str, Any]]:
    for seed in range(SEEDS):
        for size in (128, 256, 512, 1024):
            recipe = replace(RECIPE, batch_size=size, lr=RECIPE.lr * size / 128)
            run = Training(build({"arch": ARCH, **OPTIONS}, seed), data, recipe, seed)
            yield result(f"batch {size}, lr {recipe.lr:g}", seed, list(run.run(EPOCHS)))


def resize(data: Resident) -> Iterable[dict[str, Any]]:
    for seed in range(SEEDS):
        for small_epochs in (0, EPOCHS // 2):
            network = build({"arch": ARCH, **OPTIONS}, seed)
            network.layers.flatten = nn.Sequential(Stretch(7), nn.Flatten())
            run = Training(network, data, RECIPE, seed)
            run.network.resolution = 14 if small_epochs else 28  # not of the averaged one
            rows = list(run.run(small_epochs))
            run.network.resolution = 28
            rows += run.run(EPOCHS)
            yield result(f"{small_epochs} of {EPOCHS} epochs at 14 px", seed, rows)


def validation(data: Resident) -> Iterable[dict[str, Any]]:
    rng = random.Random(0)
    assert data.val_images is not None
    for number in range(24):
        arch, lr = SMALL[number % len(SMALL)], 10 ** rng.uniform(-2, -0.3)
        network = build({"arch": arch, **OPTIONS}, number)
        run = Training(network, data, replace(RECIPE, lr=lr), number)
        next(rows := run.run(EPOCHS))
        seconds = []
        for images in (data.val_images, data.val_images[: VAL // 2]):
            began = time.perf_counter()
            scores = logits(run.measured, images, run.data.info, run.plan)
            seconds.append(time.perf_counter() - began)
            correct = scores.argmax(1) == data.val_labels[: len(images)]
            seconds.append(correct.double().mean().item())
        list(rows)
        yield {
            "name": f"{describe(run.network.arch)}, lr {lr:.3f}",
            "whole_seconds": seconds[0], "whole": seconds[1],
            "half_seconds": seconds[2], "half": seconds[3],
            "epoch_seconds": run.rows[0]["epoch_seconds"],
            "last": run.rows[-1]["val_accuracy"],
        }  # fmt: skip


def table(runs: list[dict[str, Any]]) -> str:
    """Of each name the mean and sd over seeds, and against the first name, paired by seed."""
    lines = ["| what | val_accuracy, mean (sd) | less the first: mean (sd) | seconds | images/s |"]
    lines.append("| --- " * 5 + "|")
    names = list(dict.fromkeys(run["name"] for run in runs))
    first = [run["val_accuracy"][-1] for run in runs if run["name"] == names[0]]
    for name in names:
        own = [run for run in runs if run["name"] == name]
        last = [run["val_accuracy"][-1] for run in own]
        less = [a - b for a, b in zip(last, first, strict=True)]
        lines.append(
            f"| {name} | {statistics.mean(last):.4f} ({statistics.stdev(last):.4f}) "
            f"| {statistics.mean(less):+.4f} ({statistics.stdev(less):.4f}) "
            f"| {statistics.median(run['seconds'] for run in own):.2f} "
            f"| {statistics.median(run['images_per_second'] for run in own):.0f} |"
        )
    return "\n".join(lines)


def ranking(runs: list[dict[str, Any]]) -> str:
    """How far a half of the images ranks as all of them do, after the first epoch."""

    def column(name: str) -> Tensor:
        return torch.tensor([run[name] for run in runs], dtype=torch.float64)

    def correlation(a: str, b: str) -> float:
        ranks = torch.stack([column(name).argsort().argsort().double() for name in (a, b)])
        return torch.corrcoef(ranks)[0, 1].item()

    def kept(name: str) -> set[int]:
        return set(column(name).argsort(descending=True)[: len(runs) // 3].tolist())

    seconds = {name: column(f"{name}_seconds").median().item() for name in ("whole", "half")}
    return "\n".join(
        [
            f"{len(runs)} networks; validation takes {seconds['whole']:.3f} s, of a half "
            f"{seconds['half']:.3f} s, the epoch with it {column('epoch_seconds').median():.3f} s",
            f"rank correlation, half with whole: {correlation('half', 'whole'):.3f}; with the last "
            f"epoch's val_accuracy: whole {correlation('whole', 'last'):.3f}, "
            f"half {correlation('half', 'last'):.3f}",
            f"kept (the best third): {len(kept('half') & kept('whole'))} of {len(kept('whole'))} "
            f"the same; of the last epoch's best third: whole keeps "
            f"{len(kept('whole') & kept('last'))}, half {len(kept('half') & kept('last'))}",
            f"half less whole: sd {(column('half') - column('whole')).std():.4f}",
        ]
    )


PARTS = {"batch": (batch, table), "resize": (resize, table), "validation": (validation, ranking)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=PARTS, nargs="?", help="all, if none is named")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    prepare_process(1)
    splits = splits_of(VAL, TRAIN)
    data = Resident.load(splits, "cpu")
    for name in [options.part] if options.part else PARTS:
        train_all, show = PARTS[name]
        runs = list(train_all(data))
        print(f"## {name}\n{show(runs)}\n", flush=True)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            kept = {"part": name, "dataset": splits.name, "environment": environment()}
            with (options.out / "recipes.jsonl").open("a") as file:
                file.write(json.dumps({**kept, "runs": runs}) + "\n")


if __name__ == "__main__":
    main()
