"""Learning curves of any configuration, from a model of `record_curves.py`'s table.

Samplers propose learning rates that nobody trained, so there is a model between the recorded
configurations, as in tabular benchmarks that went the same way (NAS-Bench-301, arXiv:2008.09777;
YAHPO Gym, arXiv:2109.03670): a Gaussian process on -log(1 - accuracy) of all epochs at once.
Rounding each proposal to the nearest recorded one instead would give a sampler plateaus that
reality has not, and answer most late proposals as duplicates. How well the model ranks
configurations that it has not seen: results/2026-11-24_search_efficiency/curve_model.txt.
"""

import csv
import gzip
import math
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from record_curves import EPOCHS, TABLE, experiment

from vgg_search.records import METRIC
from vgg_search.space.arch import as_arch
from vgg_search.space.candidate import Candidate
from vgg_search.study.sampling import random_candidates

CHANCE, ALIVE = 0.1, 0.6  # accuracies
FLOPS = 7  # of the features
SAMPLE = 20_000  # random configurations, whose best is what regret is measured against
SPACE = experiment().search_space


def features(candidate: Candidate) -> list[float]:
    """What the model sees of a configuration."""
    arch = candidate.arch
    params, flops = SPACE.costs(candidate)
    depth = [len(arch), sum(convs for convs, _ in arch), arch[0][0], arch[-1][0]]
    width = [arch[0][1], arch[-1][1], math.log(params), math.log(flops)]
    rest = [math.log2(candidate.hidden_features), candidate.batch_norm, candidate.dropout]
    return [*depth, *width, *rest, math.log10(candidate.lr), math.log10(candidate.weight_decay)]


def read_table() -> list[dict[str, Any]]:
    """Rows of the table with `candidate` and `curve` (EPOCHS,), NaN once a training was lost."""
    rows = []
    with gzip.open(TABLE, "rt", newline="") as file:
        for row in csv.DictReader(file):
            arch = as_arch([block.split("x") for block in row["arch"].split("-")])
            kinds: dict[str, Callable[[str], Any]] = {"batch_norm": lambda text: text == "True"}
            kinds |= dict.fromkeys(("lr", "weight_decay", "dropout"), float)
            names = "lr weight_decay batch_size dropout hidden_features num_hidden batch_norm"
            values = {name: kinds.get(name, int)(row[name]) for name in names.split()}
            curve = [float(row[f"{METRIC}_{e}"] or "nan") for e in range(1, EPOCHS + 1)]
            lost = [row[f"train_loss_{e}"] == "" for e in range(1, EPOCHS + 1)]
            seconds = [float(row[f"epoch_seconds_{e}"] or "nan") for e in range(1, EPOCHS + 1)]
            rows.append(
                {"candidate": Candidate(arch=arch, **values), "seed": int(row["seed"])}
                | {"curve": np.where(lost, np.nan, curve), "seconds": np.nanmedian(seconds)}
            )
    return rows


def squash(accuracy: np.ndarray) -> np.ndarray:
    """Where errors of a good network count as much as those of a poor one."""
    return -np.log(1.0001 - accuracy)


class Curves:
    """Curves of any configuration, from the table's."""

    space, epochs = SPACE, EPOCHS

    def __init__(self) -> None:
        rows = read_table()
        first, second = ([row for row in rows if row["seed"] == seed] for seed in (0, 1))
        self.candidates = [row["candidate"] for row in first]
        self.inputs = np.array([features(candidate) for candidate in self.candidates])
        self.curves = np.array(
            [[a["curve"], b["curve"]] for a, b in zip(first, second, strict=True)]
        )
        filled = squash(np.nan_to_num(self.curves, nan=CHANCE))  # (configs, seeds, epochs)
        self.outputs, self.differences = filled.mean(1), filled[:, 1] - filled[:, 0]
        self.alive = (np.nan_to_num(self.curves[:, :, -1]) > ALIVE).all(1)
        costs = np.array([[1.0, math.exp(row[FLOPS])] for row in self.inputs])  # flops
        seconds = np.array(
            [[a["seconds"], b["seconds"]] for a, b in zip(first, second, strict=True)]
        ).mean(1)
        # Relative errors, for the machine was shared: all epochs were slow at some time
        weights = 1 / seconds
        self.cost = np.linalg.lstsq(costs * weights[:, None], seconds * weights, rcond=None)[0]
        self._curves: dict[tuple[Candidate, int], tuple[np.ndarray, np.ndarray]] = {}

    @cached_property
    def fitted(self) -> Any:
        """The scaler of the features and the Gaussian process, fitted to all epochs at once."""
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        scales = Matern(np.ones(self.inputs.shape[1]), (0.1, 100.0), nu=2.5)
        process = GaussianProcessRegressor(
            ConstantKernel() * scales + WhiteKernel(), normalize_y=True, random_state=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a length scale at its bound: a feature without effect
            return make_pipeline(StandardScaler(), process).fit(self.inputs, self.outputs)

    def predict(self, candidate: Candidate) -> np.ndarray:
        """Squashed accuracy of each epoch, without noise."""
        return self.fitted.predict(np.array([features(candidate)]))[0]

    @cached_property
    def best(self) -> float:
        """The best noise-free value of a random sample of the space."""
        inputs = np.array([features(c) for c in random_candidates(SPACE, 0, SAMPLE)])
        parts = [self.fitted.predict(part)[:, -1] for part in np.array_split(inputs, 20)]
        return float(self.accuracy(np.concatenate(parts)).max())

    @staticmethod
    def accuracy(squashed: np.ndarray) -> np.ndarray:
        return np.clip(1.0001 - np.exp(-squashed), CHANCE, 0.999)

    def nearest(self, candidate: Candidate, among: np.ndarray) -> int:
        """The recorded configuration most like it, in the model's own measure of distance."""
        scaler, process = self.fitted[0], self.fitted[1]
        scales = process.kernel_.k1.k2.length_scale
        difference = scaler.transform([features(candidate)]) - scaler.transform(self.inputs)
        distance = ((difference / scales) ** 2).sum(1)
        return int(np.where(among, distance, np.inf).argmin())

    def curves_of(self, candidate: Candidate, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(as it is, as reported) val_accuracy by epoch; NaN from where a training is lost."""
        key = (candidate, seed)
        if key not in self._curves:
            mean = self.predict(candidate)
            true = self.accuracy(mean)
            alive = true[-1] > ALIVE
            near = self.nearest(candidate, self.alive if alive else ~self.alive)
            # Half of the difference reproduces the two seeds; 0.71 of it has their variance
            share = (1 if seed % 2 else -1) * (math.sqrt(0.5) if alive else 0.5)
            seen = self.accuracy(mean + share * self.differences[near])
            if not alive:  # as lost as its neighbour, whose loss may have left the numbers
                seen = np.where(np.isnan(self.curves[near, seed % 2]), np.nan, seen)
            self._curves[key] = true, seen
        return self._curves[key]

    def value(self, candidate: Candidate, seed: int, epoch: int) -> float:
        """val_accuracy as a training reports it; NaN once it is lost."""
        return float(self.curves_of(candidate, seed)[1][epoch - 1])

    def true(self, candidate: Candidate) -> float:
        """val_accuracy after the last epoch, without noise."""
        return float(self.curves_of(candidate, 0)[0][-1])

    def seconds(self, candidate: Candidate) -> float:
        """Of an epoch: an offset and a share of the network's FLOPs, fitted to the table."""
        return float(self.cost @ [1.0, SPACE.costs(candidate)[1]])
