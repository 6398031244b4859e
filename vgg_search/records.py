"""What everybody speaks of: the metric, an epoch's row, the states of a trial.

Each name that is written to a file, a table or the tracker stands here once. Nothing is imported
but the standard library, so that any room may use it.
"""

import math
from collections.abc import Mapping
from typing import Any, Final, Literal, Required, TypedDict

METRIC: Final = "val_accuracy"  # what trials are ranked by: higher is better
BEST_METRIC = f"best_{METRIC}"

# Data set -> its module in data/, where its SOURCES has it; a new one is a line there and one here
DATASETS = {
    "fashion-mnist": "fashion_mnist",
    "sample": "bundled",
    "mnist": "published",
    "kmnist": "published",
    "emnist-balanced": "published",
    "emnist-letters": "published",
    "cifar10": "published",
    "cifar100": "published",
    "svhn": "published",
}
# What a path names instead -> its module, which has `at(path)`
OWN_FOLDER, OWN_FILE = "folder", ".npz"
OWN = {OWN_FOLDER: "folder", OWN_FILE: "npz"}
AUTO: Final = "auto"  # the whole set where it can be had, else the bundled sample


class EpochMetrics(TypedDict, total=False):
    """What an epoch of training is measured by. A champion's row has no `val_` fields."""

    train_loss: Required[float]
    """Mean over the epoch's (augmented) batches."""
    train_accuracy: Required[float]
    """Fraction in [0, 1], over the same batches."""
    val_loss: float
    """Mean over all validation images; NaN where the network diverged."""
    val_accuracy: float
    """Fraction in [0, 1] of the validation images."""
    lr: Required[float]
    """Learning rate of the epoch's last step."""
    epoch_seconds: Required[float]
    """Training and validation."""
    images_per_second: Required[float]
    """Of training alone."""


class EpochRow(EpochMetrics, total=False):
    """One epoch of a trial, as it travels from the worker to the record."""

    epoch: Required[int]
    """From 1 on."""
    worker: str
    """host:process."""
    peak_memory_mib: float
    """The most that the worker has held: of the GPU where it trains there, else resident."""
    ended: float
    """Unix time on the worker's clock."""
    time: float
    """Seconds of search when the driver heard of it, over all sessions."""


EPOCH_METRICS = tuple(EpochMetrics.__annotations__)
EPOCH_COLUMNS = ("number", "epoch", *EPOCH_METRICS, "time")  # of epochs.csv

State = Literal[
    "completed",
    "pruned",
    "diverged",
    "infeasible",
    "duplicate",
    "failed",
    "interrupted",
    "waiting",
    "running",
]
UNTRAINED: tuple[State, ...] = ("infeasible", "duplicate")  # no worker was asked to train it
UNUSABLE: tuple[State, ...] = ("diverged", "failed")  # told to the sampler as infeasible
COUNTED: tuple[State, ...] = (  # in summary.json, in this order
    "completed",
    "pruned",
    "diverged",
    "infeasible",
    "failed",
    "interrupted",
)


def metrics_of(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's metrics, those that it has."""
    return {name: row[name] for name in EPOCH_METRICS if name in row}


def diverged(row: Mapping[str, Any]) -> bool:
    """Whether an epoch's row is that of a network that cannot be trained on: a value that is there
    is not finite."""
    return not all(math.isfinite(row.get(name, 0.0)) for name in ("train_loss", "val_loss", METRIC))
