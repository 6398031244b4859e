"""The sampler of learning curves: what it learns from, what it proposes, and that it repeats it."""

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from fake_workers import SPACE, Fault, Workers, experiment, search
from optuna.trial import TrialState
from scipy.optimize import check_grad

from vgg_search.space.search_space import Space
from vgg_search.study.curves import STARTUP, Axis, CurveSampler, Process, _scores

RUNGS = (1, 2, 4)
FLAT: dict[str, Any] = {
    "num_blocks": 1,
    "out_channels": [8, 16, 32],
    "hidden_features": {"choices": [32, 64, 128]},
    "batch_norm": [True, False],
    "dropout": [0.0, 0.5],
    "lr": {"low": 0.001, "high": 1.0, "log": True},
}


def space_of(**more: Any) -> Space:
    return experiment(space=FLAT | more).search_space


def accuracy(params: dict[str, Any], epoch: int, epochs: int = 4) -> float:
    """Best at lr 0.1, 32 channels and without dropout; it grows over the epochs."""
    miss = (np.log10(params["lr"]) + 1) ** 2 + params["dropout"] + (params["out_channels_1"] < 32)
    return float((0.9 - 0.2 * miss) * (1 - 0.5 ** (epoch + 1 + 4 - epochs)))


def ask(study: optuna.Study, space: Space, seed: int, sampler: str = "curves") -> optuna.Trial:
    ours, random = CurveSampler(space, RUNGS, seed), optuna.samplers.RandomSampler(seed)
    study.sampler = ours if sampler == "curves" else random
    trial = study.ask()
    space.sample(trial)
    return trial


def told(
    study: optuna.Study, space: Space, seed: int, last: int = 4, sampler: str = "curves"
) -> dict[str, Any]:
    """A trial that was trained until `last`, and what it was."""
    trial = ask(study, space, seed, sampler)
    for epoch in range(1, last + 1):
        trial.report(accuracy(trial.params, epoch), epoch)
    complete = last == 4
    study.tell(
        trial,
        accuracy(trial.params, 4) if complete else None,
        None if complete else TrialState.PRUNED,
    )
    return trial.params


def new_study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(direction="maximize")


def best_of(seed: int, sampler: str, last: int, trials: int = 24) -> float:
    study, space = new_study(), space_of()
    lasts = [last if i % 3 else 4 for i in range(trials)]
    params = [told(study, space, 1000 * seed + i, n, sampler) for i, n in enumerate(lasts)]
    return max(accuracy(p, 4) for p in params)


@pytest.mark.parametrize("last", [1, 4])
def test_a_planted_best_is_found_sooner_than_at_random(last: int) -> None:
    """Also where two in three are stopped after one epoch."""
    ours, theirs = ([best_of(s, kind, last) for s in range(8)] for kind in ("curves", "random"))
    top = accuracy({"lr": 0.1, "dropout": 0.0, "out_channels_1": 32}, 4)
    assert top - statistics.median(ours) < 0.25 * (top - statistics.median(theirs))
    assert sum(a >= b for a, b in zip(ours, theirs, strict=True)) >= 7


def test_the_first_trials_are_random() -> None:
    space, studies = space_of(), (new_study(), new_study())
    for i in range(STARTUP):
        assert told(studies[0], space, i) == told(studies[1], space, i, sampler="random")
    assert told(studies[0], space, STARTUP) != told(studies[1], space, STARTUP, sampler="random")


def test_a_proposal_follows_from_the_record_and_the_seed() -> None:
    study, space = new_study(), space_of()
    for i in range(12):
        told(study, space, i)
    proposals = [CurveSampler(space, RUNGS, seed)._propose(study, 12) for seed in (5, 5, 6, 7, 8)]
    params = [proposal.params for proposal in proposals if proposal]
    assert len(params) == 5
    assert params[0] == params[1]
    assert any(params[0] != other for other in params[2:])


