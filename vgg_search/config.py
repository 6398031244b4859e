"""The experiment: one flat schema. Each field is said once: default, bound, unit and help.

Only `space` is nested. The defaults are the default experiment; `experiments/quick.yaml` spells
them out. Nothing heavy is imported here, so that `--help` and errors answer at once.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from vgg_search.errors import InputError, did_you_mean
from vgg_search.objectives import ACCURACY, Objectives, Pick, Sampler, check_together, sampler_for
from vgg_search.records import AUTO, DATASETS, METRIC, OWN_FILE
from vgg_search.space import default_space
from vgg_search.space.arch import Arch, check_arch
from vgg_search.space.data_shape import ASSUMED, MOST_SIDE, DataShape
from vgg_search.space.search_space import Space
from vgg_search.storage.addresses import check_storage, check_tracker, masked, without_password
from vgg_search.storage.folder import RUNS, expanded

ENV_PREFIX = "VGG_SEARCH_"


class ConfigError(InputError):
    """Bad input: one line, rule and received value."""


def _seconds(value: Any) -> Any:
    """Seconds of "90s", "6m", "1h30m" or a number."""
    if not isinstance(value, str) or re.fullmatch(r"\d+(\.\d+)?", value):
        return value
    number = r"(\d+(?:\.\d+)?)"
    parts = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?", value.strip())
    if not value.strip() or not parts:
        raise ValueError("be a time such as 90s, 6m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in parts.groups())
    return 3600 * hours + 60 * minutes + seconds


def _from_json(value: Any) -> Any:
    """A flag's or a variable's text as what it says; what a file holds is not text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("be valid JSON") from None


def check_dataset(value: str) -> str:
    """A data set by name, or a path. Raises ValueError for what is neither; whether it can be read
    is known where it is read."""
    names = (AUTO, *DATASETS)
    if value not in names and os.sep not in value and not os.path.exists(value):
        raise ValueError(f"be {', '.join(names)}, a folder of class folders or an {OWN_FILE} file")
    return value if value in names else str(Path(expanded(value)).absolute())


def _text(value: Any) -> Any:
    """A path as Python's callers may give it."""
    return str(value) if isinstance(value, Path) else value


def _expanded_path(value: Path | None) -> Path | None:
    return value and Path(expanded(str(value)))


def _queued_trial(trial: dict[str, Any]) -> dict[str, Any]:
    """A trial of `enqueue` with its arch as tuples."""
    try:
        return trial | {"arch": _ARCH.validate_python(trial["arch"])} if "arch" in trial else trial
    except ValidationError:
        raise ValueError("hold each arch as a list of [num_convs, out_channels] pairs") from None


def resumable(default: Any) -> Any:
    """The default of a field that a resumed study may be given anew."""
    return Field(default, json_schema_extra=_RESUMABLE)


