"""The campaign of random kills: what fails it, and a small one."""

from pathlib import Path
from typing import Any

import pytest
from random_kills import Campaign, run_campaign

GOOD: dict[str, Any] = {"kills": 3, "studies": 1, "trained": 2}


def test_a_campaign_without_fault_passes() -> None:
    assert Campaign(**GOOD).problems() == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"trained": 1}, "only 1 of 3 kills met a trained epoch"),
        ({"lost": 1}, "1 lost"),
        ({"left": ["process 7: raylet"]}, "left: process 7: raylet"),
        ({"broken": ["study 1: run 0 is RUNNING"]}, "study 1: run 0 is RUNNING"),
    ],
)
def test_a_campaign_fails_for_each_fault(changes: dict[str, Any], problem: str) -> None:
    assert Campaign(**GOOD | changes).problems() == [problem]


@pytest.mark.slow
def test_two_kills_lose_nothing(tmp_path: Path) -> None:
    campaign = run_campaign(tmp_path, 2, seed=77)  # after a trial's end, and at the report
    assert campaign.kills == 2
    assert campaign.problems() == []
