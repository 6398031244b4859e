"""The record of a study: an Optuna journal in the run folder, and what can be read out of it."""

import fcntl
import math
import time
import warnings
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from vgg_search.errors import InputError
from vgg_search.space.arch import as_arch
from vgg_search.space.search_space import Candidate

METRIC = "val_accuracy"
EPOCH_KEY = "epoch_"  # user attribute of one epoch's row: epoch_1, epoch_2, ...
UNTRAINED = ("infeasible", "duplicate")  # states of proposals that no worker was asked to train
TRAINING, PROPOSING = 0, 1  # independent streams of a trial's seed


class StudyError(InputError):
    """A study that cannot be opened: one line."""


class FolderLock:
    """Held while a driver works in a run folder; the kernel releases it however the driver ends."""

    def __init__(self, folder: Path) -> None:
        """Raises StudyError if another process holds the folder."""
        self._file: IO[str] = (folder / ".driver.lock").open("a")
        if not (self._take() or self._take(after=0.1)):  # `status` takes it for an instant
            self._file.close()
            raise StudyError(f"study {folder.name} is in use by a running search")

    def _take(self, after: float = 0.0) -> bool:
        time.sleep(after)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        self._file.close()


class Journal(JournalStorage):
    """Optuna's journal storage, with a view of its own for whoever lists all trials.

    A waiting trial is RUNNING in the record, for a told trial cannot be opened again. But a sampler
    takes RUNNING for "bad so far" and not for an observation. It is shown a trial pruned at its
    rung, which is what this one will be if it is never promoted. While `sampling`, the trials
    `known` from another study come before this study's own, and to a sampler that learns from
    `values_only` each pruned trial is a complete one.
    """

    waiting: Container[int] = ()
    known: Sequence[FrozenTrial] = ()
    values_only = False
    _sampling = False

    def __init__(self, backend: JournalFileBackend) -> None:
        super().__init__(backend)
        self._shown: dict[tuple[int, int | None], FrozenTrial] = {}  # by number and last epoch

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """While a sampler proposes."""
        self._sampling = True
        try:
            yield
        finally:
            self._sampling = False

    def get_all_trials(self, study_id, deepcopy=True, states=None):  # type: ignore[no-untyped-def]
        known = self.known if self._sampling else ()
        complete = self._sampling and self.values_only
        if not self.waiting and not known and not complete:
            return super().get_all_trials(study_id, deepcopy, states)
        trials = [*known]
        for trial in super().get_all_trials(study_id, deepcopy):
            trials.append(self._as_pruned(trial) if trial.number in self.waiting else trial)
        trials = _as_complete(trials) if complete else trials
        return [trial for trial in trials if states is None or trial.state in states]

    def _as_pruned(self, trial: FrozenTrial) -> FrozenTrial:
        key = trial.number, trial.last_step
        if key not in self._shown:  # hundreds may wait, and are asked for once a dimension
            self._shown[key] = _shown(trial, TrialState.PRUNED)
        return self._shown[key]


def _shown(trial: FrozenTrial, state: TrialState, value: float | None = None) -> FrozenTrial:
    """The trial as it is to look, without constraints: a complete one of ours has none."""
    attrs = {k: v for k, v in trial.system_attrs.items() if not k.startswith("constraints")}
    shown = optuna.trial.create_trial(
        state=state,
        value=value,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs,
        system_attrs=attrs,
        intermediate_values=trial.intermediate_values,
    )
    shown.number, shown._trial_id = trial.number, trial._trial_id
    return shown


def _as_complete(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Pruned trials with their last value, or the worst that anybody has where they are infeasible.

    Optuna's GP and CMA-ES learn from complete trials only. Under a scheduler these are so few that
    GP's first ten random proposals were thirty (seen: random search to the digit).
    """

    def last(trial: FrozenTrial) -> float | None:
        feasible = all(value <= 0 for value in trial.constraints.values())
        values = trial.intermediate_values
        return values[max(values)] if values and feasible else None

    worst = min((value for value in map(last, trials) if value is not None), default=0.0)
    pruned, complete = TrialState.PRUNED, TrialState.COMPLETE
    return [
        _shown(t, complete, worst if (v := last(t)) is None else v) if t.state is pruned else t
        for t in trials
    ]


def open_journal(folder: Path) -> tuple[optuna.Study, Journal]:
    """The study in `folder` for its driver, who holds the folder's lock; made if there is none.

    A line torn by a crash is cut off first: the next write would make the file unreadable. So is
    the journal's own lock, which a crash leaves behind to be waited for.
    """
    path = folder / "study.journal"
    if path.exists():
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
    Path(f"{path}.lock").unlink(missing_ok=True)
    storage = Journal(JournalFileBackend(str(path)))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        storage=storage, study_name=folder.name, direction="maximize", load_if_exists=True
    ), storage


def read_trials(folder: Path) -> list[FrozenTrial]:
    """A study's trials, read only, running or not. Raises StudyError if there is no study."""
    path = folder / "study.journal"
    if not path.is_file():
        raise StudyError(f"no study in {folder}: study.journal is missing")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(path)))
    try:
        study = optuna.load_study(study_name=folder.name, storage=storage)
    except KeyError:  # a folder that was renamed, or a driver that has only just begun
        raise StudyError(f"no study named {folder.name} in {path}") from None
    return study.get_trials(deepcopy=False)


