"""Searches that are stopped, or whose workers die: what is told, and how they go on."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from drivers import FLAGS, live, search, trial_runs, wait_for
from optuna.trial import TrialState

from vgg_search.study.record import read_trials, rows_of

HANGS = 120.0  # s; how long it takes to end is measured by tests/faults/signals.py


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_search_and_resume_goes_on(
    tmp_path: Path, number: int, code: int
) -> None:
    with search(tmp_path, *FLAGS, "--json") as driver:
        wait_for(tmp_path, live)
        driver.send_signal(number)
        out, err = driver.communicate(timeout=HANGS)
    assert driver.returncode == code, err
    assert "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["state"] == "interrupted"
    assert "--resume study" in out
    stopped = [t for t in read_trials(tmp_path / "runs" / "study") if not t.state.is_finished()]
    statuses = {int(r.data.tags["trial_number"]): r for r in trial_runs(tmp_path)}
    assert stopped
    for trial in stopped:
        run = statuses[trial.number]
        assert (run.info.status, run.data.tags["state"]) == ("KILLED", "interrupted")
    with search(tmp_path, "--resume", "study", "--json") as driver:
        out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["state"] == "completed"
    assert {run.info.status for run in trial_runs(tmp_path)} == {"FINISHED"}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_first_trial_is_answered_too(
    tmp_path: Path, number: int, code: int
) -> None:
    with search(tmp_path, *FLAGS) as driver:
        until = time.monotonic() + 200
        while not (tmp_path / "runs" / "study" / "config.yaml").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        driver.send_signal(number)
        _, err = driver.communicate(timeout=HANGS)
    assert driver.returncode == code, err
    assert "Traceback" not in err
    assert "raylet" not in err
    with search(tmp_path, "--resume", "study", "--json") as driver:
        out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["state"] == "completed"


@pytest.mark.slow
def test_trials_of_a_killed_driver_are_closed_by_the_next_start(tmp_path: Path) -> None:
    with search(tmp_path, *FLAGS) as driver:
        wait_for(tmp_path, live)
        driver.kill()
    left = {trial.number for trial in live(read_trials(tmp_path / "runs" / "study"))}
    # One whose budget is used up already, so that it trains nothing
    with search(tmp_path, "--resume", "study", "--time-budget", "0.01s") as driver:
        _, err = driver.communicate(timeout=300)
    assert driver.returncode == 1, err  # nothing was completed
    trials = read_trials(tmp_path / "runs" / "study")
    assert left <= {trial.number for trial in live(trials)}
    told = {int(r.data.tags["trial_number"]): r for r in trial_runs(tmp_path)}
    for number in left:
        assert trials[number].state is TrialState.RUNNING
        # It is the budget that they end with, which is no failure
        assert (told[number].info.status, told[number].data.tags["state"]) == (
            "FINISHED",
            "interrupted",
        )


@pytest.mark.slow
def test_a_dead_worker_is_replaced_and_its_trial_goes_on(tmp_path: Path) -> None:
    with search(tmp_path, *FLAGS, "--scheduler", "none", "--max-concurrent", "1") as driver:
        trial = wait_for(tmp_path, live)[0]
        first = rows_of(trial)
        os.kill(int(first[0]["worker"].partition(":")[2]), signal.SIGKILL)
        _, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert f"trial {trial.number} " in err
    assert "retried" in err
    again = read_trials(tmp_path / "runs" / "study")[trial.number]
    assert again.user_attrs["state"] == "completed"
    assert rows_of(again)[: len(first)] == first
    assert len({row["worker"] for row in rows_of(again)}) == 2
    assert len(trial_runs(tmp_path)) == 4


@pytest.mark.slow
def test_the_time_budget_ends_a_search(tmp_path: Path) -> None:
    flags = [*FLAGS, "--num-trials", "1000", "--time-budget", "40s", "--json"]
    with search(tmp_path, *flags) as driver:
        out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["state"] == "completed"
    assert 0 < summary["num_trials"] < 1000
    with search(tmp_path, "--resume", "study", "--time-budget", "80s", "--json") as driver:
        out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["num_trials"] > summary["num_trials"]
