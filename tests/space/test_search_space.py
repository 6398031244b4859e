"""What a space means, what it refuses, and that whatever it proposes can be built."""

import re
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vgg_search.space import default_space
from vgg_search.space.arch import NOTEBOOK_ARCH, check_arch, describe
from vgg_search.space.candidate import Candidate, Dimension
from vgg_search.space.dimension import Dim, parse_dim
from vgg_search.space.search_space import Space
from vgg_search.training.model import VGG

SMALL: dict[str, Any] = {"num_blocks": 2, "out_channels": 8, "lr": 0.1}


def space(resolution: int = 28, **dims: Any) -> Space:
    return Space(SMALL | dims, resolution, 128)


def trials(count: int, seed: int = 0) -> list[optuna.Trial]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [study.ask() for _ in range(count)]


# ---- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spec", "dim"),
    [
        ("lr", 0.1, Dim(float, (0.1,))),
        ("lr", [0.1], Dim(float, (0.1,))),
        ("lr", 1, Dim(float, (1.0,))),
        ("lr", "1e-4", Dim(float, (1e-4,))),  # YAML 1.1 reads 1e-4 as text
        ("lr", ["1e-4", "1e-1"], Dim(float, (), 1e-4, 0.1, log=True)),
        ("lr", [0.01, 0.1], Dim(float, (), 0.01, 0.1, log=True)),
        ("lr", [0.1, 0.1], Dim(float, (0.1,))),
        ("lr", [0.1, 0.2, 0.4], Dim(float, (0.1, 0.2, 0.4))),
        ("lr", {"low": 0.1, "high": 0.2, "log": False}, Dim(float, (), 0.1, 0.2)),
        ("lr", {"choices": [0.1, 0.2]}, Dim(float, (0.1, 0.2))),
        ("num_blocks", [1, 3], Dim(int, (), 1, 3)),
        ("num_blocks", [1, 2, 3], Dim(int, (1, 2, 3))),
        ("num_blocks", 2.0, Dim(int, (2,))),
        ("out_channels", [8, 64], Dim(int, (), 8, 64, log=True)),
        ("out_channels", {"choices": [8, 64]}, Dim(int, (8, 64))),
        ("out_channels", [8, 8, 16], Dim(int, (8, 16))),
        ("batch_norm", True, Dim(bool, (True,))),
        ("batch_norm", [True, False], Dim(bool, (True, False))),
        ("dropout", [0.0, 0.5], Dim(float, (), 0.0, 0.5)),
        ("weight_decay", [0, 1e-3], Dim(float, (), 0.0, 1e-3)),  # no log scale from 0
        ("weight_decay", [1e-5, 1e-3], Dim(float, (), 1e-5, 1e-3, log=True)),
    ],
)
def test_what_a_dimension_means(name: str, spec: Any, dim: Dim) -> None:
    assert space(**{name: spec}).dims[name] == dim


def test_what_a_silent_space_means() -> None:
    candidate = space().sample(trials(1)[0])
    assert candidate == Candidate(arch=((1, 8), (1, 8)), lr=0.1, batch_size=128)


def test_a_block_may_have_dimensions_of_its_own() -> None:
    made = Space(
        {"num_blocks": 3, "lr": 0.1, "out_channels": 8, "out_channels_3": 32, "num_convs_2": 2},
        28,
        128,
    )
    assert made.sample(trials(1)[0]).arch == ((1, 8), (2, 8), (1, 32))


