"""A model by any of its names."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from champions import network, save_champion
from mlflow import MlflowClient

import vgg_search
from vgg_search.finding import find_model
from vgg_search.models.files import ModelError
from vgg_search.tracking.mlflow_adapter import ENVIRONMENT


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


@pytest.mark.parametrize("number", ["1", "2"])  # the second is not there
def test_a_model_out_of_the_tracker_leaves_the_environment_as_it_was(
    saved: Path,
    tmp_path: Path,
    empty_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: str,
) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("e", (tmp_path / "mlruns").as_uri()))
    client.log_artifacts(run.info.run_id, str(saved), "champion")
    client.create_registered_model("net")
    client.create_model_version("net", f"{run.info.artifact_uri}/model", run.info.run_id)
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    before = set(os.environ)
    if number == "1":
        loaded = vgg_search.load("models:/net/1", tracking_uri=uri)
        assert loaded.network.options() == network().options()
    else:
        with pytest.raises(ModelError, match=r"^no model models:/net/2 in the tracker: "):
            vgg_search.load("models:/net/2", tracking_uri=uri)
    assert set(os.environ) == before
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "600"
