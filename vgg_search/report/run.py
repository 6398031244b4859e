"""What the report reads: the record, config.yaml, summary.json and the champion's card."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from vgg_search.errors import InputError
from vgg_search.records import METRIC, UNTRAINED, EpochRow
from vgg_search.space.data_shape import ASSUMED
from vgg_search.space.search_space import Space
from vgg_search.storage.checksums import check_text, read_cards
from vgg_search.storage.folder import CARD, CHAMPION, CONFIG, JOURNAL, SUMMARY
from vgg_search.study.record import candidate_of, read_trials, rows_of
from vgg_search.study.tables import trial_rows

Row = dict[str, Any]
TOP_SHARE, TOP_LEAST = 0.2, 5
CURE = "restore it from a copy, or --resume the study, which goes on and writes its results anew"


class ReportError(InputError):
    """A run folder that cannot be reported: one line that names the file."""


class Content(dict[str, Any]):
    """A map out of a file, for whose missing keys it raises ReportError with the file's name."""

    def __init__(self, file: str, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.file = file

    def __missing__(self, key: str) -> Any:
        keys = ", ".join(map(str, self)) or "none"
        raise ReportError(f"{self.file} must have key {key!r}, got only {keys}")


@dataclass(frozen=True)
class Run:
    """A run folder; trials are by number."""

    folder: Path
    config: Content
    summary: Content
    card: Content | None
    """The champion's."""
    space: Space
    proposals: dict[int, Row]
    """Rows as in trials.csv."""
    params: dict[int, Row]
    """`Candidate.params` and `block_params` of each proposal."""
    curves: dict[int, list[EpochRow]]
    """Epochs of each trained trial that has reported one."""

    @cached_property
    def trained(self) -> list[Row]:
        """Trials that a worker was asked for."""
        return [row for row in self.proposals.values() if row["state"] not in UNTRAINED]

    @cached_property
    def ranked(self) -> list[Row]:
        """Completed and pruned trials, best first: who got further, then who scored higher."""
        rows = [row for row in self.trained if row["state"] in ("completed", "pruned")]
        rows = [row for row in rows if row[METRIC] is not None]
        return sorted(rows, key=lambda row: (-row["epochs"], -row[METRIC]))

    @cached_property
    def completed(self) -> list[Row]:
        """Completed trials, best first."""
        return [row for row in self.ranked if row["state"] == "completed"]

    @cached_property
    def top(self) -> list[Row]:
        """The best fifth, at least five; empty where that would be more than half of all."""
        size = max(TOP_LEAST, math.ceil(TOP_SHARE * len(self.ranked)))
        return self.ranked[:size] if 2 * size <= len(self.ranked) else []

    @cached_property
    def times(self) -> list[float]:
        """When each epoch of any trial ended, in seconds of search."""
        return sorted(row["time"] for rows in self.curves.values() for row in rows)

    @property
    def crowned(self) -> dict[int, Row]:
        """Champions in the summary by the number of their trial, the first first."""
        first, more = self.summary["champion"], self.summary.get("more_champions", [])
        champions = [first, *more] if first else []
        trials = [c.get("trial", self.summary["best_trial"]) for c in champions]  # older: the best
        return dict(zip(trials, champions, strict=True))

    @property
    def champion_score(self) -> float | None:
        """The search's score of the champion's trial."""
        champion, best = self.summary["champion"], self.summary[f"best_{METRIC}"]
        score: float | None = champion.get(METRIC, best) if champion else None
        return score

    @property
    def baseline(self) -> float | None:
        """The baseline's score."""
        score: float | None = self.summary[f"baseline_{METRIC}"]
        return score

    @property
    def val_images(self) -> int:
        """Size of the validation split; older summaries do not say it."""
        return int(self.summary.get("val_images") or self.config["val_images"])


def _content(folder: Path, file: str) -> Content:
    """A JSON or YAML file of the run folder."""
    try:
        check_text(folder / file)
        text = (folder / file).read_text("utf-8")
        if file.endswith(".json"):
            content = json.loads(text, object_hook=lambda part: Content(file, part))
        else:
            content = yaml.safe_load(text)
    except InputError:
        raise
    except OSError as error:
        raise ReportError(f"cannot read {file} in {folder}: {error}") from None
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ReportError(f"{file} in {folder} cannot be parsed: {reason}; {CURE}") from None
    if not isinstance(content, dict):
        raise ReportError(f"{file} must be a map, got {content!r:.60}")
    return Content(file, content)


def load(folder: Path) -> Run:
    """Read a run folder and nothing else. Raises ReportError, and StudyError without a record."""
    config, summary = _content(folder, CONFIG), _content(folder, SUMMARY)
    spec, resolution, batch_size = (config[key] for key in ("space", "resolution", "batch_size"))
    try:
        channels = int(summary.get("channels", ASSUMED.channels))  # older ones do not say it
        data = replace(
            ASSUMED, channels=channels, classes=int(summary.get("classes", ASSUMED.classes))
        )
        space = Space(spec, int(resolution or ASSUMED.resolution), int(batch_size), data)
    except (TypeError, ValueError) as error:
        raise ReportError(f"{CONFIG}: {error}") from None
    read_cards(folder)  # damaged ones are named
    card = _content(folder, f"{CHAMPION}/{CARD}") if summary["champion"] else None
    try:
        trials = read_trials(folder)
        proposals = {row["number"]: row for row in trial_rows(trials)}
        candidates = {n: candidate_of(trials[n].user_attrs) for n in proposals}
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ReportError(f"{JOURNAL} in {folder} cannot be read: {error!r}") from None
    params = {n: {**c.params(), **c.block_params()} for n, c in candidates.items()}
    trained = [n for n, row in proposals.items() if row["state"] not in UNTRAINED]
    curves = {n: rows for n in trained if (rows := rows_of(trials[n]))}
    epochs, told = sum(map(len, curves.values())), summary["epochs_trained"]
    if epochs < told:  # as of a record that was cut between two lines
        raise ReportError(f"{JOURNAL} in {folder} has {epochs} epochs, {SUMMARY} {told}; {CURE}")
    return Run(folder, config, summary, card, space, proposals, params, curves)
