"""A model by any of its names."""

import os
from pathlib import Path

import pytest
import torch
from champions import network, save_champion

import vgg_search
from vgg_search.finding import find_model
from vgg_search.models.files import ModelError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_champion(tmp_path / "champion")


def test_the_latest_champion_is_found(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no champion found under .*; run a search first or give"):
        find_model(storage_path=tmp_path)
    for age, name in enumerate(("b", "c", "a")):
        save_champion(tmp_path / name / "champion")
        os.utime(tmp_path / name / "champion" / "model.json", (age, age))
    assert find_model(storage_path=tmp_path) == tmp_path / "a" / "champion"


def test_without_runs_the_message_names_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = "^no champion found under runs; run a search first or give --model$"
    for storage in ("runs", "s3://bucket/prefix"):
        with pytest.raises(ModelError, match=message):
            find_model(storage_path=storage)


def test_a_model_is_found_by_run_folder_champion_folder_name_and_file(saved: Path) -> None:
    runs, run = saved.parent.parent, saved.parent
    for model in (run, str(run), saved, str(saved), run.name):
        assert find_model(model, storage_path=runs) == saved
    file = saved / "model.safetensors"
    assert find_model(file) == file
    with pytest.raises(ModelError, match=r"--model must be a run, .*, got nowhere$"):
        find_model("nowhere", storage_path=runs)


def test_load_gives_the_network_by_any_name_with_logits(saved: Path) -> None:
    images = torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8)
    by_run, by_file = (
        vgg_search.load(saved.parent.name, storage_path=saved.parent.parent),
        vgg_search.load(saved),
    )
    answer = by_run(images)
    assert torch.equal(answer, by_file(images))
    assert answer.shape == (3, 10)
    assert by_run.network.options() == network().options()
    assert by_run.info.classes[9] == "Ankle boot"