_ARCH = TypeAdapter(Arch)
_RESUMABLE: dict[str, Any] = {"resumable": True}
T = TypeVar("T")
FromJson = Annotated[T, "JSON", NoDecode, BeforeValidator(_from_json)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Seconds = Annotated[float, "TIME", BeforeValidator(_seconds), Field(gt=0)]
Positive = Annotated[int, Field(ge=1)]
# A string among the metadata of a type is what `--help` says of it
Dataset = Annotated[str, "NAME|PATH", BeforeValidator(_text), AfterValidator(check_dataset)]
QueuedTrial = Annotated[dict[str, Any], AfterValidator(_queued_trial)]


class Fields(BaseSettings):
    """What all sets of fields have in common: they are frozen, and named and read alike."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        cli_kebab_case=True,
        cli_hide_none_type=True,
    )

    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, **_):  # type: ignore[no-untyped-def]
        # Flags and environment are read in `cli`, so that Python's Config(...) means what it says
        return (init_settings,)


class SearchFields(Fields):
    """What is searched, on which images, and for how long."""

    name: Name | None = None
    """Name of the study and its run folder; without it, the file's stem and the time."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of proposals, initial weights, shuffling and augmentation."""

    dataset: Dataset = AUTO
    """A name, or a folder of class folders, or an .npz; auto: Fashion-MNIST where it can be had,
    else the bundled sample, loudly."""
    data_dir: Annotated[Path | None, AfterValidator(_expanded_path)] = resumable(None)
    """Folder with a named data set in torchvision's layout."""
    max_images: Positive | None = None
    """Most images to read of a folder or an .npz, training and test images together."""
    skip_broken: bool = False
    """Leave out files of a folder that cannot be read, and say how many."""
    resolution: Annotated[int, Field(ge=2, le=1024)] | None = None
    """Side of the images, px; without it the images' own, at most 64."""
    val_images: Positive | None = None
    """Images held out of the training split, which search and early stopping see; without it
    10,000, or a sixth of fewer than 60,000."""
    train_images: Positive | None = None
    """Training images of a trial; without it, all that are not held out."""

    space: Annotated[
        FromJson[dict[str, Any]],
        Field(examples=['{"num_blocks":[1,3],"out_channels":32,"lr":[0.02,0.4]}']),
    ] = default_space.SPACE
    """The search space: what is sampled, and between which ends; all in experiments/README.md."""
    objectives: Annotated[Objectives, Field(examples=["val_accuracy,num_params"])] = (METRIC,)
    """val_accuracy, or the best trade of it for num_params, flops_per_image or both."""
    num_trials: Positive = resumable(24)
    """Trials to train; proposals that need no training are not counted."""
    max_epochs: Positive = 4
    """Epochs of a trial that is never stopped."""
    grace_epochs: Positive = 1
    """Epochs that each trial gets before it can be stopped (the first rung)."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """One in so many trials goes on from a rung to the next."""
    scheduler: Literal["asha", "asha-promote", "none"] = "asha-promote"
    """At a rung a trial goes on or ends (asha), or waits to be promoted (asha-promote)."""
    sampler: Sampler = Field(default_factory=sampler_for)
    """Who proposes: curves (a Gaussian process of the learning curves), random, or Optuna's TPE
    (one dimension at a time, or jointly), GP or CMA-ES; without it curves, or tpe for a front."""
    baseline: Annotated[
        FromJson[Arch | QueuedTrial | None], Field(examples=["[[1,16],[1,32]]"])
    ] = Field(default_factory=default_space.baseline_for)
    """Trial 0, trained to the end to compare with: [num_convs, out_channels] a block, or a trial as
    of `enqueue`; or null."""
    enqueue: Annotated[
        FromJson[list[QueuedTrial]], Field(examples=['[{"arch": [[2,32],[2,64]], "lr": 0.1}]'])
    ] = []
    """Trials to start with: each a map of an `arch` and of sampled dimensions."""
    warm_start: Annotated[str, BeforeValidator(_text), AfterValidator(expanded)] | None = None
    """A study (name or run folder) on the same data, whose trials the sampler is to know."""
    time_budget: Seconds | None = resumable(300.0)
    """Time of the search (90s, 6m, 1h30m); the champion may take 0.6 of it on top."""
    gpu_hours: Annotated[float, Field(gt=0)] | None = resumable(None)
    """Device hours that trials may use together; then nothing new starts."""
    stop_when_converged: bool = resumable(False)
    """Stop once as many trials again are expected to gain less than noise."""

    batch_size: Positive = 128
    """Images a step, where the space does not sample it."""
    flip: bool | None = None
    """Flip half of the training images left to right; without it, unless they are characters."""


class RecipeFields(Fields):
    """How all networks are trained: `training.recipe.Recipe` has them too."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum of SGD; 0 is plain SGD."""
    schedule: Literal["one-cycle", "constant"] = "one-cycle"
    """Learning rate over a trial: up to `lr` and down to nothing, or `lr` throughout."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a label that is spread over all classes."""
    crop: Annotated[int, Field(ge=0, le=16)] = 0
    """Shift training images by up to so many px each way, in an image of 28 px."""
    erase: Annotated[int, Field(ge=0, le=27)] = 0
    """Side of a random square blanked in training images, px in an image of 28 px."""
    ema: bool = True
    """Validate on an exponential moving average of the weights."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the device has it natively."""


class Config(RecipeFields, SearchFields):
    """One experiment. Every field has its unit in its name or its text."""

    needs_gpu: bool = False
    """Refuse to train without a GPU."""

    address: str | None = resumable(None)
    """Ray cluster to join (auto, host:port); without it RAY_ADDRESS, else a local one."""
    cpus_per_trial: Annotated[float, Field(gt=0)] = resumable(1)
    """CPU cores of a trial."""
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = resumable("auto")
    """GPUs of a trial, a fraction packs several on one; auto: as many on each as fit."""
    max_concurrent: Positive | None = resumable(None)
    """Trials at a time; without it, as many as the cluster has room for, as it changes."""
    workers_per_trial: Positive = resumable(1)
    """Processes that train one network together (DDP), each with a trial's CPUs and GPUs."""
    insecure_cluster: bool = resumable(False)
    """Join a Ray cluster that asks for no token, though other machines can reach it."""
    skip_bad_nodes: bool = resumable(False)
    """Start without the nodes whose versions or storage are not the driver's."""

    storage_path: Annotated[str, BeforeValidator(_text), AfterValidator(check_storage)] = resumable(
        RUNS
    )
    """Where run folders go: a folder that all nodes see, or a bucket (s3://...)."""
    tracking_uri: Annotated[str | None, AfterValidator(check_tracker)] = resumable(None)
    """MLflow; without it MLFLOW_TRACKING_URI, else a resumed study's own, else sqlite:///mlflow.db."""
    experiment: Annotated[str, Field(min_length=1)] = resumable("vgg-search")
    """MLflow experiment."""
    top_k: Annotated[int, Field(ge=0)] = 10
    """Trials that keep their best checkpoint."""
    checkpoint_every: Positive = 1
    """Epochs between checkpoints; there is one at each rung in any case."""
    champion_epochs: Annotated[int, Field(ge=0)] = 12
    """Epochs of the champion, fewer if 0.6 of the time budget forbids so many; 0: no champion."""
    champion_seeds: Positive = 1
    """Fresh seeds with which the champion is trained; the first is registered."""
    pick: Pick = resumable(ACCURACY)
    """Which trial becomes champion: accuracy, knee, num_params<=N or flops_per_image<=N."""
    champions: Positive = resumable(1)
    """Trials that become champions; after the first, what differs most."""

    _data: DataShape = PrivateAttr(ASSUMED)

    @property
    def data(self) -> DataShape:
        """Of the images; of Fashion-MNIST's until `for_data` has said otherwise."""
        return self._data

    @cached_property
    def search_space(self) -> Space:
        resolution = self.resolution or self.data.resolution
        return Space(self.space, resolution, self.batch_size, self.data)

    def for_data(self, data: DataShape) -> "Config":
        """This experiment with what the data settles where nothing was asked for. Raises
        ConfigError."""
        fields = self.model_dump(exclude_unset=True)
        settled = dict(zip(SETTLED, (data.resolution, data.val_images, data.flip), strict=True))
        fields |= {name: x for name, x in settled.items() if getattr(self, name) is None}
        if self.resolution is None:
            fields |= self._fitted(data.resolution)
        config = validated(type(self), fields)
        config._data = data
        config.__dict__.pop("search_space")  # made by the checks, before the data was known
        return config

    def _fitted(self, resolution: int) -> dict[str, Any]:
        """The default space and baseline at another resolution than the one they were made for."""
        fitted = {"baseline": default_space.fitted_baseline(self.baseline, resolution)}
        if self.space == default_space.SPACE:
            fitted["space"] = default_space.fitted_space(resolution)
        return fitted

    @model_validator(mode="after")
    def _agree(self) -> "Config":
        if self.dataset not in (AUTO, "fashion-mnist", "sample"):
            # Until they have been read, as large as they may be without a resolution
            self._data = replace(ASSUMED, side=MOST_SIDE)
        if self.grace_epochs > self.max_epochs:
            raise ValueError(
                f"grace_epochs must be <= max_epochs ({self.max_epochs}), got {self.grace_epochs}"
            )
        check_together(self)
        space = self.search_space
        for i, trial in enumerate(self.trials_by_hand):
            try:
                if "arch" in trial:
                    check_arch(trial["arch"], space.resolution)
                space.enqueued(trial)
            except ValueError as error:
                what = "baseline" if i == 0 and self.baseline is not None else "enqueue"
                raise ValueError(f"{what}: {error}") from None
        return self

    @property
    def trials_by_hand(self) -> list[dict[str, Any]]:
        """The baseline, then what the file enqueues; each may hold an `arch`."""
        first = self.baseline if isinstance(self.baseline, dict) else {"arch": self.baseline}
        return ([first] if self.baseline is not None else []) + self.enqueue

    def dump(self) -> str:
        """The resolved experiment as YAML, which reads back as an equal one; a tracker's password
        is left out."""
        import yaml  # 40 ms, of which `--help` has no need

        fields = self.model_dump(mode="json")
        fields["tracking_uri"] = without_password(self.tracking_uri or "") or None
        return yaml.safe_dump(fields, sort_keys=False, width=100)


class Changes(Config):
    """What a resumed study is given anew: fields are judged together with those it has."""

    @model_validator(mode="after")
    def _agree(self) -> "Changes":
        return self


# Fields that the data settles where they are not set
SETTLED = ("resolution", "val_images", "flip")
# What a resumed study may be given anew: budgets, cluster, tracking, and where the data lies
RESUMABLE = frozenset(
    n for n, f in Config.model_fields.items() if f.json_schema_extra == _RESUMABLE
)
# Pydantic's kinds of error as rules: "field must RULE, got VALUE"
_RULES = {
    "greater_than_equal": "be >= {ge:.15g}",
    "greater_than": "be > {gt:.15g}",
    "less_than_equal": "be <= {le:.15g}",
    "less_than": "be < {lt:.15g}",
    "literal_error": "be one of {expected}",
    "string_too_short": "not be empty",
    "string_pattern_mismatch": "be letters, digits, '.', '_' or '-', at most 100, the first "
    "a letter or digit",
    "value_error": "{error}",
}
_TYPES = {"int": "be an integer", "float": "be a number", "bool": "be true or false"}
# For `--help`: the first field of each group, and what is used most
GROUPS = {
    "name": "study",
    "dataset": "data",
    "space": "search",
    "batch_size": "recipe",
    "address": "workers",
    "storage_path": "places",
    "champion_epochs": "champion",
}
MOST_USED = (
    *("--config", "--resume", "--dry-run"),
    *("name", "num_trials", "time_budget", "max_epochs", "space", "data_dir", "tracking_uri"),
)
Schema = TypeVar("Schema", bound=Fields)


def validated(schema: type[Schema], fields: Mapping[str, Any]) -> Schema:
    """The schema with these fields. Raises ConfigError."""
    try:
        return schema(**fields)
    except ValidationError as error:
        first = error.errors()[0]
    kind, context = first["type"], first.get("ctx", {})
    if not first["loc"]:  # a check across fields, worded where it is made
        raise ConfigError(str(context["error"]))
    field = str(first["loc"][0])
    if kind == "extra_forbidden":
        raise ConfigError(f"unknown field {field!r}{did_you_mean(field, schema.model_fields)}")
    rule = first["msg"].replace("Input should be ", "be ")
    if kind in _RULES:
        rule = _RULES[kind].format(**context)
    elif field == "baseline":
        rule = "be a list of [num_convs, out_channels] pairs, or a map that may hold one as arch"
    elif kind.partition("_")[0] in _TYPES:
        rule = _TYPES[kind.partition("_")[0]]
    raise ConfigError(f"{field} must {rule}, got {masked(repr(first['input']))}")