def test_pending_trials_are_not_proposed_twice() -> None:
    """There are few networks, and as many are handed out at a time; of an integer on a log scale
    two places may be one value."""
    few = {"lr": {"choices": [0.01, 0.1]}, "dropout": 0.0, "batch_norm": True}
    space, study = space_of(**few, hidden_features=[32, 40]), new_study()
    sets, first = [], STARTUP + 4
    for i in range(30):
        trial = ask(study, space, i, "random" if i < first else "curves")
        sets.append(tuple(sorted(trial.params.items())))
        if i < first:
            value = 0.9 - trial.params["lr"]
            trial.report(value, 4)
            study.tell(trial, value)
    later = sets[first:]
    assert len(set(later)) == len(later)
    assert not set(later) & set(sets[:first])


def test_proposals_keep_to_the_limits(tmp_path: Path) -> None:
    space = SPACE | {"max_params": 30_000}
    config = experiment(num_trials=30, sampler="curves", space=space)
    study = search(tmp_path / "a", config, Workers(slots=2))
    attrs = [t.user_attrs for t in study.optuna.get_trials(deepcopy=False)]
    at_random = [a["state"] == "infeasible" for a in attrs[: 2 * STARTUP]]
    assert any(at_random)
    assert all(a["num_params"] <= 30_000 for a in attrs[-15:])


def test_it_turns_away_from_what_fails() -> None:
    """The better half of the learning rates diverges."""
    space, study = space_of(), new_study()
    for i in range(20):
        trial = ask(study, space, i, "random")
        if trial.params["lr"] > 0.05:
            trial.set_constraint("infeasible", 1.0)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.report(trial.params["lr"], 4)
            study.tell(trial, trial.params["lr"])
    lrs = [told(study, space, 50 + i)["lr"] for i in range(6)]
    assert statistics.median(lrs) < 0.1


def test_a_trial_of_an_architecture_by_hand_is_no_obstacle(tmp_path: Path) -> None:
    config = experiment(
        num_trials=14,
        sampler="curves",
        baseline=((4, 24),),
        enqueue=[{"arch": ((1, 8),), "lr": 0.2}],
    )
    study = search(
        tmp_path / "a", config, Workers(faults={3: Fault("failed"), 5: Fault("diverged")})
    )
    assert len(study.optuna.get_trials()) == 14


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("out_channels_1", [8, 16, 32]),
        ("hidden_features", [32, 64, 128]),
        ("batch_norm", [True, False]),
        ("dropout", [0.0, 0.25, 0.5]),
        ("lr", [0.001, 0.0316, 1.0]),
    ],
)
def test_values_have_places(name: str, values: list[Any]) -> None:
    axis = Axis(space_of().dims[name])
    places = [axis.place(value) for value in values]
    assert places == pytest.approx(np.linspace(0, 1, len(values)), abs=1e-3) or name == "batch_norm"
    assert [axis.value(place) for place in places] == pytest.approx(values)


def test_what_makes_no_difference_is_not_seen() -> None:
    """Blocks that are not there, and channels that the block before decides."""
    space = experiment().search_space
    sampler = CurveSampler(space, RUNGS, 0)
    base = dict.fromkeys(sampler.axes, 0.5) | {"num_blocks": 0.5, "out_channels_1": 1.0}
    rows = [
        base | more for more in ({}, {"num_convs_3": 1.0}, {"out_channels_2": 0.0}, {"lr": 0.6})
    ]
    seen = sampler._resolved(np.array([list(row.values()) for row in rows]))
    assert [np.array_equal(seen[0], row) for row in seen] == [True, True, True, False]


