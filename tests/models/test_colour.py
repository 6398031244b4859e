"""A champion of colour images and other classes: saved, loaded, exported, asked, scored."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vgg_search.data.source import DatasetInfo
from vgg_search.models.evaluation import evaluate, predict
from vgg_search.models.export import export
from vgg_search.models.files import ModelError, info_of, load_folder, save_model, servable
from vgg_search.models.images import contact_sheet
from vgg_search.training.inference import prepare
from vgg_search.training.model import VGG

INFO = DatasetInfo(
    name="photos",
    classes=(*"abcdefgh", "a long name of a class"),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
    side=40,
    drawn_test=True,
    max_images=500,
)


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    head = {"hidden_features": 16, "num_hidden": 1, "num_classes": 9, "in_channels": 3}
    folder = tmp_path_factory.mktemp("run") / "champion"
    card = {"dataset": INFO.name, "metrics": {"val_accuracy": 1}}
    save_model(folder, VGG(((1, 8), (1, 8)), resolution=32, **head), INFO, card)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 3, 40, 40), dtype=np.uint8)


def test_the_card_says_what_the_images_are(champion: Path) -> None:
    assert info_of(load_folder(champion)[1]) == INFO


def test_each_channel_has_its_own_mean_and_deviation(images: np.ndarray) -> None:
    pixels = prepare(torch.from_numpy(images), 40, INFO)
    mean, std = (np.array(x)[:, None, None] for x in (INFO.mean, INFO.std))
    np.testing.assert_allclose(pixels.numpy(), (images / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize("format", ["safetensors", "pt2", "onnx"])
def test_export_agrees_with_the_network(
    format: str, champion: Path, images: np.ndarray, tmp_path: Path
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    result = export(champion, format, tmp_path / "model", images)
    assert (result["images"], result["changed_classes"]) == (30, 0)
    assert servable(champion)[1].shape == (2, 3, 40, 40)


def test_files_are_read_as_training_images_were(
    champion: Path, images: np.ndarray, tmp_path: Path
) -> None:
    for i in range(3):
        Image.fromarray(np.moveaxis(images[i], 0, 2)).save(tmp_path / f"{i}.png")
    rows = predict(champion, [tmp_path / f"{i}.png" for i in range(3)])
    wanted = servable(champion)[0](torch.from_numpy(images[:3]))
    for row, probabilities in zip(rows, wanted, strict=True):
        assert row["class"] == INFO.classes[int(probabilities.argmax())]
        assert row["probability"] == pytest.approx(float(probabilities.max()), abs=1e-6)
        assert row["assumed"] == "its middle square"


def test_scores_are_of_all_classes_and_images_of_another_kind_refused(
    champion: Path, images: np.ndarray
) -> None:
    score = evaluate(champion, images, np.arange(30) % 9)
    assert np.array(score["confusion"]).shape == (9, 9)
    with pytest.raises(ModelError, match=r"must have 3 channels and 9 classes .*, got 1 and 9"):
        evaluate(champion, images[:, :1], np.arange(30) % 9)
    with pytest.raises(ModelError, match="got 3 and 10"):
        evaluate(champion, images, np.arange(30) % 10)


def test_a_contact_sheet_is_in_colour(images: np.ndarray) -> None:
    sheet = contact_sheet(images[:7])
    assert (sheet.mode, sheet.size) == ("RGB", (5 * (40 + 2 * 3), 2 * (40 + 17)))
    np.testing.assert_array_equal(np.asarray(sheet)[:40, 3:43], np.moveaxis(images[0], 0, 2))
