"""A study's decisions follow from its journal; one that was changed is found out."""

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from drivers import FLAGS, live, wait_for
from drivers import search as driven
from fake_workers import Fault, Workers, experiment, opened, search
from replay import main

from vgg_search.config import Config
from vgg_search.study.record import read_trials, rows_of


def run_replay(folder: Path) -> tuple[int, str]:
    """Exit code, and what was said."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main([str(folder)])
    return code, said.getvalue()


def searched(folder: Path, workers: Workers | None = None, **fields: Any) -> Path:
    config = experiment(**fields)
    search(folder, config, workers or Workers(slots=3))
    (folder / "config.yaml").write_text(config.dump())
    return folder


FAULTS = {
    1: Fault("diverged"),
    3: Fault("failed"),
    4: Fault("died", times=2),
    6: Fault("oom", epoch=2),
}


@pytest.mark.parametrize("sampler", ["tpe", "curves", "tpe of several"])
@pytest.mark.parametrize("scheduler", ["asha", "asha-promote", "none"])
def test_a_study_is_derived_again_from_its_journal(
    tmp_path: Path, scheduler: str, sampler: str
) -> None:
    several = "several" in sampler
    folder = searched(
        tmp_path / "a",
        Workers(slots=3, faults=dict(FAULTS)),
        objectives=("val_accuracy", "num_params", "flops_per_image")[: 3 if several else 1],
        num_trials=14,
        scheduler=scheduler,
        sampler=sampler.split()[0],
        baseline=((4, 24),),
        enqueue=[{"arch": ((1, 8),), "lr": lr} for lr in (0.2, 0.4, 0.8, 0.1, 0.9, 0.6, 0.2, 0.5)],
        space=experiment().space | {"max_params": 60_000, "num_blocks": 1},
    )
    code, said = run_replay(folder)
    assert code == 0, said
    states = [trial.user_attrs["state"] for trial in read_trials(folder)]
    assert {"completed", "failed", "diverged", "duplicate"} <= set(states)
    assert f"{len(states)} proposals" in said
    for state in set(states):
        assert f"{states.count(state)} {state}" in said


@pytest.mark.parametrize("scheduler", ["asha", "asha-promote"])
def test_a_study_of_many_sessions_is_too(tmp_path: Path, scheduler: str) -> None:
    folder, workers, turns = tmp_path / "a", Workers(slots=3, faults=dict(FAULTS)), 1
    for num_trials in (8, 12):  # the second time, more of them
        config, done = experiment(num_trials=num_trials, scheduler=scheduler), False
        while not done:
            with opened(folder, config) as study:
                done = workers.run(study, turns=turns)
                turns = turns % 4 + 1
                if done:
                    study.close()
            (folder / "config.yaml").write_text(config.dump())
            code, said = run_replay(folder) if turns == 1 or done else (0, "")
            assert code == 0, said


def test_a_study_that_converged_and_then_went_on_is_too(tmp_path: Path) -> None:
    folder, workers = tmp_path / "a", Workers(slots=3)
    space = experiment().space | {"lr": {"low": 0.99, "high": 1.0, "log": False}}
    given = {"space": space, "num_trials": 60, "scheduler": "none"}
    counts = []
    for converges in (False, True, False):
        config = experiment(**given, stop_when_converged=converges)
        with opened(folder, config) as study:
            if workers.run(study, turns=8 if not counts else None):
                study.close()
            counts.append(study.trained)
        (folder / "config.yaml").write_text(config.dump())
        code, said = run_replay(folder)
        assert code == 0, said
    assert counts[0] < counts[1] < counts[2] == 60


@pytest.mark.slow
@pytest.mark.parametrize(("scheduler", "sampler"), [("asha-promote", "tpe"), ("asha", "gp")])
def test_a_real_search_that_was_killed_is_too(tmp_path: Path, scheduler: str, sampler: str) -> None:
    flags = [*FLAGS, "--num-trials", "12", "--scheduler", scheduler, "--sampler", sampler]
    with driven(tmp_path, *flags) as driver:
        wait_for(
            tmp_path, lambda trials: sum(len(rows_of(t)) for t in trials) >= 8 and live(trials)
        )
        driver.kill()
    with driven(tmp_path, "--resume", "study") as driver:
        _, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    folder = tmp_path / "runs" / "study"
    states = {trial.user_attrs["state"] for trial in read_trials(folder)}
    assert {"completed", "pruned"} <= states
    code, said = run_replay(folder)
    assert code == 0, said


# What is changed: (operation, which of its lines, change) -> what is said
def _lr(line: dict[str, Any]) -> None:
    line["param_value_internal"] += 1e-15


def _state(line: dict[str, Any]) -> None:
    line["user_attr"]["state"] = {"pruned": "completed", "completed": "pruned"}[
        line["user_attr"]["state"]
    ]


def _complete(line: dict[str, Any]) -> None:
    line["state"], line["values"] = 2, None


def _until(line: dict[str, Any]) -> None:
    line["user_attr"]["until"] += 1


def _accuracy(line: dict[str, Any]) -> None:
    line["user_attr"]["epoch_1"]["val_accuracy"] = 0.999


CHANGES = [
    (5, "lr", 4, _lr, r"trial 4: param lr is 0\.\d+ in the record, 0\.\d+ in the replay"),
    (8, "state", 0, _state, r"trial \d: in the record it ends as \w+, in the replay it \w+"),
    (8, "until", 2, _until, r"trial \d: in the record it trains until epoch \d, in the replay \d"),
    (
        6,
        None,
        -1,
        _complete,
        r"trial \d: Optuna's state is 'PRUNED' in the record, 'COMPLETE' in the replay",
    ),
    (8, "epoch_1", 0, _accuracy, r"trial 0: val_accuracy at 1, is 0\.\d+ in the record, 0\.999 in"),
]


@pytest.mark.parametrize(("op", "key", "which", "change", "said"), CHANGES)
def test_a_changed_journal_is_found_out(
    tmp_path: Path, op: int, key: str | None, which: int, change: Any, said: str
) -> None:
    folder = searched(tmp_path / "a", num_trials=8, scheduler="asha", enqueue=[{"lr": 0.2}])
    journal = folder / "study.journal"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        del line["crc32"]  # by which a changed line is noticed without a replay

    def matches(line: dict[str, Any]) -> bool:
        if line["op_code"] != op:
            return False
        if op == 6:
            return line["values"] is not None
        return key == line.get("param_name") or key in line.get("user_attr", {})

    change([line for line in lines if matches(line)][which])
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, heard = run_replay(folder)
    assert code == 1
    assert len(heard.splitlines()) == 1
    assert re.match("replay: " + said, heard), heard


def test_nothing_to_replay_is_bad_input(tmp_path: Path) -> None:
    code, said = run_replay(tmp_path)
    assert code == 2
    assert "study.journal is missing" in said


def test_a_configuration_that_decides_otherwise_is_found_out(tmp_path: Path) -> None:
    folder = searched(tmp_path / "a", num_trials=8, scheduler="asha")
    other = Config(**experiment(num_trials=8, scheduler="none").model_dump())
    (folder / "config.yaml").write_text(other.dump())
    code, said = run_replay(folder)
    assert (code, said.count("\n")) == (1, 1)
    assert "in the record it trains until epoch 1" in said
