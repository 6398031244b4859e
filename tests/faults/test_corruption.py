"""The campaign of damaged files: what fails it, and a small one."""

import random
from pathlib import Path

import pytest
from corruption import KINDS, Answer, Campaign, _outcome, damaged, prepare, run_campaign

TRUTH = Answer(0, {"best": 0.5}, ())
FILE = Path("runs/kills/config.yaml")
NAMED = "vgg-search: runs/kills/config.yaml is not as it was written: restore it"


@pytest.mark.parametrize("kind", KINDS)
def test_a_damage_changes_the_content(kind: str) -> None:
    for seed in range(50):
        content = random.Random(seed).randbytes(20)
        assert damaged(content, kind, random.Random(seed)) != content


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (TRUTH, "harmless"),
        (Answer(0, {"best": 0.5}, ("the file was made anew",)), "recovered"),
        (Answer(2, None, (NAMED,)), "detected"),
        (Answer(0, {"best": 0.6}, ()), "wrong"),
        (Answer(0, {"best": 0.6}, (NAMED,)), "wrong"),
        (Answer(2, None, ("vgg-search: something is wrong: restore it",)), "wrong"),
        (Answer(2, None, (NAMED.removesuffix(": restore it"),)), "wrong"),
        (Answer(2, None, (NAMED, NAMED)), "wrong"),
        (Answer(1, None, (f"{NAMED} (--debug tells more)",)), "wrong"),
        (Answer(3, None, (NAMED,)), "wrong"),
    ],
)
def test_what_is_an_outcome(answer: Answer, outcome: str) -> None:
    assert _outcome(answer, TRUTH, [*answer.lines], FILE, True, False) == outcome


@pytest.mark.slow
def test_a_dozen_damages_are_noticed_or_harmless(tmp_path: Path) -> None:
    prepare(tmp_path)
    campaign: Campaign = run_campaign(tmp_path, 12, seed=3)
    assert sum(campaign.counts.values()) == 12
    assert campaign.wrong == []