def rows_of(trial: FrozenTrial) -> list[dict[str, Any]]:
    """A trial's rows, one an epoch, in order."""
    rows = [row for key, row in trial.user_attrs.items() if key.startswith(EPOCH_KEY)]
    return sorted(rows, key=lambda row: row["epoch"])


def known_rows(trial: FrozenTrial) -> dict[int, dict[str, Any]]:
    """A trial's rows by epoch, with NaN where a value was not finite."""
    rows = rows_of(trial)
    return {r["epoch"]: {k: math.nan if v is None else v for k, v in r.items()} for r in rows}


def candidate_of(attrs: dict[str, Any]) -> Candidate:
    """The resolved proposal in a trial's user attributes."""
    stored = attrs["candidate"]
    return Candidate(**stored | {"arch": as_arch(stored["arch"])})


def write_candidate(
    trial: optuna.Trial, candidate: Candidate, costs: tuple[int, int], seed: int
) -> None:
    """Add a resolved proposal to a trial's record; `costs` are its parameters and FLOPs."""
    attrs: dict[str, Any] = {"candidate": asdict(candidate), "arch": candidate.arch, "seed": seed}
    attrs |= dict(zip(("num_params", "flops_per_image"), costs, strict=True))
    for key, value in attrs.items():
        trial.set_user_attr(key, value)


def _told(trial: optuna.Trial) -> FrozenTrial:
    """The trial as the journal has it: perhaps told more by a driver that was stopped just then."""
    return trial.storage.get_trial(trial._trial_id)


def write_row(trial: optuna.Trial, row: dict[str, Any]) -> None:
    """Add an epoch's row to a trial's record, and its value where it is finite."""
    epoch, value = row["epoch"], row[METRIC]
    if math.isfinite(value) and epoch not in _told(trial).intermediate_values:
        trial.report(value, epoch)
    # JSON readers other than Python's know no NaN
    plain = {k: None if v != v or v in (math.inf, -math.inf) else v for k, v in row.items()}
    trial.set_user_attr(f"{EPOCH_KEY}{epoch}", plain)


def constrain(trial: optuna.Trial, constraints: dict[str, float]) -> None:
    """Tell the sampler by how much a trial exceeds its limits."""
    for name in constraints.keys() - _told(trial).constraints.keys():
        trial.set_constraint(name, constraints[name])


def tell(study: optuna.Study, trial: optuna.Trial, value: float | None) -> None:
    """Say that a trial has ended: complete with that value, else pruned."""
    with warnings.catch_warnings():  # CMA-ES does without constraints, and says so each time
        warnings.simplefilter("ignore", UserWarning)
        study.tell(trial, value, TrialState.PRUNED if value is None else None)


def copy_values(trial: optuna.Trial, twin: FrozenTrial) -> None:
    """Give a trial what its finished twin was told."""
    for epoch in sorted(twin.intermediate_values.keys() - _told(trial).intermediate_values):
        trial.report(twin.intermediate_values[epoch], epoch)
    constrain(trial, twin.constraints)


def trial_seed(seed: int, number: int, purpose: int = TRAINING) -> int:
    """Seed of trial `number` of a study with that seed."""
    return int(np.random.SeedSequence((seed, number, purpose)).generate_state(1)[0])


def make_sampler(kind: str, seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler of that name. Made anew for each proposal, so that a proposal depends on
    the record and its own seed alone: a resumed study goes on as if never stopped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if kind in ("tpe", "tpe-joint"):
            # Each dimension by itself finds more than all at once, by 0.5 points of val_accuracy
            # with 2 and 8 workers (results/2026-11-24_search_efficiency). group, where they are
            # taken at once: num_convs_3 exists in some trials only
            joint = kind == "tpe-joint"
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=joint, group=joint, constant_liar=True
            )
        if kind == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        if kind == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        return optuna.samplers.RandomSampler(seed=seed)