@pytest.mark.parametrize(
    ("dims", "networks"),
    [
        # Widths said by block: their places are not each other's
        (
            {"num_blocks": 2, "out_channels_1": [16, 32, 48], "out_channels_2": [64, 96, 128]},
            [{"out_channels_1": 48, "out_channels_2": wide} for wide in (64, 96, 128)],
        ),
        # A choice of depths with a gap
        (
            {"num_blocks": [1, 3, 4], "out_channels": [8, 16, 32]},
            [{"num_blocks": 3, "out_channels_1": 8, "out_channels_3": wide} for wide in (8, 16)],
        ),
    ],
)
def test_networks_that_differ_are_told_apart(
    dims: dict[str, Any], networks: list[dict[str, Any]]
) -> None:
    space = Space({"num_convs": 1, "lr": 0.1} | dims, 32, 128)
    sampler = CurveSampler(space, RUNGS, 0)
    least = {name: dim.ends[0] for name, dim in space.sampled().items()}
    rows = np.array([sampler._place(least | network) for network in networks])
    assert len(np.unique(sampler._resolved(rows), axis=0)) == len(networks)


def test_a_block_narrower_than_the_one_before_is_as_wide_as_that_one() -> None:
    dims = {"num_blocks": 2, "out_channels_1": [16, 64], "out_channels_2": [32, 64, 128]}
    sampler = CurveSampler(Space({"num_convs": 1, "lr": 0.1} | dims, 32, 128), RUNGS, 0)
    wide = [(64, 32), (64, 64), (16, 32), (64, 128)]
    places = [sampler._place({"out_channels_1": a, "out_channels_2": b}) for a, b in wide]
    rows = sampler._resolved(np.array(places))
    assert [np.array_equal(rows[0], row) for row in rows] == [True, True, False, False]


def test_the_gradient_is_that_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    rows = np.c_[rng.random((20, 3)), rng.choice([0.0, 0.5, 1.0], 20)]
    y = rng.standard_normal(20)
    process = Process(rows, y)
    error = check_grad(
        lambda theta: process._loss(theta, rows, y)[0],
        lambda theta: process._loss(theta, rows, y)[1],
        process.theta + 0.1,
    )
    assert error < 1e-4


def test_the_process_agrees_with_an_independent_one() -> None:
    """At one epoch and with equal lengths it is scikit-learn's."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    rng = np.random.default_rng(1)
    x, y, new = rng.random((15, 2)), rng.standard_normal(15), rng.random((5, 2))
    rows, at_end = np.c_[x, np.ones(15)], np.c_[new, np.ones(5)]
    process = Process(rows, y)
    process.theta = process.centre
    process.observe(rows, y)
    kernel = Matern(1.0, "fixed", nu=2.5) + ConstantKernel(sum(Process.MEANS), "fixed")
    other = GaussianProcessRegressor(kernel, alpha=0.02 + 1e-6, optimizer=None).fit(x, y)
    theirs = other.predict(new, return_std=True)
    for ours, their in zip(process.predict(at_end), theirs, strict=True):
        assert ours == pytest.approx(their, abs=1e-6)


@pytest.mark.parametrize("values", [[0.5] * 12, [0.1] * 11 + [0.9], [0.1, 0.1, *[math.nan] * 10]])
def test_values_that_tell_little_are_no_obstacle(values: list[float]) -> None:
    study, space = new_study(), space_of()
    for i, value in enumerate(values):
        trial = ask(study, space, i, "random")
        if math.isnan(value):
            trial.set_constraint("infeasible", 1.0)
        else:
            trial.report(value, 4)
        study.tell(trial, state=TrialState.PRUNED)
    assert ask(study, space, 99).params


def test_of_many_equal_configurations_the_process_is_not_singular() -> None:
    rows, y = np.c_[np.full((40, 3), 0.5), np.repeat([0.0, 1.0], 20)], np.tile([-1.0, 1.0], 20)
    process = Process(rows, y)
    process.observe(rows, y)
    assert np.isfinite(process.predict(rows[:1])).all()


def test_scores_keep_the_order_and_bound_what_failed() -> None:
    values = np.array([0.80, 0.85, 0.82, 0.1, math.nan, 0.84])
    scores = _scores(values)
    assert np.argsort(-scores[[0, 1, 2, 5]]).tolist() == [1, 3, 2, 0]
    assert scores[3] == scores[4] == scores.min()
    assert scores.mean() == pytest.approx(0, abs=1e-9)
    assert 2 * (scores[1] - scores[5]) > scores[2] - scores[0] > 0
