"""The experiment: one flat schema, read from flags, environment, file and defaults, in that order.

Only `space` is nested. The defaults below are the default experiment; `experiments/quick.yaml`
spells them out. Nothing heavy is imported here, so that `--help` and errors answer at once.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    SettingsConfigDict,
)

from vgg_search.errors import InputError
from vgg_search.records import AUTO, DATASETS
from vgg_search.space.arch import Arch, as_arch, check_arch
from vgg_search.space.search_space import Space

ENV_PREFIX = "VGG_SEARCH_"
TRACKERS = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "file", "databricks")
# What a resumed study may be given anew: budgets, cluster, tracking, and where the data lies.
RESUMABLE = frozenset(
    [
        "num_trials",
        "time_budget",
        "gpu_hours",
        "address",
        "cpus_per_trial",
        "gpus_per_trial",
        "max_concurrent",
        "workers_per_trial",
        "skip_bad_nodes",
        "storage_path",
        "tracking_uri",
        "experiment",
        "data_dir",
    ]
)
DEFAULT_SPACE: dict[str, Any] = {
    "num_blocks": [1, 3],
    "num_convs": [1, 2],
    "out_channels": [16, 32, 64],
    "hidden_features": {"choices": [64, 128, 256]},
    "num_hidden": 1,
    "batch_norm": [True, False],
    "dropout": [0.0, 0.3],
    "lr": [0.02, 0.4],
    "weight_decay": [1e-5, 2e-3],
    "max_flops": 20_000_000,
}


class ConfigError(InputError):
    """Bad input: one line, rule and received value."""


def _duration(value: Any) -> Any:
    """Seconds of "90s", "6m", "1h30m" or a number."""
    if isinstance(value, str) and not re.fullmatch(r"\d+(\.\d+)?", value):
        number = r"(\d+(?:\.\d+)?)"
        parts = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?", value.strip())
        if not value.strip() or not parts:
            raise ValueError("be a time such as 90s, 6m or 1h30m")
        units = zip(parts.groups(), (3600, 60, 1), strict=True)
        return sum(float(n or 0) * unit for n, unit in units)
    return value


def _name(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise ValueError("be letters, digits, '.', '_' or '-', at most 100")
    return value


def check_tracker(value: str | None) -> str | None:
    scheme, colon, rest = (value or "").partition(":")
    known = scheme.split("+")[0] in TRACKERS and (not scheme.startswith("http") or rest[2:])
    if colon and not known:
        raise ValueError(f"be a path or an address that begins with {', '.join(TRACKERS)}")
    return value


def _by_hand(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`enqueue` with each arch as tuples."""
    for row in rows:
        try:
            pairs = [(int(convs), int(channels)) for convs, channels in row.get("arch") or ()]
            if [list(block) for block in row.get("arch") or ()] != [list(pair) for pair in pairs]:
                raise ValueError
        except (TypeError, ValueError):
            raise ValueError(
                "hold each arch as a list of [num_convs, out_channels] pairs"
            ) from None
    return [row | {"arch": as_arch(row["arch"])} if row.get("arch") else row for row in rows]


