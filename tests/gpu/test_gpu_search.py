"""Searches on the card, by their command: real Ray, real processes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FLAGS = (
    "--name s --dataset sample --train-images 1000 --val-images 200 --time-budget null "
    "--num-trials 4 --max-epochs 3"
).split()


def search(folder: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vgg_search.run", *flags]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def processes() -> set[int]:
    """That use the card."""
    query = "nvidia-smi --query-compute-apps=pid --format=csv,noheader".split()
    answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    return {int(pid) for pid in answer.split()}


def test_two_trials_share_the_card_and_the_champion_is_tested_there(tmp_path: Path) -> None:
    driver = search(tmp_path, *FLAGS, "--gpus-per-trial", "0.5", "--champion-epochs", "2", "--json")
    out, err = driver.communicate(timeout=200)
    assert driver.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["state"] == "completed"
    assert summary["champion"]["test_accuracy"] > 0.3
    assert "on cuda" in (tmp_path / "runs" / "s" / "log.txt").read_text()


def test_without_gpus_a_trial_uses_none(tmp_path: Path) -> None:
    before = processes()
    driver = search(tmp_path, *FLAGS, "--gpus-per-trial", "0", "--champion-epochs", "0")
    seen: set[int] = set()
    while driver.poll() is None:
        seen |= processes() - before
        time.sleep(0.5)
    _, err = driver.communicate()
    assert driver.returncode == 0, err
    log = (tmp_path / "runs" / "s" / "log.txt").read_text()
    assert "on cpu" in log
    assert "on cuda" not in log
    assert not seen - {driver.pid}


def test_kill_9_leaves_nothing_on_the_card_and_the_search_goes_on(tmp_path: Path) -> None:
    before = processes()
    driver = search(tmp_path, *FLAGS, "--num-trials", "40", "--champion-epochs", "0")
    log = tmp_path / "runs" / "s" / "log.txt"
    until = time.monotonic() + 100
    while not (log.exists() and "on cuda" in log.read_text()):
        assert time.monotonic() < until
        time.sleep(0.2)
    driver.kill()
    driver.communicate()
    until = time.monotonic() + 30
    while processes() - before and time.monotonic() < until:
        time.sleep(0.5)
    assert not processes() - before
    again = search(tmp_path, "--resume", "s", "--num-trials", "6", "--json")
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["state"] == "completed"
