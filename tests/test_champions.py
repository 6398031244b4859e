"""Champions of a study that is gone on with: what is there already is not trained again."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from champions import INFO, network
from fake_workers import Workers, experiment, search

from vgg_search.champions import Champions
from vgg_search.data.splits import Splits
from vgg_search.models.files import load_folder, save_model
from vgg_search.storage.checksums import read_cards
from vgg_search.storage.folder import WORST_IMAGES, champion_folder
from vgg_search.study.study import Study
from vgg_search.terminal.progress import Progress
from vgg_search.tracking.recorder import Recorder
from vgg_search.tracking.tracker import Tracker

SCORES = {"val_accuracy": 0.9, "test_accuracy": 0.9, "test_loss": 0.3}
SCORES |= {"test_accuracy_mean": 0.9, "test_accuracy_std": 0.0}


class Registered(Tracker):
    def __init__(self) -> None:
        self.folders: list[tuple[str, str]] = []

    @property
    def keys(self) -> list[str]:
        return [f"champion/{trial}-3" for trial in range(6)]

    def register(self, key: str, name: str, folder: Path) -> None:
        self.folders.append((key, folder.name))


def crown(study: Study, place: int, trial: int) -> dict[str, torch.Tensor]:
    """Writes the champion of a trial, whose weights are told by the trial; returns them."""
    vgg = network()
    for weight in vgg.parameters():
        weight.data += trial
    card = {"study": "a", "trial": trial, "epochs": 3, "metrics": SCORES}
    card |= {"place": place} if place > 1 else {}
    save_model(champion_folder(study.folder, place), vgg, INFO, card)
    return {name: value.clone() for name, value in vgg.state_dict().items()}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    config = experiment(num_trials=6, scheduler="none", champions=3)
    return search(tmp_path / "a", config, Workers())


def test_one_that_has_another_place_now_is_moved_there(study: Study) -> None:
    """The second is the first now and the first the third; nobody is there to train the second."""
    first, second, third = study.crowned()
    weights = {trial: crown(study, place, trial) for place, trial in ((1, third), (2, first))}
    (study.folder / WORST_IMAGES).write_bytes(b"of the third's")
    tracker = Registered()
    recorder = Recorder(tracker, study, cast(Splits, _Data()), {})
    champions = Champions(study, recorder, Progress(study, quiet=True))
    crown(study, 3, second)
    cards = champions.train(cast(Splits, None), cast(Any, None), {})
    assert [card["trial"] for card in cards] == [first, second, third]
    assert read_cards(study.folder) == cards
    assert [card.get("place") for card in cards] == [None, 2, 3]
    assert all(card["metrics"] == SCORES for card in cards)
    for place, trial in ((1, first), (3, third)):
        found = load_folder(champion_folder(study.folder, place))[0].state_dict()
        assert all(torch.equal(found[name], value) for name, value in weights[trial].items())
    assert not (study.folder / WORST_IMAGES).exists()
    names = ["champion", "champion-2", "champion-3"]
    keys = [f"champion/{trial}-3" for trial in (first, second, third)]
    assert tracker.folders == list(zip(keys, names, strict=True))


def test_those_that_are_at_their_places_stay_as_they_are(study: Study) -> None:
    for place, trial in enumerate(study.crowned(), 1):
        crown(study, place, trial)
    (study.folder / WORST_IMAGES).write_bytes(b"of the first's")
    before = {file: file.stat().st_mtime_ns for file in study.folder.glob("champion*/*")}
    tracker = Registered()
    recorder = Recorder(tracker, study, cast(Splits, _Data()), {})
    champions = Champions(study, recorder, Progress(study, quiet=True))
    champions.train(cast(Splits, None), cast(Any, None), {})
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert (study.folder / WORST_IMAGES).exists()
    assert not tracker.folders


class _Data:
    """What a recorder asks of the data."""

    name, digest = "sample", "0"
