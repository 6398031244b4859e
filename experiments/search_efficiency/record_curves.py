"""Record learning curves of many networks once, so that searches can be simulated afterwards.

    python experiments/search_efficiency/record_curves.py --data-dir DATA_DIR       # half an hour
    ... --configs 400       # go on to more

Random configurations of `SPACE` are trained for real, with the package's own training and its
default recipe, at a small scale: few images, 14 px, one thread.
Each configuration is trained with `SEEDS` seeds, one after the other, so that a recording cut short
is a smaller table. Finished trainings are appended to WORK, and a second start goes on after them;
at the end they are packed into TABLE, one row a training: the configuration, its seed, and for each
epoch val_accuracy, train_loss (empty where it is not finite) and epoch_seconds.
"""

import argparse
import csv
import gzip
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import optuna

from vgg_search.config import Config
from vgg_search.space.arch import as_arch, describe
from vgg_search.space.candidate import Candidate
from vgg_search.space.search_space import Space

TABLE = Path(__file__).parents[2] / "results/2026-11-24_search_efficiency/curves.csv.gz"
WORK = Path("runs/search_efficiency/curves.jsonl")
EPOCHS, SEEDS = 9, (0, 1)
TRAIN_IMAGES, VAL_IMAGES, BATCH_SIZE, RESOLUTION = 2_000, 2_000, 64, 14
SEED = 1708  # of the configurations
SPACE: dict[str, Any] = {
    "num_blocks": [1, 3],
    "num_convs": [1, 2],
    "out_channels": [8, 16, 32],
    "hidden_features": {"choices": [32, 64, 128]},
    "num_hidden": 1,
    "batch_norm": [True, False],
    "dropout": [0.0, 0.5],
    "lr": {"low": 0.005, "high": 1.0, "log": True},
    "weight_decay": {"low": 1e-5, "high": 1e-2, "log": True},
}
CURVES = ("val_accuracy", "train_loss", "epoch_seconds")


def experiment(**fields: Any) -> Config:
    """The experiment that the table stands for; the rest is the package's defaults."""
    fixed = {"max_epochs": EPOCHS, "batch_size": BATCH_SIZE}
    return Config(**fixed | {"space": SPACE, "baseline": None, "time_budget": None} | fields)


def candidates(space: Space) -> Iterator[Candidate]:
    """One endless random sequence of what is within the space's limits."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=SEED))
    while True:
        candidate = space.sample(study.ask())
        if space.feasible(candidate):
            yield candidate


def record(count: int, data_dir: Path | None, work: Path) -> None:
    """Train what `work` lacks, until `count` configurations are there."""
    from vgg_search.data.splits import load_splits
    from vgg_search.training.device import prepare_process
    from vgg_search.training.model import build
    from vgg_search.training.recipe import recipe_of
    from vgg_search.training.train import Resident, Training

    prepare_process(1)
    config = experiment()
    splits = load_splits("fashion-mnist", data_dir, VAL_IMAGES, TRAIN_IMAGES)
    data = Resident.load(splits, "cpu")
    work.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["config"], row["seed"]) for row in read_work(work)}
    for number, candidate in enumerate(islice(candidates(config.search_space), count)):
        for seed in SEEDS:
            if (number, seed) in done:
                continue
            network = build(config.search_space.network(candidate), seed)
            training = Training(network, data, recipe_of(config, candidate, EPOCHS), seed)
            rows = list(training.run(EPOCHS))
            curves = {key: [row[key] for row in rows] for key in CURVES}
            line = {"config": number, "seed": seed, **asdict(candidate), **curves}
            with work.open("a") as file:
                file.write(json.dumps(line) + "\n")


def read_work(work: Path) -> list[dict[str, Any]]:
    """Finished trainings; a last line cut off by a kill is dropped."""
    if not work.exists():
        return []
    content = work.read_bytes()
    with work.open("r+b") as file:
        file.truncate(content.rfind(b"\n") + 1)
    return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


def pack(work: Path, table: Path) -> int:
    """Write the table; the number of its configurations with all seeds."""
    rows = read_work(work)
    whole = {row["config"] for row in rows}
    for seed in SEEDS:
        whole &= {row["config"] for row in rows if row["seed"] == seed}
    packed = []
    for row in sorted(rows, key=lambda row: (row["config"], row["seed"])):
        if row["config"] not in whole:
            continue
        flat = {key: value for key, value in row.items() if key not in CURVES}
        flat["arch"] = describe(as_arch(row["arch"]))
        for key, digits in zip(CURVES, (4, 4, 3), strict=True):
            for epoch in range(1, EPOCHS + 1):
                values = row[key][epoch - 1 : epoch]
                finite = [f"{v:.{digits}f}" for v in values if math.isfinite(v)]
                flat[f"{key}_{epoch}"] = finite[0] if finite else ""
        packed.append(flat)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(packed[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(packed)
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    return len(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="Fashion-MNIST in torchvision's layout")
    parser.add_argument("--configs", type=int, default=200, help="configurations (200)")
    parser.add_argument("--work", type=Path, default=WORK, help=f"finished trainings ({WORK})")
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    record(options.configs, options.data_dir, options.work)
    print(f"{pack(options.work, options.table)} configurations in {options.table}")


if __name__ == "__main__":
    main()
