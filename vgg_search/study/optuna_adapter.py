"""What there is no public way to in Optuna 5, in one place.

- A trial found RUNNING in a journal is taken up again: `optuna.Trial(study, id)`, and its private
  copy of the record where its proposal has to be drawn anew.
- A value at an epoch can be recorded with several objectives too.
- A live trial's attributes can be read without a copy of them all.
- Of a long record, what a status needs can be read without Optuna's replay, which copies a trial
  for each line: of 10,000 trials in a quarter of the time.
- A sampler sees the study otherwise than the record has it: it asks the storage for all trials, so
  the storage answers with a view. Constraints are kept in system attributes.
"""

import copy
import math
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from vgg_search.study.journal_file import JournalFile


class Journal(JournalStorage):
    """Optuna's journal storage, with a view for a sampler that is proposing (`sampling`).

    A waiting trial is RUNNING in the record, for a finished trial cannot be opened again. But a
    sampler takes RUNNING for "bad so far" and not for an observation. It is shown a trial pruned at
    its rung, which is what this one will be if it is never promoted. The trials `warm_start` of
    another study come before this study's own, and to a sampler that learns from `values_only` each
    pruned trial is a complete one. With several objectives (`costs` besides val_accuracy) to each.
    """

    warm_start: Sequence[FrozenTrial] = ()
    costs: Sequence[str] = ()
    _view: tuple[Container[int], bool] | None = None
    _shown: list[FrozenTrial] | None = None
    _enqueued: list[FrozenTrial] | None = None  # not yet taken

    @contextmanager
    def sampling(self, waiting: Container[int], values_only: bool) -> Iterator[None]:
        """While a sampler proposes: what it asks for is the view."""
        self._view = waiting, values_only
        try:
            yield
        finally:
            self._view = self._shown = None

    def get_all_trials(self, study_id, deepcopy=True, states=None):  # type: ignore[no-untyped-def]
        if self._view is None:
            return super().get_all_trials(study_id, deepcopy, states)
        if states == (TrialState.WAITING,):  # asked for at each proposal: what is enqueued
            if self._enqueued != []:  # all of it comes before the first proposal
                self._enqueued = super().get_all_trials(study_id, deepcopy, states)
            return self._enqueued
        if self._shown is None:  # hundreds are asked for once a dimension
            waiting, values_only = self._view
            trials = [*self.warm_start]
            for trial in super().get_all_trials(study_id, deepcopy):
                waits = trial.number in waiting
                trials.append(_copy(trial, TrialState.PRUNED) if waits else trial)
            view = _as_complete(trials, self.costs) if values_only or self.costs else trials
            self._shown = view
        return [trial for trial in self._shown if states is None or trial.state in states]


def _copy(trial: FrozenTrial, state: TrialState, values: list[float] | None = None) -> FrozenTrial:
    """The trial in another state, without constraints: a complete one of ours has none."""
    attrs = {k: v for k, v in trial.system_attrs.items() if not k.startswith("constraints")}
    other = copy.copy(trial)
    other.state, other.values, other.system_attrs = state, values, attrs
    return other


def _as_complete(trials: Sequence[FrozenTrial], costs: Sequence[str]) -> list[FrozenTrial]:
    """Pruned trials with their last value, or the worst that anybody has where they are infeasible.

    Optuna's GP and CMA-ES learn from complete trials only, and with several objectives so does
    TPE. Under a scheduler these are so few that GP's first ten random proposals were thirty (seen:
    random search to the digit). Costs are shown as logarithms: networks differ by factors.
    """
    scores = [_last_scores(trial, costs) for trial in trials]
    columns = list(zip(*filter(None, scores), strict=True)) or [(0.0,)] * (1 + len(costs))
    worst = [min(columns[0]), *map(max, columns[1:])]
    shown = (TrialState.PRUNED, TrialState.COMPLETE) if costs else (TrialState.PRUNED,)
    return [
        _copy(trial, TrialState.COMPLETE, own or worst) if trial.state in shown else trial
        for trial, own in zip(trials, scores, strict=True)
    ]


def _last_scores(trial: FrozenTrial, costs: Sequence[str]) -> list[float] | None:
    """The last value and the costs of a trial; None of one without, or that is infeasible."""
    if trial.last_step is None or any(value > 0 for value in trial.constraints.values()):
        return None
    value = trial.intermediate_values[trial.last_step]
    return [value, *(math.log(trial.user_attrs[name]) for name in costs)]


# Lines of a journal, by what they do: Optuna's own numbers
_CREATE_STUDY, _CREATE_TRIAL, _SET_STATE, _SET_ATTRIBUTE = 0, 4, 6, 8
_DETAILS = tuple(b'{"op_code":%d,' % op for op in (5, 7, 9))  # parameters, values, system's


def outlines(journal: JournalFile) -> list[FrozenTrial] | None:
    """Trials with state, final values and user attributes alone; None without a study."""
    trials, begun = list[FrozenTrial](), False
    for log in journal.logs_without(_DETAILS):
        operation = log["op_code"]
        if operation == _CREATE_STUDY:  # of a resumed study once more
            begun = True
        elif operation == _CREATE_TRIAL:
            trials.append(_outline(len(trials), log.get("user_attrs", {})))
        elif operation == _SET_STATE:
            trial = trials[log["trial_id"]]
            trial.state, trial.values = TrialState(log["state"]), log["values"]
        elif operation == _SET_ATTRIBUTE:
            trials[log["trial_id"]].user_attrs.update(log["user_attr"])
    return trials if begun else None


def _outline(number: int, user_attrs: dict[str, Any]) -> FrozenTrial:
    running, none = TrialState.RUNNING, None
    return FrozenTrial(number, running, none, none, none, {}, {}, user_attrs, {}, {}, number)


def attributes(trial: optuna.Trial) -> dict[str, Any]:
    """User attributes of a live trial, not to be changed: `Trial.user_attrs` copies them deeply, a
    row an epoch among them, each time that it is asked."""
    return trial._cached_frozen_trial.user_attrs


def report(trial: optuna.Trial, value: float, epoch: int) -> None:
    """What `Trial.report` does, which refuses with several objectives."""
    trial.storage.set_trial_intermediate_value(trial._trial_id, epoch, value)
    trial._cached_frozen_trial.intermediate_values[epoch] = value


def reattach(study: optuna.Study, record: FrozenTrial) -> optuna.Trial:
    """A trial found RUNNING in the record, to go on with. The study's sampler is asked for relative
    proposals, so it must be the one that the trial is to have."""
    return optuna.Trial(study, record._trial_id)


def draw_again(trial: optuna.Trial, record: FrozenTrial) -> None:
    """Let a trial that was stopped while it was proposed be proposed from its first parameter on,
    also where that was stored, so that the sampler draws the same numbers again."""
    fresh = copy.copy(record)
    fresh.params, fresh.distributions = {}, {}
    trial._cached_frozen_trial = fresh


def journal_trial(trial: optuna.Trial) -> FrozenTrial:
    """The trial as the journal has it: perhaps further than the object, by a driver that was
    stopped just then."""
    return trial.storage.get_trial(trial._trial_id)
