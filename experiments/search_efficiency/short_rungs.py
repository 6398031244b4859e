"""Would a first rung after a third of an epoch find better networks than one after an epoch?

    python experiments/search_efficiency/short_rungs.py FOLDER --networks 64
    python experiments/search_efficiency/short_rungs.py FOLDER      # the tables, of what is there

Random networks of the default space are trained for real, as the default experiment does it: all
images but those of validation, four epochs of one-cycle. They are validated after each third of an
epoch. `VGG_SEARCH_DATA_DIR` names the data. Finished trainings are kept in FOLDER/curves.csv and
not repeated. Cost: a minute a network, and two for the tables.

Then searches by the product's `Study`, to which these networks are proposed in a random order, on
the virtual clock of `simulate.py`: the first rung at one or three thirds of an epoch.
"""

import argparse
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from measures import append, line, quartiles, read_rows, value_at
from record_curves import candidates
from simulate import Ours, opened, simulate
from tables import FlatSpace, Row

from vgg_search.config import Config
from vgg_search.space.arch import describe

FILE = "curves.csv"
PARTS, EPOCHS = 3, 4  # thirds of an epoch; epochs of the default experiment
STEPS = range(1, PARTS * EPOCHS + 1)
CURVE = [f"val_accuracy_{step}" for step in STEPS]
COLUMNS = ["network", *CURVE, "seconds"]
WORKERS, BUDGET = 2, 36 * PARTS  # five minutes of two cores: some 36 epochs
SHARES = (0.25, 0.5, 0.9, 1.0)
DRAWS, ORDERS = 100, 10  # of the bootstrap; searches in each
RUNGS = {"1, 3": PARTS, "1/3, 1, 3": 1}  # epochs: `grace_epochs` in thirds


def record(count: int, file: Path) -> None:
    """Train what the file lacks."""
    import torch

    from vgg_search.data.splits import load_splits
    from vgg_search.training.device import prepare_process
    from vgg_search.training.model import build
    from vgg_search.training.recipe import recipe_of
    from vgg_search.training.train import Resident, Training

    prepare_process(1)
    config, done = Config(max_epochs=EPOCHS), {int(row["network"]) for row in read_rows(file)}
    data_dir = os.environ.get("VGG_SEARCH_DATA_DIR")
    data = Resident.load(load_splits("fashion-mnist", data_dir), "cpu")
    for number, candidate in enumerate(islice(candidates(config.search_space), count)):
        if number in done:
            continue
        network = build(config.search_space.network(candidate), number)
        training = Training(network, data, recipe_of(config, candidate, len(STEPS)), number)
        generator = torch.Generator().manual_seed(number)
        for step in STEPS:  # an epoch to `Training` is a third of the images, each once in three
            if step % PARTS == 1:
                order = torch.randperm(len(data.train_images), generator=generator)
            part = order.tensor_split(PARTS)[step % PARTS]
            images, labels = data.train_images[part], data.train_labels[part]
            training.data = replace(data, train_images=images, train_labels=labels)
            list(training.run(step))
        rows = training.rows + [{"val_accuracy": math.nan}] * (len(STEPS) - len(training.rows))
        row = dict(zip(CURVE, (one["val_accuracy"] for one in rows), strict=True))
        seconds = sum(one["epoch_seconds"] for one in training.rows)
        append(file, COLUMNS, [{"network": number, **row, "seconds": seconds}])
        last = f"{rows[-1]['val_accuracy']:.4f}"
        print(number, describe(candidate.arch), f"lr {candidate.lr:.3g}", last, flush=True)


class Deck(FlatSpace):
    """Proposes networks in an order, none twice before all have been."""

    def __init__(self, order: np.ndarray) -> None:
        super().__init__({})
        self.order = order

    def sample(self, trial: Any, arch: None = None) -> Row:
        return Row((int(self.order[trial.number % len(self.order)]),))