@pytest.mark.parametrize(
    ("dims", "text"),
    [
        ({"lr": 0}, "space.lr must be > 0, got 0"),
        ({"lr": -0.1}, "space.lr must be > 0, got -0.1"),
        ({"lr": "fast"}, "space.lr must be > 0, got 'fast'"),
        ({"lr": float("nan")}, "space.lr must be > 0, got nan"),
        ({"lr": [0.1, float("inf")]}, "space.lr must be > 0, got inf"),
        ({"lr": True}, "space.lr must be > 0, got True"),
        ({"lr": None}, "space.lr must be > 0, got None"),
        ({"lr": []}, "space.lr must name at least one value, got []"),
        ({"lr": {"choices": 0.1}}, "space.lr must name at least one value, got 0.1"),
        ({"lr": [0.2, 0.1]}, "space.lr must have low <= high, got [0.2, 0.1]"),
        (
            {"lr": {"low": 1}},
            "space.lr must be {low, high, log} or {choices}, got {'low': 1}",
        ),
        (
            {"lr": {"low": 1, "choices": [1]}},
            "space.lr must be {low, high, log} or {choices}",
        ),
        ({"lr": {"min": 1, "max": 2}}, "space.lr must be {low, high, log} or {choices}"),
        ({"num_blocks": 1.5}, "space.num_blocks must be an integer >= 1, got 1.5"),
        ({"num_blocks": True}, "space.num_blocks must be an integer >= 1, got True"),
        ({"num_blocks": [0, 2]}, "space.num_blocks must be an integer >= 1, got 0"),
        ({"num_blocks": 5}, "num_blocks must be <= 4 at resolution 28, got 5"),
        ({"num_blocks": [1, 2, 6]}, "num_blocks must be <= 4 at resolution 28, got 6"),
        ({"num_blocks": 10**12}, "num_blocks must be <= 4 at resolution 28, got"),
        ({"num_convs": 0}, "space.num_convs must be an integer >= 1, got 0"),
        ({"out_channels": "wide"}, "space.out_channels must be an integer >= 1, got 'wide'"),
        ({"out_channels_2": 0}, "space.out_channels_2 must be an integer >= 1, got 0"),
        ({"dropout": 1.0}, "space.dropout must be in [0, 1), got 1.0"),
        ({"batch_norm": "yes"}, "space.batch_norm must be true or false, got 'yes'"),
        (
            {"batch_norm": {"low": False, "high": True}},
            "space.batch_norm must be {choices}, got {'low': False, 'high': True}",
        ),
        ({"batch_norm": [0, 1]}, "space.batch_norm must be true or false, got 0"),
        ({"hidden_features": 0}, "space.hidden_features must be an integer >= 1, got 0"),
        ({"kernel_size": 4}, "space.kernel_size must be an integer odd and >= 1, got 4"),
        ({"kernel_size": [3, 7]}, "space.kernel_size must be odd and >= 1, got 4 in a range"),
        ({"num_hidden": -1}, "space.num_hidden must be an integer >= 0, got -1"),
        ({"weight_decay": -1e-3}, "space.weight_decay must be >= 0, got -0.001"),
        (
            {"weight_decay": {"low": 0, "high": 1, "log": True}},
            "space.weight_decay on a log scale must have low > 0, got 0.0",
        ),
        (
            {"lr": {"low": 0.1, "high": 1, "step": 0.1}},
            "space.lr must be {low, high, log} or {choices}, got",
        ),
        ({"max_flops": 0}, "space.max_flops must be >= 1, got 0"),
        ({"max_flops": 0.5}, "space.max_flops must be >= 1, got 0.5"),
        ({"max_params": float("inf")}, "space.max_params must be >= 1, got inf"),
        ({"max_params": "few"}, "space.max_params must be >= 1, got 'few'"),
        ({"non_decreasing": "no"}, "space.non_decreasing must be true or false, got 'no'"),
        ({"num_block": 2}, "space has no dimension 'num_block'; did you mean num_blocks?"),
        ({"max_flop": 2}, "space has no dimension 'max_flop'; did you mean max_flops?"),
        ({"out_channels_5": 8}, "space has no dimension 'out_channels_5'; did you mean"),
        ({"zzz": 8}, "space has no dimension 'zzz'"),
    ],
)
def test_what_a_space_refuses(dims: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        space(**dims)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({}, "space must say num_blocks, got only nothing"),
        ({"num_blocks": 1}, "space must say lr, got only num_blocks"),
        ({"num_blocks": 1, "lr": 0.1}, "space must say out_channels, got only num_blocks, lr"),
        (
            {"num_blocks": 2, "lr": 0.1, "out_channels_1": 8},
            "space must say out_channels or out_channels_2, got neither",
        ),
        ({1: 2}, "space has no dimension 1"),
    ],
)
def test_what_a_space_must_say(spec: dict[Any, Any], text: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        Space(spec, 28, 128)


@pytest.mark.parametrize(("resolution", "most"), [(2, 1), (28, 4), (31, 4), (32, 5), (224, 7)])
def test_blocks_are_bounded_by_the_resolution(resolution: int, most: int) -> None:
    assert space(resolution, num_blocks=most).sample(trials(1)[0]).arch == ((1, 8),) * most
    with pytest.raises(ValueError, match=rf"num_blocks must be <= {most} at resolution"):
        space(resolution, num_blocks=most + 1)


# ---- sampling ---------------------------------------------------------------------------------


def test_a_range_reaches_both_of_its_bounds() -> None:
    made = space(num_blocks=[1, 3], out_channels=[8, 10])
    found = [made.sample(trial).arch for trial in trials(100)]
    assert {len(arch) for arch in found} == {1, 2, 3}
    assert {channels for arch in found for _, channels in arch} == {8, 9, 10}


def test_a_blocks_dimensions_exist_only_with_the_block() -> None:
    made = space(num_blocks=[1, 3], num_convs=[1, 2])
    for trial in trials(50):
        arch = made.sample(trial).arch
        assert ("num_convs_3" in trial.params) == (trial.params["num_blocks"] >= 3)
        assert ("num_convs_2" in trial.params) == (len(arch) >= 2)
        assert trial.params == {"num_blocks": len(arch)} | {
            f"num_convs_{i}": num_convs for i, (num_convs, _) in enumerate(arch, 1)
        }, "what is fixed is not asked"


@pytest.mark.parametrize("non_decreasing", [True, False])
def test_widths_do_not_decrease_unless_asked(non_decreasing: bool) -> None:
    made = space(num_blocks=3, out_channels=[8, 16, 32], non_decreasing=non_decreasing)
    widths = [[c for _, c in made.sample(trial).arch] for trial in trials(50)]
    assert all(w == sorted(w) for w in widths) == non_decreasing


DIMENSIONS = st.fixed_dictionaries(
    {
        "num_blocks": st.one_of(
            st.integers(1, 4),
            st.tuples(st.integers(1, 4), st.integers(1, 4)).map(sorted),
            st.lists(st.integers(1, 4), min_size=1).map(sorted),
        ),
        "out_channels": st.one_of(
            st.lists(st.integers(1, 300), min_size=3, unique=True),
            st.tuples(st.integers(1, 300), st.integers(1, 300)).map(sorted),
        ),
        "lr": st.tuples(st.floats(1e-6, 10), st.floats(1e-6, 10)).map(sorted),
    },
    optional={
        "num_convs": st.tuples(st.integers(1, 3), st.integers(1, 3)).map(sorted),
        "num_convs_2": st.integers(1, 4),
        "out_channels_3": st.lists(st.integers(1, 300), min_size=1).map(sorted),
        "dropout": st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)).map(sorted),
        "weight_decay": st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
        "batch_norm": st.just([True, False]),
        "batch_size": st.lists(st.integers(1, 512), min_size=1, max_size=4).map(sorted),
        "hidden_features": st.integers(1, 64),
        "num_hidden": st.integers(0, 2),
    },
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(DIMENSIONS, st.integers(0, 1000))
def test_whatever_is_sampled_can_be_built(dims: dict[str, Any], seed: int) -> None:
    made = Space(dims, 28, 128)
    for trial in trials(3, seed):
        candidate = made.sample(trial)
        check_arch(candidate.arch, 28)
        widths = [channels for _, channels in candidate.arch]
        assert widths == sorted(widths)
        assert made.costs(candidate)[0] > 0
        assert made.sampled().keys() >= trial.params.keys()


