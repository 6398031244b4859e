"""When more trials do not pay: the rule by hand, and a search that it ends."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from fake_workers import Workers, experiment, opened, search

from vgg_search.study.convergence import TAIL, outlook, standard_error
from vgg_search.study.record import read_trials


def test_the_gain_is_the_tails_mean_excess_times_ln_2() -> None:
    values = [0.80 + 0.01 * i for i in range(TAIL + 1)]
    ahead = outlook([*values, 0.1, 0.2], 10_000)
    assert ahead
    assert ahead.gain == pytest.approx(math.log(2) * 0.01 * (TAIL + 1) / 2)
    assert ahead.noise == pytest.approx(standard_error(values[-1], 10_000))
    assert str(ahead).startswith("expected gain 0.0")
    assert outlook(reversed([*values, 0.1, 0.2]), 10_000) == ahead, "in any order"
    assert outlook(values[:TAIL], 10_000) is None


def test_an_exponential_tail_gains_what_is_expected_of_it() -> None:
    """Of n values with scale s the best is s * ln n on average, by their quantiles."""
    values = [-0.01 * math.log(1 - (i + 0.5) / 4_000) for i in range(4_000)]
    ahead = outlook(values, 10_000)
    assert ahead
    assert ahead.gain == pytest.approx(0.01 * math.log(2), rel=0.35)


def fields(**more: object) -> dict[str, object]:
    """Trials of nearly the same lr, so of nearly the same value: 0.8 at the last epoch."""
    space = experiment().space | {"lr": {"low": 0.99, "high": 1.0, "log": False}}
    return {"space": space, "num_trials": 60, "scheduler": "none", **more}


def test_a_search_ends_when_more_trials_do_not_pay(tmp_path: Path) -> None:
    study = search(tmp_path / "a", experiment(**fields(stop_when_converged=True)), Workers(3))
    assert study.finished
    assert study.converged
    assert TAIL < study.trained < 60
    assert all(trial.state.is_finished() for trial in read_trials(tmp_path / "a"))
    whole = search(tmp_path / "b", experiment(**fields()), Workers(3))
    assert whole.trained == 60
    assert whole.converged is None, "nobody asked"


def test_noise_is_that_of_the_validation_images_there_are(tmp_path: Path) -> None:
    """The bundled sample has fewer than an experiment may ask for."""
    config = experiment(**fields(num_trials=30, val_images=10_000))
    study = search(tmp_path / "a", config, Workers(3))
    study.config = config.model_copy(update={"stop_when_converged": True})
    for there, converged in ((100, True), (10**9, False)):
        study.config._data = replace(config.data, val_images=there)
        assert bool(study.converged) is converged


def test_it_goes_on_where_the_rule_is_taken_back(tmp_path: Path) -> None:
    folder, workers = tmp_path / "a", Workers(3)
    search(folder, experiment(**fields(stop_when_converged=True)), workers)
    with opened(folder, experiment(**fields(stop_when_converged=True))) as study:
        assert study.propose() == "finished"
    study = search(folder, experiment(**fields()), workers)
    assert study.trained == 60


def test_a_search_that_still_gains_goes_on(tmp_path: Path) -> None:
    config = experiment(stop_when_converged=True, num_trials=20, scheduler="none")
    assert search(tmp_path / "a", config, Workers(3)).trained == 20
