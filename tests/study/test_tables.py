"""The tables and the summary, against numbers worked out by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from fake_workers import Fault, Workers, experiment, opened, row_at, search, value_at

from vgg_search.records import COUNTED, EPOCH_COLUMNS
from vgg_search.space.arch import network_costs
from vgg_search.study.segment import Segment
from vgg_search.study.tables import epoch_rows, startup_seconds, summarise, trial_rows, write_tables

COLUMNS = (
    "number,state,arch,depth,width,num_blocks,hidden_features,num_hidden,batch_norm,"
    "kernel_size,dropout,lr,weight_decay,batch_size,num_params,flops_per_image,epochs,"
    "val_accuracy,best_val_accuracy,best_epoch,seconds,started,ended,worker,error"
)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """0: the baseline, completed; 1: better, completed; 2: equal to 1; 3: pruned; 4: diverged;
    5: failed; from 6 on: proposed at random, some over the limit, until one is trained."""
    space = experiment().space | {"max_params": 60_000, "num_blocks": 1, "num_convs": 1}
    row = {"arch": ((1, 8),)}
    config = experiment(
        num_trials=6,
        seed=4,
        baseline=((1, 8),),
        space=space,
        enqueue=[row | {"lr": lr} for lr in (0.9, 0.9, 0.1, 0.8, 0.7)],
    )
    faults = {4: Fault("diverged", epoch=2), 5: Fault("failed")}
    study = search(tmp_path_factory.mktemp("tables") / "a", config, Workers(faults=faults))
    return list(study.optuna.get_trials())


def test_a_row_a_trial(trials: list[Any]) -> None:
    rows = trial_rows(trials)
    assert ",".join(rows[0]) == COLUMNS
    states = [row["state"] for row in rows]
    assert states[:6] == ["completed", "completed", "duplicate", "pruned", "diverged", "failed"]
    params, flops = network_costs(((1, 8),), hidden_features=32, num_hidden=1)
    expected = {
        "number": 1, "state": "completed", "arch": "1x8", "depth": 1, "width": 8, "num_blocks": 1,
        "lr": 0.9, "weight_decay": 0.0, "dropout": 0.0, "hidden_features": 32, "batch_norm": False,
        "kernel_size": 3,
        "batch_size": 128, "num_params": params, "flops_per_image": flops, "epochs": 4,
        "val_accuracy": value_at(0.9, 4), "best_val_accuracy": value_at(0.9, 4), "best_epoch": 4,
        "seconds": 8.0, "worker": "node:1", "error": None,
    }  # fmt: skip
    assert {key: rows[1][key] for key in expected} == expected
    assert [row["epochs"] for row in rows[:6]] == [4, 4, 0, 1, 2, 0]
    # What diverged is scored at what it had, the network of NaNs' 0.1 is its last
    assert (rows[4]["val_accuracy"], rows[4]["best_epoch"]) == (0.1, 1)
    assert rows[5]["error"] == "RuntimeError: failed"
    assert rows[5]["val_accuracy"] is rows[5]["started"] is rows[5]["worker"] is None


def test_a_row_an_epoch(trials: list[Any]) -> None:
    rows = epoch_rows(trials)
    assert tuple(rows[0]) == EPOCH_COLUMNS
    counts = [4, 4, 0, 1, 2, 0]
    told = [(n, e) for n, count in enumerate(counts) for e in range(1, count + 1)]
    assert [(row["number"], row["epoch"]) for row in rows if row["number"] < 6] == told
    assert rows[5]["val_accuracy"] == value_at(0.9, 2)
    assert rows[-1]["number"] == len(trials) - 1


def test_the_summary(trials: list[Any]) -> None:
    summary = summarise(trials, slots=2, search_seconds=40.0)
    states = [trial.user_attrs["state"] for trial in trials]
    assert summary["trials"] == {state: states.count(state) for state in COUNTED}
    assert summary["duplicates"] == states.count("duplicate") == 1
    assert summary["num_trials"] == 6
    assert summary["epochs_trained"] == len(epoch_rows(trials))
    assert summary["best_trial"] == 1
    assert summary["best_val_accuracy"] == value_at(0.9, 4)
    assert summary["best_arch"] == [[1, 8]]
    assert summary["best_lr"] == 0.9
    assert summary["baseline_val_accuracy"] == value_at(0.505, 4)
    assert summary["search_seconds"] == 40.0
    assert summary["slot_busy_fraction"] == len(epoch_rows(trials)) * 2.0 / 80
    assert summary["images_per_second"] == 100.0
    json.dumps(summary, allow_nan=False)


def test_nothing_trained_is_a_summary_too() -> None:
    summary = summarise([], slots=1, search_seconds=0.0)
    assert summary["num_trials"] == summary["epochs_trained"] == 0
    for name in ("best_val_accuracy", "best_trial", "images_per_second", "slot_busy_fraction"):
        assert summary[name] is None


def test_files(trials: list[Any], tmp_path: Path) -> None:
    write_tables(tmp_path, trials)
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(trials)
    assert ",".join(rows[0]) == COLUMNS
    with (tmp_path / "epochs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(epoch_rows(trials))
    write_tables(tmp_path, [])
    assert (tmp_path / "trials.csv").read_text().startswith("number")


def test_a_trial_that_nobody_works_on_is_interrupted(tmp_path: Path) -> None:
    with opened(tmp_path / "a", experiment(num_trials=2, scheduler="none")) as study:
        Workers().run(study, turns=5)
        rows = trial_rows(study.optuna.get_trials())
    assert [(row["state"], row["epochs"]) for row in rows] == [("completed", 4), ("interrupted", 1)]


def test_start_up_is_what_a_worker_did_not_train(tmp_path: Path) -> None:
    """Two workers, trials 0 to 3; the first trial of each is left out."""
    config = experiment(num_trials=4, scheduler="none", max_epochs=2)
    script = [  # (trial, epoch, worker, epoch_seconds, ended)
        (0, 1, "a", 2.0, 12.0), (1, 1, "b", 3.0, 13.0),
        (0, 2, "a", 2.0, 14.5), (1, 2, "b", 3.0, 16.0),
        (2, 1, "a", 2.0, 17.0), (3, 1, "b", 4.0, 20.25),
        (2, 2, "a", 2.5, 20.0), (3, 2, "b", 4.0, 24.5),
    ]  # fmt: skip
    with opened(tmp_path / "a", config) as study:
        segments: dict[int, Segment] = {}
        for number, epoch, worker, seconds, ended in script:
            if epoch == 1:
                segment = study.propose()
                assert isinstance(segment, Segment)
                segments[segment.number] = segment
            row = row_at(segments[number].candidate, epoch)
            timing = {"worker": worker, "epoch_seconds": seconds, "ended": ended}
            study.report(number, row | timing)
            if epoch == 2:
                study.segment_ended(number)
        trials = study.optuna.get_trials()
    # Trial 2: 17 - 14.5 - 2 and 20 - 17 - 2.5; trial 3: 20.25 - 16 - 4 and 24.5 - 20.25 - 4
    assert startup_seconds(trials) == [pytest.approx(1.0), pytest.approx(0.5)]
    assert summarise(trials, 2, 14.5)["startup_seconds_per_trial"] == 0.75
    assert startup_seconds([]) == []


def test_who_waits_when_a_search_is_stopped_is_interrupted(tmp_path: Path) -> None:
    """Its driver's storage shows a waiting trial as pruned, which it is not."""
    config = experiment(num_trials=3, scheduler="asha-promote")
    with opened(tmp_path / "a", config) as study:
        Workers(slots=3).run(study, turns=1)
        assert len(study.scheduler.waiting) == 3
        there = study.optuna.get_trials(deepcopy=False)
        summary = summarise(there, slots=3, search_seconds=2.0)
        assert summary["trials"]["interrupted"] == 3
        assert summary["best_val_accuracy"] is None
        assert [row["state"] for row in trial_rows(there)] == ["interrupted"] * 3
    (tmp_path / "b").mkdir()
    write_tables(tmp_path / "b", there)
