"""What a study takes over from another: knowledge for its sampler, and nothing else."""

import io
import logging
import runpy
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from fake_workers import SPACE, Fault, Workers, experiment, record, search
from optuna.trial import TrialState

from vgg_search.cli.commands import main
from vgg_search.config import Config, ConfigError
from vgg_search.study.record import read_trials
from vgg_search.study.study import Study
from vgg_search.study.tables import summarise, trial_rows
from vgg_search.study.warm_start import DIGEST, KNOWN, as_trials, knowledge

DATA = "0123456789abcdef"


def other(tmp_path: Path, workers: Workers | None = None, **fields: Any) -> Study:
    """A finished study "a" on DATA."""
    return warm(tmp_path, "a", experiment(**fields), workers)


def warm(
    tmp_path: Path, name: str, config: Config, workers: Workers | None = None, turns: int = 10_000
) -> Study:
    """A search as `run` makes one, of so many turns at most."""
    folder = tmp_path / name
    known = knowledge(config, DATA, folder)
    folder.mkdir(exist_ok=True)
    facts = {DIGEST: DATA} | ({} if known is None else {KNOWN: known})
    study = Study(folder, config, facts=facts)
    try:
        study.open()
        if (workers or Workers()).run(study, turns):
            study.close()
    finally:
        study.release()
    return study


def on(tmp_path: Path, **fields: Any) -> Config:
    given = {"warm_start": "a", "storage_path": str(tmp_path), "sampler": "tpe", "num_trials": 4}
    return experiment(**given | fields)


def rows(tmp_path: Path, **fields: Any) -> list[dict[str, Any]]:
    return knowledge(on(tmp_path, **fields), DATA, tmp_path / "b") or []


# ---- what is known ----------------------------------------------------------------------------


def test_finished_trials_are_known_as_the_sampler_would_have_seen_them(tmp_path: Path) -> None:
    config = on(tmp_path)
    study = other(tmp_path, Workers(faults={2: Fault("diverged", 1)}), num_trials=9)
    known = as_trials(config.search_space, rows(tmp_path))
    theirs = study.optuna.get_trials()
    assert {(t.number, t._trial_id) for t in known} == {(-1, -1)}
    for ours, told in zip(known, theirs, strict=True):
        assert ours.params == told.params
        assert ours.distributions == told.distributions
        assert ours.state is told.state
        assert ours.value == (told.value if told.state is TrialState.COMPLETE else None)
        assert ours.intermediate_values == told.intermediate_values
        assert ours.constraints == told.constraints
    assert known[2].constraints == {"infeasible": 1.0}


def test_what_a_machine_could_not_do_and_duplicates_are_not_known(tmp_path: Path) -> None:
    enqueue = [{"arch": ((1, 8),), "lr": lr} for lr in (0.2, 0.4, 0.4)]
    workers = Workers(faults={0: Fault("failed")})
    other(tmp_path, workers, num_trials=3, enqueue=enqueue, scheduler="none")
    assert [row["params"]["lr"] for row in rows(tmp_path)][:1] == [0.4]
    assert len(rows(tmp_path)) == 2


def test_a_value_from_before_our_last_epoch_is_an_intermediate_one(tmp_path: Path) -> None:
    other(tmp_path, num_trials=3, scheduler="none")
    assert [row["value"] is None for row in rows(tmp_path, max_epochs=4)] == [False] * 3
    longer = rows(tmp_path, max_epochs=5)
    assert [row["value"] for row in longer] == [None] * 3
    assert [len(row["values"]) for row in longer] == [4] * 3


def test_a_different_space_keeps_what_fits_and_says_what_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    enqueue = [
        {"arch": ((1, 8),), "lr": 0.9},
        {"arch": ((1, 8), (1, 16)), "lr": 0.2},
        {"arch": ((1, 8), (1, 16), (1, 16)), "lr": 0.2},
    ]
    other(tmp_path, num_trials=3, enqueue=enqueue, scheduler="none")
    space = SPACE | {"num_blocks": [1, 2], "lr": [0.01, 0.5], "dropout": [0.0, 0.5]}
    with caplog.at_level(logging.WARNING, "vgg_search"):
        known = rows(tmp_path, space=space)
    assert [record.message for record in caplog.records] == [
        "warm start from a: the sampler knows 2 of its trials; left out, for this space has no "
        "such value: 1 trials with another num_blocks, lr of 1 trials"
    ]
    first, second = (row["params"] for row in known)
    assert first == {"num_blocks": 1, "num_convs_1": 1, "out_channels_1": 8, "dropout": 0.0}
    assert second["lr"] == 0.2
    assert second["dropout"] == 0.0, "fixed there, sampled here"
    assert rows(tmp_path, space=SPACE | {"batch_norm": True}) == []


def test_too_large_a_network_is_known_to_be(tmp_path: Path) -> None:
    enqueue = [{"arch": ((1, channels),), "lr": 0.5} for channels in (8, 32)]
    other(tmp_path, num_trials=2, enqueue=enqueue)
    limited = rows(tmp_path, space=SPACE | {"max_params": 60_000})
    assert [row["infeasible"] for row in limited] == [False, True]


