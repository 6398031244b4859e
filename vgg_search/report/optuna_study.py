"""Trials as an Optuna study in memory, for what Optuna draws and judges."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from vgg_search.records import METRIC
from vgg_search.report.look import scored
from vgg_search.report.run import Run

MOST_TRIALS = 1000  # more take Optuna minutes, and a plot of them shows nothing
MOST_CHOICES = 10  # up to so many different values are choices, each with its own tick
T = TypeVar("T")


def at_most(trials: Sequence[T]) -> Sequence[T]:
    """MOST_TRIALS of them, evenly spread."""
    return trials[:: max(1, -(-len(trials) // MOST_TRIALS))]


def scores_at_one_epoch(run: Run) -> tuple[int, dict[int, float]]:
    """The last epoch that three in four ranked trials have reached, and the accuracies there."""
    reached = sorted(row["epochs"] for row in scored(run))
    epoch = reached[(len(reached) - 1) // 4]
    numbers = sorted(row["number"] for row in run.ranked if row["epochs"] >= epoch)
    scores = {number: run.curves[number][epoch - 1][METRIC] for number in numbers}
    return epoch, {number: score for number, score in scores.items() if score is not None}


def _distribution(values: set[Any], log: bool) -> BaseDistribution:
    low, high = min(values), max(values)
    if len(values) <= MOST_CHOICES:
        return CategoricalDistribution(sorted(values))
    if isinstance(low, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log and low > 0)


def optuna_study(run: Run, scores: Mapping[int, float], names: Iterable[str] = ()) -> optuna.Study:
    """The trials with these scores, all complete and numbered from 0 in this order, with those of
    the dimensions `names` that differ between them."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # or it would tell of a new study
    study = optuna.create_study(direction="maximize")
    params = {number: run.params[number] for number in scores}
    distributions: dict[str, BaseDistribution] = {}
    for name in names:
        values = {own[name] for own in params.values() if name in own}
        if len(values) > 1:
            is_log = name in run.space.dims and run.space.dims[name].log
            distributions[name] = _distribution(values, is_log)
    for number, score in scores.items():
        own = {name: dist for name, dist in distributions.items() if name in params[number]}
        trial = optuna.trial.create_trial(
            value=score,
            params={name: params[number][name] for name in own},
            distributions=own,
        )
        study.add_trial(trial)
    return study