Seconds = Annotated[float, BeforeValidator(_duration), Field(gt=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Baseline = Annotated[
    Arch | None,
    # A flag's null arrives as a list of one
    BeforeValidator(lambda value: None if value in ("null", [None], ["null"]) else value),
    PlainSerializer(lambda arch: arch and [list(block) for block in arch]),
]


class Config(BaseSettings):
    """One experiment. Frozen; every field has its unit in its name or its text."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        cli_kebab_case=True,
        cli_hide_none_type=True,
    )

    name: Annotated[str | None, AfterValidator(_name)] = None
    """Name of the study and its run folder; without it, the file's stem and the time."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of proposals, initial weights, shuffling and augmentation."""

    dataset: Literal[(AUTO, *DATASETS)] = AUTO  # type: ignore[valid-type]  # known when run
    """auto: the real set where it can be had, else the bundled sample, loudly."""
    data_dir: Path | None = None
    """Folder with Fashion-MNIST in torchvision's layout, packed or unpacked."""
    resolution: Annotated[int, Field(ge=2, le=1024)] = 28
    """Side of the images, px; other than 28 they are resized on the device."""
    val_images: Positive = 10_000
    """Images held out of the training split; what search and early stopping see."""
    train_images: Positive | None = None
    """Training images of a trial; without it, all that are not held out."""

    num_trials: Positive = 24
    """Trials to train; proposals that need no training are not counted."""
    max_epochs: Positive = 4
    """Epochs of a trial that is never stopped."""
    grace_epochs: Positive = 1
    """Epochs that each trial gets before it can be stopped (the first rung)."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """One in so many trials goes on from a rung to the next."""
    scheduler: Literal["asha", "asha-promote", "none"] = "asha-promote"
    """At a rung a trial goes on or ends (asha), or waits to be promoted (asha-promote)."""
    sampler: Literal["tpe", "tpe-joint", "random", "gp", "cmaes"] = "tpe"
    """Who proposes: Optuna's TPE (one dimension at a time, or jointly), random, GP or CMA-ES."""
    baseline: Baseline = ((1, 16), (1, 32), (2, 64))
    """An arch trained to the end as trial 0, beside which the best is shown; null: none."""
    enqueue: Annotated[list[dict[str, Any]], AfterValidator(_by_hand)] = []
    """Trials to start with: each a map of an `arch` and of sampled dimensions."""
    warm_start: str | None = None
    """A study (name or run folder) on the same data, whose trials the sampler is to know."""
    time_budget: Seconds | None = 300.0
    """Time of the search (90s, 6m, 1h30m); the champion may take 0.6 of it on top."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Device hours that trials may use together; then nothing new starts."""

    batch_size: Positive = 128
    """Images a step, where the space does not sample it."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum of SGD; 0 is plain SGD."""
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    """Learning rate over a trial: up to `lr` and down to nothing, or `lr` throughout."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a label that is spread over all classes."""
    flip: bool = True
    """Flip half of the training images left to right."""
    crop: Annotated[int, Field(ge=0, le=16)] = 0
    """Shift training images by up to so many px (of 28) each way."""
    erase: Annotated[int, Field(ge=0, le=27)] = 0
    """Side of a random square blanked in training images, px (of 28)."""
    ema: bool = True
    """Validate on an exponential moving average of the weights."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the device has it natively."""
    needs_gpu: bool = False
    """Refuse to train without a GPU."""

    address: str | None = None
    """Ray cluster to join (auto, host:port); without it RAY_ADDRESS, else a local one."""
    cpus_per_trial: Annotated[float, Field(gt=0)] = 1
    """CPU cores of a trial."""
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs of a trial, a fraction packs several on one; auto: as many on each as it bears."""
    max_concurrent: Positive | None = None
    """Trials at a time; without it, as many as the cluster has room for, as it changes."""
    workers_per_trial: Positive = 1
    """Processes that train one network together (DDP), each with a trial's CPUs and GPUs."""
    skip_bad_nodes: bool = False
    """Start without the nodes whose versions or storage are not the driver's."""

    storage_path: str = "runs"
    """Where run folders go: a folder that all nodes see, or a bucket (s3://...)."""
    tracking_uri: Annotated[str | None, AfterValidator(check_tracker)] = None
    """MLflow; without it MLFLOW_TRACKING_URI, else sqlite:///mlflow.db where the command runs."""
    experiment: Annotated[str, Field(min_length=1)] = "vgg-search"
    """MLflow experiment."""
    top_k: Annotated[int, Field(ge=0)] = 10
    """Trials that keep their best checkpoint."""
    checkpoint_every: Positive = 1
    """Epochs between checkpoints; there is one at each rung in any case."""
    champion_epochs: Annotated[int, Field(ge=0)] = 12
    """Epochs of the champion, fewer if 0.6 of the time budget forbids so many; 0: no champion."""
    champion_seeds: Positive = 1
    """Fresh seeds with which the champion is trained; the first is registered."""

    space: dict[str, Any] = DEFAULT_SPACE
    """The search space, as in the README."""

    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, **_):  # type: ignore[no-untyped-def]
        # Layers are laid by `load_config`, so that Python's Config(...) means what it says.
        return (init_settings,)

    @cached_property
    def search_space(self) -> Space:
        return Space(self.space, self.resolution, self.batch_size)

    @model_validator(mode="after")
    def _agree(self) -> "Config":
        if self.grace_epochs > self.max_epochs:
            raise ValueError(
                f"grace_epochs must be <= max_epochs ({self.max_epochs}), got {self.grace_epochs}"
            )
        if self.warm_start is not None and self.sampler in ("random", "cmaes"):
            raise ValueError(f"warm_start must have sampler tpe or gp, got {self.sampler}")
        space = self.search_space
        for i, trial in enumerate(self.trials_by_hand):
            try:
                if "arch" in trial:
                    check_arch(trial["arch"], self.resolution)
                space.enqueued(trial)
            except ValueError as error:
                what = "baseline" if i == 0 and self.baseline is not None else "enqueue"
                raise ValueError(f"{what}: {error}") from None
        return self

    @property
    def trials_by_hand(self) -> list[dict[str, Any]]:
        """The baseline, then what the file enqueues; each may hold an `arch`."""
        return ([{"arch": self.baseline}] if self.baseline is not None else []) + self.enqueue

    def dump(self) -> str:
        """The resolved experiment as YAML, which reads back as an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)