# ---- costs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("num_hidden", [0, 1, 2])
def test_costs_are_those_of_the_network(batch_norm: bool, num_hidden: int) -> None:
    made = space(
        num_blocks=[1, 3], num_convs=[1, 2], out_channels=[4, 8, 16], hidden_features=32,
        batch_norm=batch_norm, num_hidden=num_hidden, kernel_size=[1, 3, 5],
    )  # fmt: skip
    for trial in trials(4):
        candidate = made.sample(trial)
        network = VGG(**candidate.network(28))
        counted = sum(p.numel() for p in network.parameters())
        assert made.costs(candidate) == (counted, network.flops_per_image), describe(candidate.arch)


def test_excess_is_relative_to_the_limit() -> None:
    # 1 -> 1 channel, 3x3 and a bias, 14 * 14 -> 10 and 10 biases: 10 + 1,970 parameters
    made = space(num_blocks=1, out_channels=1, num_hidden=0, max_params=990, max_flops=1_000_000)
    candidate = made.sample(trials(1)[0])
    params, flops = 10 + 196 * 10 + 10, 2 * 9 * 28 * 28 + 2 * 196 * 10
    assert made.costs(candidate) == (params, flops)
    assert made.excess(candidate) == {
        "max_params": params / 990 - 1,
        "max_flops": flops / 1_000_000 - 1,
    }
    assert space().excess(candidate) == {}