class Networks:
    """The recorded trainings as a world, an epoch of which is a third of one."""

    epochs = len(STEPS)
    space: Deck  # of the search that is simulated

    def __init__(self, file: Path) -> None:
        """A training that lost its loss has NaN from there on."""
        rows = read_rows(file)
        self.values = np.array([[row[name] for name in CURVE] for row in rows])
        self.times = [row["seconds"] / self.epochs for row in rows]
        self.best = float(np.nanmax(self.values[:, -1]))

    def value(self, candidate: Row, seed: int, epoch: int) -> float:
        return float(self.values[candidate.indices[0], epoch - 1])

    def true(self, candidate: Row) -> float:
        """What its whole training comes to; chance, if that has no loss."""
        return float(np.nan_to_num(self.values[candidate.indices[0], -1], nan=0.1))

    def seconds(self, candidate: Row) -> float:
        return self.times[candidate.indices[0]]


def rank_rows(world: Networks) -> Iterator[str]:
    """How well accuracy after a part of the training ranks that at its end."""
    from scipy.stats import spearmanr

    whole = world.values[np.isfinite(world.values).all(1)]
    good = whole[whole[:, -1] >= np.median(whole[:, -1])]
    yield line(["epochs", f"Spearman, all {len(whole)}", f"of the better half, {len(good)}"])
    yield line(["---"] * 3)
    for step in STEPS[:-1]:
        both = [spearmanr(some[:, step - 1], some[:, -1]).statistic for some in (whole, good)]
        yield line([f"{step / PARTS:.2f}", *(f"{value:.2f}" for value in both)])


def regrets(world: Networks, pool: np.ndarray, grace: int, seed: int) -> tuple[int, np.ndarray]:
    """Trials, and points below the best network after shares of the budget, of one search."""
    fields = {"sampler": "random", "scheduler": "asha-promote", "max_epochs": world.epochs}
    world.space = Deck(np.random.default_rng(seed).permutation(pool))
    with opened(seed, world.space, grace_epochs=grace, reduction_factor=3, **fields) as study:
        trace = simulate(Ours(study, world), world, WORKERS, BUDGET)
    changes = [(float(change[0]), change[-1]) for change in trace.changes]
    values = np.array([value_at(changes, share * BUDGET) for share in SHARES])
    return trace.trials, 100 * (world.best - values)


def race(world: Networks, pool: np.ndarray, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Of searches with each first rung: trials (rungs, seeds), regrets (rungs, seeds, shares)."""
    found = [
        [regrets(world, pool, grace, seed) for seed in range(seeds)] for grace in RUNGS.values()
    ]
    trials = [[number for number, _ in searches] for searches in found]
    return np.array(trials), np.array([[points for _, points in searches] for searches in found])


def gains(points: np.ndarray) -> np.ndarray:
    """Means of the points by which the earlier first rung is better after shares of the budget."""
    late, early = points.mean(1)
    return late - early


def race_rows(world: Networks, seeds: int) -> Iterator[str]:
    """Searches with each first rung, and the gain of the earlier one, over the same seeds. Its
    interval is of other networks: those of its bootstrap are drawn from the recorded ones."""
    pool, rng = np.arange(len(world.values)), np.random.default_rng(0)
    yield line(["rungs, epochs", "trials", *(f"regret at {share:.0%}" for share in SHARES)])
    yield line(["---"] * (2 + len(SHARES)))
    trials, points = race(world, pool, seeds)
    for name, numbers, searches in zip(RUNGS, trials, points, strict=True):
        cells = (quartiles(column, ".2f") for column in searches.T)
        yield line([name, f"{np.median(numbers):.0f}", *cells])
    others = [gains(race(world, rng.choice(pool, len(pool)), ORDERS)[1]) for _ in range(DRAWS)]
    low, high = np.quantile(others, (0.025, 0.975), axis=0)
    of_all = zip(gains(points), low, high, strict=True)
    cells = (f"{mean:+.2f} ({least:+.2f} to {most:+.2f})" for mean, least, most in of_all)
    yield line(["gain of the earlier: mean (95 %)", "", *cells])


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", type=int, default=0, help="train so many first")
    parser.add_argument("--seeds", type=int, default=60)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.networks:
        record(options.networks, options.folder / FILE)
    world = Networks(options.folder / FILE)
    for text in (*rank_rows(world), "", *race_rows(world, options.seeds)):
        print(text, flush=True)


if __name__ == "__main__":
    main()
