"""A champion trained on: a run and a version of its own that name their parent, and no alias."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from vgg_search.cli.commands import main
from vgg_search.data.bundled import SOURCE
from vgg_search.data.splits import load_splits
from vgg_search.models.evaluation import evaluate
from vgg_search.models.files import load_folder, save_model, servable
from vgg_search.refine import KEPT, RUN, lineage, refine
from vgg_search.space.candidate import Candidate
from vgg_search.tracking.choice import connect
from vgg_search.tracking.recorder import champion_key
from vgg_search.tracking.tracker import ANSWERS
from vgg_search.training.model import build

EPOCHS = 2
CANDIDATE = Candidate(
    arch=((1, 4),),
    lr=0.05,
    weight_decay=1e-4,
    batch_size=256,
    dropout=0.0,
    hidden_features=16,
    num_hidden=1,
    batch_norm=False,
)
RECIPE = {"momentum": 0.9, "schedule": "one-cycle", "label_smoothing": 0.0, "flip": True}
RECIPE |= {"crop": 1, "erase": 0, "ema": True, "precision": "fp32"}
Offer = Callable[..., Path]


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Makes runs/a/champion, with a card as `crown` writes it, changed as asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def one(**changes: Any) -> Path:
        network = build(CANDIDATE.network(28), 0)
        card: dict[str, Any] = {
            "dataset": "sample",
            "digest": load_splits("sample").digest,
            "study": "a",
            "trial": 3,
            "num_params": network.num_params,
            "params": asdict(CANDIDATE),
            "recipe": RECIPE,
            "epochs": EPOCHS,
            "metrics": {"val_accuracy": 0.5, "test_accuracy": 0.1},
        }
        save_model(tmp_path / "runs" / "a" / "champion", network, SOURCE.info, card | changes)
        return tmp_path / "runs" / "a" / "champion"

    return one


def refined(capfd: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert main(["refine", "--json", *flags]) == 0
    return dict(json.loads(capfd.readouterr().out.splitlines()[-1]))


def test_it_is_a_run_and_a_version_that_name_their_parent(
    offer: Offer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = offer()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    parent = connect(folder.parent, uri, "vgg-search", "a", servable)
    parent.run("champion", "champion", {"kind": "champion"}, {})
    parent.register("champion", "vgg-search", folder)
    parent.start()
    assert parent.close(120) == 0
    told = refined(capfd, "--model", "models:/vgg-search@champion", "--seed", "5")

    client = MlflowClient(uri)
    version = client.get_model_version("vgg-search", "2")
    run = client.get_run(version.run_id)
    assert told["parent"] == {
        "model_uri": "models:/vgg-search/1",
        "run_id": parent.results("champion")["run_id"],
    }
    assert run.info.status == "FINISHED"
    tags = {"kind": RUN, "state": "completed", "study": "a", "trial_number": "3", "seed": "5"}
    tags |= {"parent_model": "models:/vgg-search/1", "dataset": "sample"}
    tags |= {"mlflow.parentRunId": told["parent"]["run_id"]}
    assert run.data.tags.items() >= tags.items()
    assert run.data.params.items() >= {"arch": "1x4", "epochs": "2", "lr": "0.05"}.items()
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train_accuracy")]
    assert steps == [1, 2]
    assert not any(name.startswith(("val_", "best_")) for name in run.data.metrics)
    # It says what came of it, and takes the alias from nobody.
    assert told["champion"]["test_accuracy"] > told["champion"]["parent_test_accuracy"]
    assert run.data.metrics["test_accuracy"] == told["champion"]["test_accuracy"]
    assert version.tags["parent_model"] == "models:/vgg-search/1"
    assert "val_accuracy" not in version.tags
    assert str(client.get_model_version_by_alias("vgg-search", "champion").version) == "1"
    assert told["champion"]["alias_text"] == (
        "vgg-search@champion stays at version 1, not version 2: it has seen the validation images, "
        "and has no val_accuracy to compare"
    )
    # Refined again, by its folder: the lineage goes on.
    made = tmp_path / "runs" / told["study"]
    card = load_folder(made / "champion")[1]
    assert {name: card[name] for name in KEPT} == {
        name: load_folder(folder)[1][name] for name in KEPT
    }
    assert card["parent_model"] == "models:/vgg-search/1"
    again = refined(capfd, "--model", str(made), "--champion-epochs", "1")
    assert again["parent"]["model_uri"] == "models:/vgg-search/2"
    assert again["epochs"] == 1
    assert again["champion"]["parent_test_accuracy"] == told["champion"]["test_accuracy"]


@pytest.mark.parametrize(
    ("changes", "flags", "text"),
    [
        ({}, "--champion-epochs 0", "champion_epochs must be >= 1, got '0'"),
        ({}, "--tracking-uri ftp://x", "must be a path or an address"),
        ({}, "--model runs/b", "--model must be a run, a champion folder or"),
        ({"digest": "0123"}, "", "the data must be what the champion was trained on, 0123, got"),
        ({"recipe": None}, "--model {no_recipe}", "must be a champion, got one whose card lacks"),
    ],
)
def test_what_cannot_be_refined(
    offer: Offer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    flags: str,
    text: str,
) -> None:
    folder = offer(**changes)
    network, card = load_folder(folder)
    card = {name: value for name, value in card.items() if name != "recipe"}
    save_model(tmp_path / "no_recipe", network, SOURCE.info, card)
    before = sorted(tmp_path.rglob("*"))
    assert main(["refine", *flags.format(no_recipe=tmp_path / "no_recipe").split()]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert text in err.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_training_that_diverges(
    offer: Offer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    offer(params=asdict(CANDIDATE) | {"lr": 1e30})
    assert main(["refine", "--json"]) == 1
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert (told["state"], told["champion"]) == ("failed", None)
    assert "the loss is not finite any more" in err
    assert not (tmp_path / "runs" / told["study"] / "champion").exists()


def refine_into(tmp_path: Path, folder: Path, listen: Callable[..., Any]) -> None:
    """Into the run "r"."""
    sent = {"tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "experiment": "vgg-search"}
    refine(folder, {"model_uri": "x"}, tmp_path / "runs" / "r", sent, {"commit": None}, listen)


def ended(tmp_path: Path) -> tuple[str, str]:
    """How MLflow shows the run of "r"."""
    assert main(["sync", "r"]) == 0
    (run,) = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_runs(["1"])
    return run.info.status, run.data.tags["state"]


def test_a_stop_closes_its_run(offer: Offer, tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refine_into(tmp_path, offer(), stop)
    assert ended(tmp_path) == ("KILLED", "interrupted")


@pytest.mark.parametrize(
    ("fault", "end"),
    [(KeyboardInterrupt, ("KILLED", "interrupted")), (RuntimeError, ("FAILED", "failed"))],
)
def test_what_ends_it_while_it_is_tested_closes_its_run(
    offer: Offer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: type[BaseException],
    end: tuple[str, str],
) -> None:
    trained = list[Any]()

    def tested(*given: Any) -> dict[str, Any]:
        if trained:
            raise fault
        return evaluate(*given)

    monkeypatch.setattr("vgg_search.refine.evaluate", tested)
    with pytest.raises(fault):
        refine_into(tmp_path, offer(), lambda *row: trained.append(row))
    assert ended(tmp_path) == end


def test_a_model_that_cannot_be_saved_closes_its_run(offer: Offer, tmp_path: Path) -> None:
    def obstruct(*_: Any) -> None:
        (tmp_path / "runs" / "r" / "champion").touch()

    with pytest.raises(FileExistsError):
        refine_into(tmp_path, offer(), obstruct)
    assert ended(tmp_path) == ("FAILED", "failed")


def test_the_lineage_is_that_of_the_champion_in_the_folder(offer: Offer) -> None:
    first = offer()
    second, summary = first.with_name("champion-2"), first.parent / "summary.json"
    network, card = load_folder(first)
    save_model(second, network, SOURCE.info, card | {"place": 2})
    one, two = ({"model_uri": f"models:/vgg-search/{n}", "run_id": f"r{n}"} for n in (1, 2))
    summary.write_text(json.dumps({"champion": one, "more_champions": [two]}))
    assert lineage(None, first, None) == one
    assert lineage(str(second), second, None) == two
    summary.write_text(json.dumps({"champion": one}))
    assert lineage(None, second, None) == {"model_uri": str(second)}


@pytest.mark.parametrize(
    "told",
    [
        {"champion": None},  # the search was stopped, or is resumed
        {"champion": {"trial": 3, "model_uri": None, "run_id": None}},  # the tracker was away
        {},
    ],
)
def test_the_lineage_of_what_the_summary_does_not_tell_is_the_folder(
    offer: Offer, told: dict[str, Any]
) -> None:
    folder = offer()
    (folder.parent / "summary.json").write_text(json.dumps(told))
    assert lineage(None, folder, None) == {"model_uri": str(folder)}


def test_with_a_bucket_it_is_beside_the_driver(
    offer: Offer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    offer()
    told = refined(capfd, "--storage-path", "s3://bucket/prefix", "--champion-epochs", "1")
    assert (tmp_path / "runs" / told["study"] / "champion" / "model.json").exists()
    assert not (tmp_path / "s3:").exists()


def test_sync_completes_the_summaries(
    offer: Offer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a refinement and of a search, when the tracker was away at their ends."""
    folder, uri = offer(), f"sqlite:///{tmp_path / 'mlflow.db'}"
    sent = connect(tmp_path / "runs" / "a", uri, "vgg-search", "a", servable)
    key = champion_key(3, EPOCHS)
    sent.run(key, "champion", {"kind": "champion", "trial_number": 3}, {})
    sent.register(key, "vgg-search", folder)
    unknown = dict.fromkeys(ANSWERS)
    (folder.parent / "summary.json").write_text(json.dumps({"champion": unknown | {"x": 1}}))
    told = refined(capfd, "--champion-epochs", "1")
    made = tmp_path / "runs" / told["study"]
    answers = {name: told["champion"][name] for name in ANSWERS}
    written = json.loads((made / "summary.json").read_text())
    (made / "summary.json").write_text(json.dumps(written | {"champion": unknown}))
    for name in ("a", told["study"]):
        assert main(["sync", name]) == 0
    first, second = (
        json.loads((run / "summary.json").read_text())["champion"] for run in (folder.parent, made)
    )
    assert first["run_id"] == sent.results(key)["run_id"]
    assert first["model_uri"].startswith("models:/vgg-search/")
    assert first["x"] == 1
    assert second == answers
    assert all(second.values())
