"""What a run folder says, read strictly, and what in it should not be trusted."""

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from vgg_search.errors import InputError
from vgg_search.space.arch import read_arch
from vgg_search.space.dimension import Dim
from vgg_search.space.search_space import Space

STATES = [
    "completed", "pruned", "diverged", "failed", "interrupted", "waiting", "running", "infeasible",
    "duplicate",
]  # fmt: skip
NOT_TRAINED = ["infeasible", "duplicate"]
TEXT = ["state", "arch", "worker", "error"]
TRIAL_COLUMNS = [
    "number", "state", "arch", "depth", "width", "num_blocks", "lr", "weight_decay", "dropout",
    "hidden_features", "batch_norm", "batch_size", "num_params", "flops_per_image", "epochs",
    "val_accuracy", "best_val_accuracy", "best_epoch", "seconds", "started", "ended", "worker",
    "error",
]  # fmt: skip
EPOCH_COLUMNS = [
    "number", "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr",
    "epoch_seconds", "images_per_second", "time",
]  # fmt: skip
SUMMARY_KEYS = [
    "study", "state", "dataset", "trials", "epochs_trained", "best_val_accuracy", "best_trial",
    "best_arch", "baseline_val_accuracy", "champion", "wall_seconds", "search_seconds",
    "startup_seconds_per_trial", "slot_busy_fraction", "images_per_second", "versions", "commit",
    "seed",
]  # fmt: skip
CONFIG_KEYS = ["space", "resolution", "batch_size", "val_images"]
BLOCK = re.compile(r"(num_convs|out_channels)_(\d+)")  # held by arch, not a column each

# Ten runs a dimension: Loeppky, Sacks and Welch, Technometrics 51 (2009), section 1.
TRIALS_PER_DIMENSION = 10
DIVERGED_SHARE, TEST_GAP = 0.2, 0.01
TOP_SHARE, TOP_LEAST = 0.2, 5
EDGE_SHARE, EDGE_MARGIN = 0.6, 0.05
# Where a dimension ends by nature, so that nobody can widen it.
FLOORS = {"num_blocks": 1, "num_convs": 1, "num_hidden": 0, "dropout": 0.0, "weight_decay": 0.0}


class ReportError(InputError):
    """A run folder that cannot be reported: names the file, and the column or key."""


@dataclass(frozen=True)
class Run:
    """The tables of a run folder; `trials` is indexed by number, `model` is the champion's card."""

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    trials: pd.DataFrame
    epochs: pd.DataFrame
    model: dict[str, Any] | None
    space: Space

    @cached_property
    def trained(self) -> pd.DataFrame:
        """Trials that a worker was asked for."""
        return self.trials[~self.trials["state"].isin(NOT_TRAINED)]

    @cached_property
    def ranked(self) -> pd.DataFrame:
        """Completed and pruned trials, best first: who got further, then who scored higher."""
        rows = self.trained[self.trained["state"].isin(["completed", "pruned"])]
        rows = rows[rows["val_accuracy"].notna()]
        return rows.sort_values(["epochs", "val_accuracy"], ascending=False, kind="stable")

    @cached_property
    def completed(self) -> pd.DataFrame:
        rows = self.ranked[self.ranked["state"] == "completed"]
        return rows.sort_values("val_accuracy", ascending=False, kind="stable")

    @cached_property
    def top(self) -> pd.DataFrame:
        """The best fifth, at least five; empty where that would be more than half of all."""
        size = max(TOP_LEAST, math.ceil(TOP_SHARE * len(self.ranked)))
        return self.ranked.head(size if 2 * size <= len(self.ranked) else 0)

    @cached_property
    def values(self) -> dict[str, pd.Series]:
        """Sampled dimension -> its values by trial number; trials without that block left out."""
        arches = self.trained["arch"].map(read_arch)
        found = {}
        for name in self.space.sampled():
            if block := BLOCK.fullmatch(name):
                part, i = block[1] == "out_channels", int(block[2]) - 1
                found[name] = arches[arches.map(len) > i].map(lambda a, i=i, p=part: a[i][p])
            else:
                found[name] = self.trained[name].dropna()
        return found

    @cached_property
    def val_images(self) -> int:
        """Size of the validation slice; the bundled sample holds out 1,000 at most."""
        asked = int(self.config["val_images"])
        return min(asked, 1_000) if self.summary["dataset"] == "sample" else asked

    @cached_property
    def test_accuracies(self) -> list[float]:
        """The champion's, one a seed."""
        metrics = (self.model or {}).get("metrics", {})
        return [float(a) for a in metrics.get("test_accuracies") or [metrics["test_accuracy"]]]


def standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy measured on so many images (binomial)."""
    return math.sqrt(max(accuracy * (1 - accuracy), 0) / images)


def _must_hold(file: str, what: str, names: list[str], found: Any) -> None:
    for name in names:
        if name not in found:
            raise ReportError(f"{file} must have {what} {name!r}, got only {', '.join(found)}")


def _text(folder: Path, file: str) -> str:
    try:
        return (folder / file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"cannot read {file} in {folder}: {error}") from None


def _mapping(folder: Path, file: str, keys: list[str]) -> dict[str, Any]:
    text = _text(folder, file)
    try:
        content = yaml.safe_load(text) if file.endswith(".yaml") else json.loads(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise ReportError(f"{file} in {folder} cannot be parsed: {error}") from None
    if not isinstance(content, dict):
        raise ReportError(f"{file} must be a map, got {content!r:.60}")
    _must_hold(file, "key", keys, content)
    return content


def _table(folder: Path, file: str, columns: list[str]) -> pd.DataFrame:
    _text(folder, file)
    try:
        table = pd.read_csv(folder / file, dtype=dict.fromkeys(TEXT, "object"))
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise ReportError(f"{file} in {folder} cannot be parsed: {error}") from None
    if table.empty:  # nothing was tried yet: no column is missed
        table = table.reindex(columns=columns)
    _must_hold(file, "column", columns, table.columns)
    for column in set(columns) - {*TEXT, "batch_norm"}:
        try:
            table[column] = pd.to_numeric(table[column])
        except (ValueError, TypeError):
            raise ReportError(f"{file} column {column!r} must hold numbers only") from None
    return table.replace([math.inf, -math.inf], math.nan)


def load(folder: Path) -> Run:
    """Read a run folder and nothing else. Raises ReportError."""
    config = _mapping(folder, "config.yaml", CONFIG_KEYS)
    summary = _mapping(folder, "summary.json", SUMMARY_KEYS)
    try:
        space = Space(config["space"], int(config["resolution"]), int(config["batch_size"]))
    except (TypeError, ValueError) as error:
        raise ReportError(f"config.yaml: {error}") from None
    sampled = [n for n in space.sampled() if n not in TRIAL_COLUMNS and not BLOCK.fullmatch(n)]
    trials = _table(folder, "trials.csv", TRIAL_COLUMNS + sampled).set_index("number", drop=False)
    trials["state"] = trials["state"].fillna("running")
    for column in set(trials["state"]) - set(STATES):
        raise ReportError(f"trials.csv state must be one of {', '.join(STATES)}, got {column!r}")
    model = None
    if summary["champion"]:
        _must_hold("summary.json", "champion key", ["test_accuracy"], summary["champion"])
        model = _mapping(folder, "champion/model.json", ["options", "metrics"])
        _must_hold("champion/model.json", "metric", ["test_accuracy"], model["metrics"])
    epochs = _table(folder, "epochs.csv", EPOCH_COLUMNS).sort_values(["number", "epoch"])
    return Run(folder, config, summary, trials, epochs, model, space)


def _position(dim: Dim, value: Any) -> float | None:
    """Where a value lies between a dimension's ends, 0 to 1; None if it has no inside."""
    ends = [dim.low, dim.high]
    if dim.choices:
        if dim.kind is bool or len(dim.choices) < 3:
            return None
        ends = [min(dim.choices), max(dim.choices)]  # type: ignore[list-item]
    elif dim.kind is int and dim.high - dim.low < 2:
        return None
    if not ends[0] <= value <= ends[1]:  # an enqueued arch may lie outside the space
        return None
    low, high, value = (math.log(v) if dim.log else float(v) for v in (*ends, value))
    return (value - low) / (high - low)


