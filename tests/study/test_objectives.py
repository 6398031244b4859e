"""A study of several objectives: what is recorded, what the sampler sees, who is crowned."""

import math
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from fake_workers import Fault, Workers, experiment, opened, search

from vgg_search.config import Config, ConfigError, validated
from vgg_search.study.record import read_study, value_of

BOTH = ("val_accuracy", "num_params")


@pytest.mark.parametrize("sampler", ["tpe", "tpe-joint", "random", "gp"])
@pytest.mark.parametrize("scheduler", ["asha", "asha-promote"])
def test_the_record_is_a_study_of_optuna_with_that_front(
    tmp_path: Path, scheduler: str, sampler: str
) -> None:
    given = {"num_trials": 30, "sampler": sampler, "scheduler": scheduler, "objectives": BOTH}
    faults = {2: Fault("diverged"), 5: Fault("failed")}
    study = search(tmp_path / "a", experiment(**given), Workers(3, faults=faults))
    found = read_study(tmp_path / "a")
    assert found
    assert found.metric_names == [*BOTH]
    whole = [trial for trial in found.trials if trial.values]
    assert {t.state for t in whole} == {optuna.trial.TrialState.COMPLETE}
    assert len(whole) > 1
    for trial in whole:
        assert trial.values == [trial.intermediate_values[4], trial.user_attrs["num_params"]]
        assert value_of(trial) == trial.values[0]
    assert sorted(t.number for t in found.best_trials) == sorted(study.ranking.front)
    assert study.ranking.knee in study.ranking.front
    assert study.ranking.keep_above() == 0.0
    assert len(study.ranking.top()) == 10


def test_a_sampler_sees_last_values_and_logarithms_of_costs(tmp_path: Path) -> None:
    config = experiment(num_trials=12, scheduler="asha-promote", objectives=BOTH, sampler="tpe")
    with opened(tmp_path / "a", config) as study:
        Workers(3, faults={1: Fault("diverged", epoch=2)}).run(study, turns=9)
        with study._sampling():
            seen = study.optuna.get_trials()
        ended = {n: t for n, t in enumerate(seen) if t.state is optuna.trial.TrialState.COMPLETE}
        assert study.scheduler.waiting.keys() <= ended.keys()
        for number in study.scheduler.waiting:
            last = study.rows(number)[-1]["val_accuracy"]
            size = ended[number].user_attrs["num_params"]
            assert ended[number].values == [last, pytest.approx(math.log(size))]
        worst = [min(t.values[0] for t in ended.values()), max(t.values[1] for t in ended.values())]
        assert ended[1].values == worst, "that of a trial that cannot be used"


ARCHS = [{"arch": ((1, n),), "lr": lr} for n, lr in ((8, 0.3), (16, 0.5), (32, 0.55), (32, 0.2))]


@pytest.mark.parametrize(
    ("fields", "crowned"),
    [
        ({}, [2]),
        ({"champions": 2}, [2, 0]),
        ({"champions": 9}, [2, 0, 1, 3]),
        ({"pick": "knee", "champions": 2}, [1, 0]),
        ({"pick": "num_params<=150_000", "champions": 2}, [1, 0]),
        ({"pick": "num_params <= 60000"}, [0]),
        ({"pick": "flops_per_image<=1"}, []),
        ({"objectives": ("val_accuracy",), "champions": 3}, [2, 1, 0]),
        ({"objectives": ("val_accuracy",), "pick": "num_params<=150000"}, [1]),
    ],
)
def test_who_is_crowned(tmp_path: Path, fields: dict[str, Any], crowned: list[int]) -> None:
    given = {"num_trials": 4, "scheduler": "none", "enqueue": ARCHS, "objectives": BOTH} | fields
    study = search(tmp_path / "a", experiment(**given), Workers())
    assert [t.user_attrs["num_params"] // 1000 for t in study.optuna.trials] == FOLDS
    assert study.crowned() == crowned


FOLDS = [50, 100, 201, 201]

REFUSED = [
    ({"objectives": ["num_params"]}, "objectives must be val_accuracy, or that first"),
    ({"objectives": ["val_accuracy", "latency"]}, "objectives must be val_accuracy, or that first"),
    ({"objectives": [*BOTH, "num_params"]}, "objectives must be val_accuracy, or that first"),
    ({"pick": "num_params>=3"}, "pick must be accuracy, knee, num_params<=N or flops_per_image<=N"),
    ({"pick": "knee"}, "pick must be knee with several objectives only"),
    (
        {"objectives": BOTH, "sampler": "cmaes"},
        "sampler must be tpe, tpe-joint, gp or random",
    ),
    ({"objectives": BOTH, "warm_start": "a"}, "warm_start must have one objective, got val_acc"),
    ({"objectives": BOTH, "stop_when_converged": True}, "stop_when_converged must have one obj"),
    ({"champions": 0}, "champions must be >= 1"),
]


@pytest.mark.parametrize(("fields", "said"), REFUSED)
def test_what_cannot_work_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as refusal:
        validated(Config, fields)
    assert "\n" not in str(refusal.value)


def test_a_flag_names_several() -> None:
    assert Config(objectives="val_accuracy, num_params").objectives == BOTH  # type: ignore[arg-type]
