"""The campaign of random kills: what fails it, and a small one."""

from pathlib import Path
from typing import Any

import pytest
from random_kills import Campaign, campaign, main

GOOD = {"kills": 3, "epochs": 20, "lost": 0, "repeated": 0, "left": 0, "exit_code": 0}


def test_a_campaign_without_fault_passes() -> None:
    assert Campaign(**GOOD).problems() == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"epochs": 0}, "no epoch was in the record at the last kill: nothing is shown"),
        ({"lost": 1}, "1 lost"),
        ({"repeated": 2}, "2 repeated"),
        ({"left": 1}, "1 left running"),
        ({"exit_code": 1}, "the last session ended with exit code 1"),
    ],
)
def test_a_campaign_fails_for_each_fault(changes: dict[str, Any], problem: str) -> None:
    assert Campaign(**GOOD | changes).problems() == [problem]


@pytest.mark.slow
def test_kills_before_anything_is_trained_show_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--kills", "1", "--longest", "0.5"]) == 1  # before Ray has started
    assert "failed: no epoch was in the record" in capfd.readouterr().err


@pytest.mark.slow
def test_two_kills_lose_nothing(tmp_path: Path) -> None:
    result = campaign(tmp_path, kills=2, seed=0, longest=60)  # after 51 s and after 26 s
    assert result.problems() == []