def edges(run: Run) -> pd.DataFrame:
    """How many of the top trials sit at the ends of each sampled dimension that has an inside.

    Columns: name, trials, lower, upper (counts), best_lower, best_upper (is the best one there),
    floor, ceiling (does the space end there by nature).
    """
    rows = []
    for name, dim in run.space.sampled().items():
        values = run.values[name]
        top = values[values.index.isin(run.top.index)].reindex(run.top.index).dropna()
        places = top.map(lambda v, dim=dim: _position(dim, v)).dropna().astype(float)
        if len(places) < TOP_LEAST:
            continue
        lower, upper = places <= EDGE_MARGIN, places >= 1 - EDGE_MARGIN
        base = re.sub(r"_\d+$", "", name)
        ends = dim.choices or (dim.low, dim.high)
        most = int(run.config["resolution"]).bit_length() - 1
        rows.append({
            "name": name, "trials": len(places), "lower": lower.sum(), "upper": upper.sum(),
            "best_lower": lower.iloc[0], "best_upper": upper.iloc[0],
            "floor": min(ends) == FLOORS.get(base),
            "ceiling": base == "num_blocks" and max(ends) == most,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _edge_warnings(run: Run) -> list[str]:
    table = edges(run)
    found = []
    for side, natural in (("lower", "floor"), ("upper", "ceiling")):
        if not len(table):
            break
        hit = table[f"best_{side}"] & (table[side] >= EDGE_SHARE * table["trials"])
        rows = table[hit & ~table[natural]]
        names = ", ".join(f"{r['name']} ({r[side]} of {r.trials})" for _, r in rows.iterrows())
        if names:
            found.append(f"The best trials sit at the {side} edge of {names}: widen it.")
    return found


def _score_warnings(run: Run) -> list[str]:
    found: list[str] = []
    best, baseline = run.summary["best_val_accuracy"], run.summary["baseline_val_accuracy"]
    if best is not None and baseline is not None and best <= baseline:
        found.append(f"Nothing beat the baseline: best {best:.4f}, baseline {baseline:.4f}.")
    if len(run.completed) >= 2:
        first, second = run.completed.iloc[0], run.completed.iloc[1]
        noise = standard_error(first["val_accuracy"], run.val_images)
        source = f"standard error on {run.val_images:,} validation images"
        spread = pd.Series(run.test_accuracies).std() if run.model else math.nan
        if spread > noise:
            noise, source = spread, f"spread over {len(run.test_accuracies)} champion seeds"
        lead = first["val_accuracy"] - second["val_accuracy"]
        if lead < 2 * noise:
            smaller = first if first["num_params"] <= second["num_params"] else second
            found.append(
                f"Trial {first['number']} leads trial {second['number']} by {lead:.4f}, within "
                f"{2 * noise:.4f} of noise (twice the {source}): their order may be chance, and "
                f"trial {smaller['number']} is the smaller network."
            )
    if run.model and best is not None:
        test = float(run.summary["champion"]["test_accuracy"])
        on_test = standard_error(test, 2_000 if run.summary["dataset"] == "sample" else 10_000)
        noise = math.hypot(standard_error(best, run.val_images), on_test)
        if best - test > max(TEST_GAP, 2 * noise):
            had, asked = run.model.get("epochs"), run.config.get("max_epochs")
            why = "the search has fitted the validation images. Trust the test score."
            if had and asked and had < asked:
                why = f"the champion had fewer epochs ({had}) than its trial ({asked})."
            found.append(
                f"The search score {best:.4f} is {best - test:.4f} above the test score "
                f"{test:.4f}: {why}"
            )
    return found


def health(source: Run | Path) -> list[str]:
    """What a reader should know before trusting the study, gravest first."""
    run = source if isinstance(source, Run) else load(source)
    states, total, found = run.trained["state"].value_counts(), len(run.trained), []
    if run.summary["state"] != "completed":
        found.append(f"The study is {run.summary['state']}: this is what it had until then.")
    if run.summary["dataset"] == "sample":
        found.append("Trained on the bundled sample: no number compares with a published one.")
    if not len(run.completed):
        found.append("No trial was completed: all that is here was stopped on the way.")
    failed, diverged = states.get("failed", 0), states.get("diverged", 0)
    if failed:
        found.append(f"{failed} of {total} trials failed: the report lists their errors.")
    if diverged > DIVERGED_SHARE * total:
        found.append(f"{diverged} of {total} trials diverged: lower the upper end of lr.")
    dimensions, trials = len(run.space.sampled()), len(run.ranked) + diverged
    if trials < TRIALS_PER_DIMENSION * dimensions:
        found.append(
            f"The budget is small for the space: {trials} trials for {dimensions} sampled "
            f"dimensions, where ten a dimension would be {TRIALS_PER_DIMENSION * dimensions}. "
            "Search longer, or fix what matters least."
        )
    return found + _score_warnings(run) + _edge_warnings(run)
