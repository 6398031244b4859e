"""Exported files, read back by what will read them, against the network itself."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from champions import save_champion, some_test_images
from torch import nn

from vgg_search.cli.commands import main
from vgg_search.data.source import DatasetInfo
from vgg_search.models import export as exporting
from vgg_search.models.export import export
from vgg_search.models.files import ModelError, load_folder, save_model, servable
from vgg_search.training.model import build


@pytest.fixture(scope="module", params=[28, 32])
def champion(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_champion(tmp_path_factory.mktemp("run") / "champion", request.param)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_champion(tmp_path / "champion")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return some_test_images()[0]


@pytest.mark.parametrize("format", ["safetensors", "pt2", "onnx"])
def test_export_agrees_with_the_network(
    format: str, champion: Path, images: np.ndarray, tmp_path: Path
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    out = tmp_path / "made" / f"model.{format}"
    result = export(champion, format, out, images)
    assert (result["images"], result["changed_classes"]) == (1000, 0)
    assert result["max_difference"] <= (2e-6 if format == "onnx" else 0)
    assert result["bytes"] == out.stat().st_size
    assert list(out.parent.iterdir()) == [out]
    for n in (1, 3):  # any batch size, from the file alone
        x = images[:n].copy()
        if format == "safetensors":
            got = servable(out)[0](torch.from_numpy(x)).numpy()
        elif format == "pt2":
            got = torch.export.load(out).module()(torch.from_numpy(x)).numpy()
        else:
            import onnxruntime

            got = onnxruntime.InferenceSession(out).run(None, {"images": x})[0]
        wanted = servable(champion)[0](torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_an_exported_safetensors_file_holds_its_card(saved: Path, images: np.ndarray) -> None:
    export(saved, "safetensors", saved / "alone.safetensors", images[:10])
    assert load_folder(saved / "alone.safetensors")[1] == load_folder(saved)[1]
    with pytest.raises(ModelError, match=r"must hold a model's card .*KeyError.'model.json'"):
        load_folder(saved / "model.safetensors")


class Notebook(nn.Module):
    """As "Networks Using Blocks (VGG)" writes it, its shapes found by the first weights."""

    def __init__(self, arch: list[list[int]], hidden: int, num_hidden: int) -> None:
        super().__init__()
        blocks = []
        for num_convs, out_channels in arch:
            layers: list[nn.Module] = []
            for _ in range(num_convs):
                layers += [nn.LazyConv2d(out_channels, kernel_size=3, padding=1), nn.ReLU()]
            blocks.append(nn.Sequential(*layers, nn.MaxPool2d(kernel_size=2, stride=2)))
        head: list[nn.Module] = [nn.Flatten()]
        for _ in range(num_hidden):
            head += [nn.LazyLinear(hidden), nn.ReLU(), nn.Dropout(0.5)]
        self.net = nn.Sequential(*blocks, *head, nn.LazyLinear(10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)


def test_the_notebooks_own_class_takes_a_state_dict(tmp_path: Path, images: np.ndarray) -> None:
    network = build({"arch": [[1, 8], [2, 16]], "hidden_features": 32, "num_hidden": 2}, 0)
    info = DatasetInfo("fashion-mnist", tuple("0123456789"), (0.286,), (0.353,))
    save_model(tmp_path / "champion", network, info, {})
    out = tmp_path / "VGG_20261126.pt"
    assert export(tmp_path / "champion", "state-dict", out, images[:50])["changed_classes"] == 0
    notebook = Notebook([[1, 8], [2, 16]], 32, 2)
    notebook.load_state_dict(torch.load(out, weights_only=True))
    x = torch.from_numpy(images[:50].copy())
    pixels = (x / 255 - 0.286) / 0.353
    with torch.no_grad():
        wanted = servable(tmp_path / "champion")[0](x)
        torch.testing.assert_close(notebook.eval()(pixels).softmax(1), wanted)


def test_an_export_that_disagrees_writes_nothing(
    saved: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(ModelError, match="must agree with the network to -1 on all 10 images, got"):
        export(saved, "safetensors", tmp_path / "out" / "x", images[:10])
    assert list((tmp_path / "out").iterdir()) == []


def test_export_refuses_bad_input(
    saved: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ModelError, match="format must be one of safetensors, pt2, onnx, state-dict, got h5"
    ):
        export(saved, "h5", saved / "x", images)
    with pytest.raises(ModelError, match="champion cannot be written: Is a directory"):
        export(saved, "pt2", saved, images)
    with pytest.raises(ModelError, match=r"x cannot be written: File exists"):
        export(saved, "safetensors", saved / "model.json" / "x", images)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as where the extra is not installed
    message = r"^onnx export needs the extra 'export': pip install 'vgg-search\[export\]'$"
    with pytest.raises(ModelError, match=message):
        export(saved, "onnx", saved / "x", images)


def test_the_command_verifies_an_export_on_validation_images(
    saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(saved), "--format", "safetensors", "--dataset", "sample", "--json"]
    assert main(["export", *flags, "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["images"] == 1000