# ---- by hand ----------------------------------------------------------------------------------

CONDITIONAL = space(
    num_blocks=[1, 3], num_convs=[1, 2], out_channels=[8, 16, 32], lr=[0.01, 1.0],
    dropout=[0.0, 0.5], hidden_features=[64, 128, 256], batch_size=[32, 128],
)  # fmt: skip


def test_an_arch_inside_the_space_becomes_its_parameters() -> None:
    params, arch = CONDITIONAL.enqueued({"arch": ((1, 8), (2, 32)), "lr": "2e-1"})
    assert arch is None
    blocks = {"num_convs_1": 1, "out_channels_1": 8, "num_convs_2": 2, "out_channels_2": 32}
    assert blocks.items() <= params.items()
    assert params["num_blocks"] == 2
    assert params["lr"] == 0.2
    # The rest at the centre: linear, the first choice, and on a log scale
    assert params["dropout"] == 0.25
    assert params["hidden_features"] == 64
    assert params["batch_size"] == 64


@pytest.mark.parametrize(
    "arch",
    [((3, 8),), ((1, 12),), ((1, 8),) * 4, ((1, 32), (1, 8)), NOTEBOOK_ARCH],
    ids=describe,
)
def test_an_arch_outside_of_the_space_is_given_back(arch: Any) -> None:
    params, outside = CONDITIONAL.enqueued({"arch": arch})
    assert outside == arch
    assert params["lr"] == pytest.approx(0.1), "the middle of a log scale"


def test_what_is_enqueued_is_what_is_sampled() -> None:
    study = optuna.create_study()
    for given_arch in (((1, 8), (2, 32)), ((1, 32), (1, 8)), ((2, 16),)):
        params, outside = CONDITIONAL.enqueued({"arch": given_arch, "lr": 0.3})
        study.enqueue_trial(params)
        candidate = CONDITIONAL.sample(study.ask(), outside)
        assert (candidate.arch, candidate.lr) == (given_arch, 0.3)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"lr": 2.0}, "an enqueued lr must lie in the space, got 2.0"),
        ({"lr": "fast"}, "an enqueued lr must lie in the space, got 'fast'"),
        ({"lr": None}, "an enqueued lr must lie in the space, got None"),
        ({"lr": True}, "an enqueued lr must lie in the space, got True"),
        ({"num_blocks": 2.5}, "an enqueued num_blocks must lie in the space, got 2.5"),
        ({"hidden_features": 100}, "an enqueued hidden_features must lie in the space, got 100"),
        ({"batch_norm": True}, "an enqueued batch_norm must lie in the space, got True"),
        ({"rate": 0.1}, "an enqueued rate must lie in the space, got 0.1"),
    ],
)
def test_values_outside_of_the_space_are_refused(row: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        CONDITIONAL.enqueued(row)


def test_the_centre_lies_in_the_space() -> None:
    made = space(lr={"low": 0.1, "high": 0.5, "log": False}, out_channels=[7, 100])
    assert made.dims["lr"].centre() == pytest.approx(0.3)
    assert made.dims["out_channels"].centre() == 26  # sqrt(700) = 26.5
    for dim in Space(default_space.SPACE, 28, 128).dims.values():
        assert dim.match(dim.centre()) is not None


def test_a_dimension_may_be_text() -> None:
    """No dimension is today; an option of a layer may be."""
    row = Dimension(str, rule="relu or gelu", holds=lambda v: v in ("relu", "gelu"))
    assert parse_dim("activation", row, ["relu", "gelu"]) == Dim(str, ("relu", "gelu"))
    assert parse_dim("activation", row, "gelu").match("gelu") == "gelu"
    for wrong in ("tanh", 3, True):
        with pytest.raises(
            ValueError, match=f"^space.activation must be relu or gelu, got {wrong!r}$"
        ):
            parse_dim("activation", row, ["relu", wrong])
