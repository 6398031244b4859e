"""A network's answers to image files and its scores, against a count by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from champions import INFO, save_champion, some_test_images
from PIL import Image

from vgg_search.cli.commands import main
from vgg_search.data.decoding import MUST_BE
from vgg_search.models.evaluation import evaluate, predict
from vgg_search.models.files import servable

CLASSES = INFO.classes


@pytest.fixture(scope="module")
def test_split() -> tuple[np.ndarray, np.ndarray]:
    return some_test_images()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return some_test_images(10)[0]


@pytest.fixture(scope="module", params=[28, 32])
def champion(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_champion(tmp_path_factory.mktemp("run") / "champion", request.param)


def test_predict_names_wrong_files_and_goes_on(
    champion: Path, images: np.ndarray, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("a.png", "text.png", "b.png", "missing.jpg", "c.png")]
    Image.fromarray(images[0, 0].copy()).save(paths[0])
    paths[1].write_text("a shirt")
    Image.fromarray(255 - images[1, 0]).save(paths[2])
    Image.fromarray(images[2, 0].copy()).resize((90, 120)).convert("RGBA").save(paths[4])
    rows = predict(champion, paths)
    assert [row["file"] for row in rows] == [str(path) for path in paths]
    assert [set(row) for row in rows if "error" in row] == [{"file", "error"}] * 2
    assert rows[1]["error"] == MUST_BE
    assert "No such file" in rows[3]["error"]
    assert [rows[i]["assumed"] for i in (0, 2, 4)] == [
        "light on dark",
        "dark on light, inverted",
        "light on dark",
    ]
    expected = servable(champion)[0](torch.from_numpy(images[:2].copy()))
    for row, probabilities in zip((rows[0], rows[2]), expected, strict=True):
        assert row["class"] == CLASSES[int(probabilities.argmax())]
        assert row["probability"] == pytest.approx(float(probabilities.max()), abs=1e-6)
        assert row["top3"][0] == (row["class"], row["probability"])
        assert len(row["top3"]) == 3
    json.dumps(rows)


def test_the_command_names_wrong_files_and_goes_on(
    champion: Path, images: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good, bad, gone = (str(tmp_path / name) for name in ("a.png", "bad.png", "gone.jpg"))
    Image.fromarray(255 - images[0, 0]).save(good)
    Path(bad).write_text("a shirt")
    files = ["predict", bad, good, gone, "--model", str(champion)]
    assert main(files) == 1
    out, err = capfd.readouterr()
    assert out.startswith(f"{good}: ")
    assert out.endswith("(dark on light, inverted)\n")
    assert err.splitlines() == [
        f"vgg-search: {bad} {MUST_BE}",
        f"vgg-search: {gone} cannot be read: No such file or directory",
    ]
    assert main([*files, "--json"]) == 1
    rows = json.loads(capfd.readouterr().out)["predictions"]
    assert [row["file"] for row in rows] == [bad, good, gone]
    assert main(["predict", good, "--model", str(champion)]) == 0


def test_evaluate_counts_as_by_hand(
    champion: Path, test_split: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = test_split
    module = servable(champion)[0]
    with torch.inference_mode():
        probabilities = module(torch.from_numpy(images.copy())).double().numpy()
    guesses = probabilities.argmax(1)
    score = evaluate(champion, images, labels)
    assert score["test_accuracy"] == pytest.approx((guesses == labels).mean())
    expected = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert score["test_loss"] == pytest.approx(expected, rel=1e-5)
    for i, row in enumerate(score["per_class"]):
        hits = int(((guesses == i) & (labels == i)).sum())
        assert row["class"] == CLASSES[i]
        assert row["images"] == (labels == i).sum()
        assert row["accuracy"] == pytest.approx(hits / (labels == i).sum())
        guessed = (guesses == i).sum()
        assert row["precision"] == (pytest.approx(hits / guessed) if guessed else None)
        for j in range(10):
            assert score["confusion"][i][j] == ((labels == i) & (guesses == j)).sum()
    json.dumps(score)


def test_the_worst_images_are_those_of_the_highest_loss(
    champion: Path, test_split: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = (part[:300] for part in test_split)
    module = servable(champion)[0]
    with torch.inference_mode():
        probabilities = module(torch.from_numpy(images.copy())).double().numpy()
    losses = -np.log(probabilities[np.arange(300), labels])
    worst = evaluate(champion, images, labels)["worst"]
    numbers = [row["image"] for row in worst]
    assert len(set(numbers)) == 20
    assert losses[numbers] == pytest.approx(np.sort(losses)[::-1][:20], rel=1e-4)
    for row in worst:
        guess = probabilities[row["image"]].argmax()
        assert row["class"] == CLASSES[labels[row["image"]]]
        assert row["predicted"] == CLASSES[guess]
        assert row["probability"] == pytest.approx(probabilities[row["image"]][guess], rel=1e-4)
    few = evaluate(champion, images[:3], labels[:3])["worst"]
    assert [row["image"] for row in few] == np.argsort(-losses[:3]).tolist()


def test_evaluate_knows_no_recall_of_an_absent_class(
    champion: Path, test_split: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = (part[test_split[1] != 3] for part in test_split)
    row = evaluate(champion, images, labels)["per_class"][3]
    assert (row["images"], row["accuracy"]) == (0, None)