@pytest.mark.parametrize("place", ["a", "{}/a", "{}/moved"])
def test_a_study_is_found_by_its_name_or_folder(tmp_path: Path, place: str) -> None:
    other(tmp_path, num_trials=1)
    if "moved" in place:
        (tmp_path / "a").rename(tmp_path / "moved")
    assert len(rows(tmp_path, warm_start=place.format(tmp_path))) == 1


# ---- what it does -----------------------------------------------------------------------------


def test_known_trials_are_seen_by_the_sampler_and_by_nobody_else(tmp_path: Path) -> None:
    other(tmp_path, num_trials=30, scheduler="none")
    workers = Workers()
    study = warm(tmp_path, "b", on(tmp_path, scheduler="none"), workers)
    cold = warm(tmp_path, "c", on(tmp_path, scheduler="none", warm_start=None))
    ours, theirs = (s.optuna.get_trials() for s in (study, cold))
    assert [trial.number for trial in ours] == [0, 1, 2, 3]
    assert study.trained == 4
    assert len(workers.trained) == 16, "four trials of four epochs"
    # TPE's first ten are random; knowing 30 it has no need of them, and the better lr always wins
    assert min(t.params["lr"] for t in ours) > 0.5 > min(t.params["lr"] for t in theirs)
    read = read_trials(tmp_path / "b")
    assert len(trial_rows(read)) == summarise(read, 1, 1.0)["num_trials"] == 4
    assert study.ranking.incumbent == max((t.value, t.number) for t in ours)


def test_a_proposal_equal_to_a_known_trial_is_trained(tmp_path: Path) -> None:
    enqueue = [{"arch": ((1, 8),), "lr": 0.5}]
    other(tmp_path, num_trials=1, enqueue=enqueue)
    study = warm(tmp_path, "b", on(tmp_path, num_trials=1, enqueue=enqueue), workers := Workers())
    assert sum(workers.trained.values()) == 4
    assert study.optuna.get_trials()[0].user_attrs["state"] == "completed"


@pytest.mark.parametrize("scheduler", ["asha", "asha-promote"])
def test_a_resume_keeps_what_was_known(tmp_path: Path, scheduler: str) -> None:
    other(tmp_path, num_trials=12)
    config = on(tmp_path, scheduler=scheduler, num_trials=8)
    whole = warm(tmp_path, "b", config)
    disk: dict[int, list[dict[str, Any]]] = {}
    for _ in range(1_000):
        resumed = warm(tmp_path, "again", config, Workers(disk=disk), turns=3)
        if resumed.finished:
            break
        (tmp_path / "a" / "study.journal").unlink(missing_ok=True)  # it is not needed any more
    assert record(resumed) == record(whole)


def test_a_replay_knows_it_too(tmp_path: Path) -> None:
    other(tmp_path, num_trials=12)
    config = on(tmp_path, num_trials=5)
    warm(tmp_path, "b", config)
    (tmp_path / "b" / "config.yaml").write_text(config.dump())
    script = Path(__file__).parents[1] / "proofs" / "replay.py"
    replay = runpy.run_path(str(script))["main"]
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = replay([str(tmp_path / "b")])
    assert (code, "5 proposals" in said.getvalue()) == (0, True), said.getvalue()


def test_gp_takes_it_as_well(tmp_path: Path) -> None:
    other(tmp_path, num_trials=12, scheduler="none")
    study = warm(tmp_path, "b", on(tmp_path, num_trials=2, sampler="gp"))
    assert [trial.params["lr"] > 0.5 for trial in study.optuna.get_trials()] == [True, True]


# ---- mistakes ---------------------------------------------------------------------------------


def test_an_unknown_study_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--dataset", "sample", "--warm-start", "gone", "--name", "b"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "vgg-search: warm_start must be another study in runs or its run folder, got 'gone'"
    )
    assert not (tmp_path / "runs").exists()


def test_a_study_is_not_its_own_warm_start(tmp_path: Path) -> None:
    other(tmp_path, num_trials=1)
    with pytest.raises(ConfigError, match=r"^warm_start must be another study in .*, got 'a'$"):
        knowledge(on(tmp_path), DATA, tmp_path / "a")


def test_other_data_are_refused(tmp_path: Path) -> None:
    other(tmp_path, num_trials=1)
    with pytest.raises(
        ConfigError, match=r"^warm_start must be a study on the same data \(new\), "
    ):
        knowledge(on(tmp_path), "new", tmp_path / "b")
    search(tmp_path / "c", experiment(num_trials=1), Workers())
    with pytest.raises(ConfigError, match=r"got c \(it does not say which\)$"):
        knowledge(on(tmp_path, warm_start="c"), DATA, tmp_path / "b")


@pytest.mark.parametrize("sampler", ["random", "cmaes"])
def test_a_sampler_that_cannot_know_is_refused(tmp_path: Path, sampler: str) -> None:
    rule = "warm_start must have sampler curves, tpe or gp, got"
    with pytest.raises(ValueError, match=f"{rule} {sampler}"):
        on(tmp_path, sampler=sampler)
