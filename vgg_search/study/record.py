"""The record of a study: an Optuna journal in the run folder, and what can be read out of it."""

import gc
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from vgg_search.errors import InputError
from vgg_search.records import METRIC, EpochRow
from vgg_search.space.candidate import Candidate
from vgg_search.storage.folder import JOURNAL
from vgg_search.study.journal_file import JournalFile
from vgg_search.study.optuna_adapter import Journal, journal_trial, outlines, report
from vgg_search.study.pareto import Vector

EPOCH_KEY = "epoch_"  # user attribute of one epoch's row: epoch_1, epoch_2, ...


class StudyError(InputError):
    """A study that cannot be opened: one line."""


@contextmanager
def _nothing_to_collect() -> Iterator[None]:
    """While a record is read, all of which stays: Python would look through what it has of it for
    garbage again and again, of 10,000 trials for a third of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def open_journal(
    folder: Path, objectives: Sequence[str] = (METRIC,)
) -> tuple[optuna.Study, Journal]:
    """The study in `folder` for its driver, who holds its lock; a new one if there is none.

    A line torn by a crash is cut off first: the next write would make the file unreadable. So is
    the journal's own lock, which a crash leaves behind to be waited for.
    """
    path = folder / JOURNAL
    if path.exists():
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
    Path(f"{path}.lock").unlink(missing_ok=True)
    with _nothing_to_collect():
        storage = Journal(JournalFile(path))
    storage.costs = objectives[1:]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # A run folder that was renamed holds the study under its first name
    name = next(iter(optuna.get_all_study_names(storage)), folder.name)
    best = optuna.study.StudyDirection
    directions = [best.MAXIMIZE] + [best.MINIMIZE] * len(storage.costs)
    study = optuna.create_study(
        storage=storage, study_name=name, directions=directions, load_if_exists=True
    )
    if storage.costs and not study.metric_names:  # for Optuna's dashboard
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([*objectives])
    return study, storage


def read_study(folder: Path) -> optuna.Study | None:
    """A run folder's study, to be read only; None without one."""
    path = folder / JOURNAL
    if not path.is_file():
        return None
    with _nothing_to_collect():
        storage = JournalStorage(JournalFile(path))
    names = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=names[0], storage=storage) if names else None


def read_trials(folder: Path) -> list[FrozenTrial]:
    """A study's trials, running or not. Raises StudyError without a study: the driver may have only
    just begun."""
    study = read_study(folder)
    if study is None:
        raise _without_study(folder)
    return study.get_trials(deepcopy=False)


def read_outlines(folder: Path) -> list[FrozenTrial]:
    """The same trials with state, final values and user attributes alone, sooner."""
    path = folder / JOURNAL
    with _nothing_to_collect():
        trials = outlines(JournalFile(path)) if path.is_file() else None
    if trials is None:
        raise _without_study(folder)
    return trials


def _without_study(folder: Path) -> StudyError:
    path = folder / JOURNAL
    if path.is_file():
        rule = f"if no search runs, restore it from a copy, or --resume {folder.name} anew"
        return StudyError(f"no study in {path} yet: {rule}")
    return StudyError(f"no study in {folder}: {JOURNAL} is missing")


def rows_of(trial: FrozenTrial) -> list[EpochRow]:
    """A trial's rows, one an epoch, in order; None where a value was not finite."""
    rows = [row for key, row in trial.user_attrs.items() if key.startswith(EPOCH_KEY)]
    return sorted(rows, key=lambda row: row["epoch"])


def rows_by_epoch(trial: FrozenTrial) -> dict[int, EpochRow]:
    """A trial's rows by epoch, as they were reported: NaN where a value was not finite."""
    return {
        row["epoch"]: cast(EpochRow, {k: math.nan if v is None else v for k, v in row.items()})
        for row in rows_of(trial)
    }


def value_of(trial: FrozenTrial) -> float | None:
    """val_accuracy of a completed trial at its last epoch; None of another."""
    return trial.values[0] if trial.state is TrialState.COMPLETE else None


def costs_of(attrs: dict[str, Any], objectives: Sequence[str]) -> Vector:
    """What a trial is ranked by besides val_accuracy."""
    return tuple(float(attrs[name]) for name in objectives[1:])


def candidate_of(attrs: dict[str, Any]) -> Candidate:
    """The resolved proposal in a trial's user attributes."""
    return Candidate.from_dict(attrs["candidate"])


def write_row(trial: optuna.Trial, row: EpochRow) -> None:
    """Add an epoch's row to a trial's record, and its value where it is finite."""
    epoch, value = row["epoch"], row[METRIC]
    if math.isfinite(value) and epoch not in journal_trial(trial).intermediate_values:
        report(trial, value, epoch)
    # JSON readers other than Python's know no NaN
    plain = {k: None if v != v or v in (math.inf, -math.inf) else v for k, v in row.items()}
    trial.set_user_attr(f"{EPOCH_KEY}{epoch}", plain)


def constrain(trial: optuna.Trial, constraints: dict[str, float]) -> None:
    """Tell the sampler by how much a trial exceeds its limits."""
    for name in constraints.keys() - journal_trial(trial).constraints.keys():
        trial.set_constraint(name, constraints[name])


def tell(study: optuna.Study, trial: optuna.Trial, values: Vector | None) -> None:
    """End a trial: complete with a value for each objective, else pruned."""
    with warnings.catch_warnings():  # CMA-ES does without constraints, and says so each time
        warnings.simplefilter("ignore", UserWarning)
        study.tell(trial, values, TrialState.PRUNED if values is None else None)


def copy_values(trial: optuna.Trial, twin: FrozenTrial) -> None:
    """Give a trial the values and constraints of its finished twin."""
    for epoch in sorted(twin.intermediate_values.keys() - journal_trial(trial).intermediate_values):
        report(trial, twin.intermediate_values[epoch], epoch)
    constrain(trial, twin.constraints)
