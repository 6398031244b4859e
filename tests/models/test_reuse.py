"""Champion files written, found, loaded, asked, scored and exported; and nothing else run."""

import ast
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vgg_search
from vgg_search.cli.commands import main
from vgg_search.data.splits import CLASSES, MEAN, STD, load_test
from vgg_search.models import reuse
from vgg_search.models.reuse import ModelError
from vgg_search.training.model import VGG
from vgg_search.training.train import prepare

DATASET = "fashion-mnist" if os.environ.get("VGG_SEARCH_DATA_DIR") else "sample"


@pytest.fixture(scope="module")
def test_split() -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_test(DATASET)
    return images[:1000], labels[:1000]


@pytest.fixture(scope="module")
def images(test_split: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return test_split[0]


def network(resolution: int = 28) -> VGG:
    """Weights as initialised; the batch norms have seen some numbers, so that they matter."""
    torch.manual_seed(0)
    options = {"hidden_features": 16, "num_hidden": 1, "batch_norm": True}
    made = VGG(((1, 4), (2, 8)), resolution=resolution, **options)
    made(torch.randn(64, 1, resolution, resolution) * 3 + 1)
    return made


@pytest.fixture(scope="module", params=[28, 32])
def champion(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "champion"
    reuse.save_model(folder, network(request.param), {"study": "a", "metrics": {"val_accuracy": 1}})
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    reuse.save_model(tmp_path / "champion", network(), {})
    return tmp_path / "champion"


def edit(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "model.json").read_text()) | changes
    (folder / "model.json").write_text(json.dumps(card))


# Files


def test_what_is_saved_is_loaded(champion: Path) -> None:
    loaded, card = reuse.load_folder(champion)
    original = network(loaded.resolution).eval()
    x = torch.randn(5, 1, loaded.resolution, loaded.resolution)
    assert not loaded.training
    torch.testing.assert_close(loaded(x), original(x), rtol=0, atol=0)
    assert card["study"] == "a"
    assert card["classes"] == list(CLASSES)
    assert card["normalisation"] == {"mean": MEAN, "std": STD}
    assert sorted(path.name for path in champion.iterdir()) == ["model.json", "model.safetensors"]


def test_channels_last_weights_are_saved(tmp_path: Path) -> None:
    reuse.save_model(tmp_path, network().to(memory_format=torch.channels_last), {})
    torch.testing.assert_close(reuse.load_folder(tmp_path)[0].state_dict(), network().state_dict())


def test_a_save_that_fails_leaves_the_old_files(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(ValueError, match="Out of range float values"):
        reuse.save_model(saved, network(), {"metrics": {"test_loss": float("nan")}})
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])


def other_weights(folder: Path) -> None:
    reuse.save_model(folder.parent / "other", VGG(((1, 4),), hidden_features=16, num_hidden=1), {})
    (folder.parent / "other" / "model.safetensors").replace(folder / "model.safetensors")


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "no weights",
        lambda f: (f / "model.safetensors").unlink(),
        r"model\.safetensors is missing or not readable",
    ),
    ("no card", lambda f: (f / "model.json").unlink(), r"model\.json is missing or not readable"),
    ("cut weights", cut, r"model\.safetensors must be a whole safetensors file"),
    ("no bytes", write("model.safetensors", b""), "must be a whole safetensors file"),
    ("other weights", other_weights, "must fit the network of its card, .* do not: .*, wanted"),
    ("cut card", write("model.json", b'{"options": '), r"model\.json must hold .*JSONDecodeError"),
    ("bytes", write("model.json", b"\xff\x00"), r"model\.json must hold .*UnicodeDecodeError"),
    ("a list", write("model.json", b"[]"), "must hold a model's card .*TypeError"),
    ("empty", write("model.json", b"{}"), "must hold a model's card .*KeyError.'options'"),
    ("unknown option", lambda f: edit(f, options={"arch": [[1, 4]], "a": 1}), "card .*TypeError"),
    ("no arch", lambda f: edit(f, options={"arch": []}), "card .*num_blocks must be >= 1, got 0"),
    ("no mean", lambda f: edit(f, normalisation={"std": 1}), "card .*KeyError.'mean'"),
    ("text", lambda f: edit(f, normalisation={"mean": "x", "std": 1}), "card .*ValueError"),
    ("no classes", lambda f: edit(f, classes=None), "card .*TypeError"),
]


@pytest.mark.parametrize(
    ("damage", "message"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES]
)
def test_a_damaged_folder_says_so_in_one_line(
    damage: Callable[[Path], object], message: str, saved: Path
) -> None:
    damage(saved)
    with pytest.raises(ModelError, match=message) as caught:
        reuse.servable(saved)
    assert "\n" not in str(caught.value)


# Safety


class Payload:
    """What a malicious file carries: unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.target,)


def test_a_pickle_posing_as_weights_is_refused_and_not_run(saved: Path) -> None:
    trace = saved / "trace"
    for written in (
        lambda f: f.write_bytes(pickle.dumps(Payload(trace))),
        lambda f: torch.save(Payload(trace), f),
    ):
        written(saved / "model.safetensors")
        with pytest.raises(ModelError, match="must be a whole safetensors file"):
            reuse.load_folder(saved)
        with pytest.raises(ModelError, match="must be a whole safetensors file"):
            reuse.load_folder(saved / "model.safetensors")
        assert not trace.exists()


def test_a_pickle_posing_as_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    trace, file = tmp_path / "trace", tmp_path / "checkpoint.pt"
    torch.save({"epoch": 1, "network": Payload(trace)}, file)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(file, weights_only=True)
    assert not trace.exists()
    torch.load(file, weights_only=False)  # the payload is live: the check above checks something
    assert trace.exists()


# Reads files with pickle, whatever the arguments.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_NAMES = {"read_pickle", "unsafe_load", "full_load", "eval", "exec"}


def unsafe_loads(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            found.append(str(node.module))
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        wrong = (
            (name == "torch.load" and given.get("weights_only") != "True")
            or (name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False")
            or (name in ("yaml.load", "yaml.load_all") and "SafeLoader" not in ast.unparse(node))
            or (isinstance(node.func, ast.Name) and name in UNSAFE_NAMES)
            or name.split(".")[-1] in UNSAFE_NAMES - {"eval", "exec"}
        )
        found += [name] if wrong else []
    return found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("torch.load(f)", 1),
        ("torch.load(f, weights_only=False)", 1),
        ("torch.load(f, weights_only=True)", 0),
        ("np.load(f, allow_pickle=True)", 1),
        ("np.load(f)", 0),
        ("import pickle", 1),
        ("from joblib import load", 1),
        ("pd.read_pickle(f)", 1),
        ("yaml.load(f, yaml.Loader)", 1),
        ("yaml.safe_load(f)", 0),
        ("network.eval()", 0),
        ("eval(text)", 1),
    ],
)
def test_the_search_for_unsafe_loads_finds_them(source: str, count: int) -> None:
    assert len(unsafe_loads(source)) == count


def test_no_module_loads_unsafely() -> None:
    modules = list(Path(vgg_search.__file__).parent.glob("**/*.py"))
    assert modules
    assert {m.name: found for m in modules if (found := unsafe_loads(m.read_text()))} == {}


def test_only_the_export_that_wrote_it_reads_a_pt2_file() -> None:
    """torch.export.load unpickles."""
    modules = Path(vgg_search.__file__).parent.glob("**/*.py")
    assert [m.name for m in modules if "export.load(" in m.read_text()] == ["reuse.py"]


# Finding


def test_the_latest_champion_is_found(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no champion found under .*; run a search first or give"):
        reuse.find_model(storage_path=tmp_path)
    for age, name in enumerate(("b", "c", "a")):
        reuse.save_model(tmp_path / name / "champion", network(), {})
        os.utime(tmp_path / name / "champion" / "model.json", (age, age))
    assert reuse.find_model(storage_path=tmp_path) == tmp_path / "a" / "champion"


def test_without_runs_the_message_names_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = "^no champion found under runs; run a search first or give --model$"
    for storage in ("runs", "s3://bucket/prefix"):
        with pytest.raises(ModelError, match=message):
            reuse.find_model(storage_path=storage)


def test_a_model_is_found_by_run_folder_champion_folder_name_and_file(saved: Path) -> None:
    runs, run = saved.parent.parent, saved.parent
    for model in (run, str(run), saved, str(saved), run.name):
        assert reuse.find_model(model, storage_path=runs) == saved
    file = saved / "model.safetensors"
    assert reuse.find_model(file) == file
    with pytest.raises(ModelError, match=r"--model must be a run, .*, got nowhere$"):
        reuse.find_model("nowhere", storage_path=runs)


# Use


def test_load_is_ready_for_use_and_prepares_images_as_training_did(
    champion: Path, images: np.ndarray
) -> None:
    module = reuse.load(champion.parent)
    x = torch.from_numpy(images[:7].copy())
    probabilities = module(x[:, None])
    assert not module.training
    assert not probabilities.requires_grad
    original = network(module.network.resolution).eval()
    with torch.no_grad():
        expected = original(prepare(x, original.resolution)).softmax(1)
    torch.testing.assert_close(probabilities, expected)


def test_the_card_decides_the_normalisation(saved: Path, images: np.ndarray) -> None:
    edit(saved, normalisation={"mean": 0.5, "std": 0.5})
    pixels = torch.from_numpy((images[:7, None] / 255 - 0.5) / 0.5).float()
    with torch.no_grad():
        expected = network().eval()(pixels).softmax(1)
    answer = reuse.load(saved)(torch.from_numpy(images[:7, None].copy()))
    torch.testing.assert_close(answer, expected)


def test_the_example_is_servable(champion: Path) -> None:
    module, example = reuse.servable(champion)
    assert (example.dtype, example.shape) == (np.uint8, (2, 1, 28, 28))
    answer = module(torch.from_numpy(example))
    assert (answer.dtype, answer.shape) == (torch.float32, (2, 10))


def test_predict_names_wrong_files_and_goes_on(
    champion: Path, images: np.ndarray, tmp_path: Path
) -> None:
    paths = [tmp_path / name for name in ("a.png", "text.png", "b.png", "missing.jpg", "c.png")]
    Image.fromarray(images[0].copy()).save(paths[0])
    paths[1].write_text("a shirt")
    Image.fromarray(255 - images[1]).save(paths[2])
    Image.fromarray(images[2].copy()).resize((90, 120)).convert("RGBA").save(paths[4])
    rows = reuse.predict(champion, paths)
    assert [row["file"] for row in rows] == [str(path) for path in paths]
    assert [set(row) for row in rows if "error" in row] == [{"file", "error"}] * 2
    assert rows[1]["error"] == "must be a PNG or JPEG image"
    assert "No such file" in rows[3]["error"]
    assert [rows[i]["assumed"] for i in (0, 2, 4)] == [
        "light on dark",
        "dark on light, inverted",
        "light on dark",
    ]
    expected = reuse.servable(champion)[0](torch.from_numpy(images[:2, None].copy()))
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
    Image.fromarray(255 - images[0]).save(good)
    Path(bad).write_text("a shirt")
    files = ["predict", bad, good, gone, "--model", str(champion)]
    assert main(files) == 1
    out, err = capfd.readouterr()
    assert out.startswith(f"{good}: ")
    assert out.endswith("(dark on light, inverted)\n")
    assert err.splitlines() == [
        f"vgg-search: {bad} must be a PNG or JPEG image",
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
    module = reuse.servable(champion)[0]
    with torch.inference_mode():
        probabilities = module(torch.from_numpy(images[:, None].copy())).double().numpy()
    guesses = probabilities.argmax(1)
    score = reuse.evaluate(champion, images, labels)
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


def test_evaluate_knows_no_recall_of_an_absent_class(
    champion: Path, test_split: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = (part[test_split[1] != 3] for part in test_split)
    row = reuse.evaluate(champion, images, labels)["per_class"][3]
    assert (row["images"], row["accuracy"]) == (0, None)


# Export


@pytest.mark.parametrize("format", ["safetensors", "pt2", "onnx"])
def test_export_agrees_with_the_network(
    format: str, champion: Path, images: np.ndarray, tmp_path: Path
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    out = tmp_path / "made" / f"model.{format}"
    result = reuse.export(champion, format, out, images)
    assert (result["images"], result["changed_classes"]) == (1000, 0)
    assert result["max_difference"] <= (2e-6 if format == "onnx" else 0)
    assert result["bytes"] == out.stat().st_size
    assert list(out.parent.iterdir()) == [out]
    for n in (1, 3):  # any batch size, from the file alone
        x = images[:n, None].copy()
        if format == "safetensors":
            got = reuse.load(out)(torch.from_numpy(x)).numpy()
        elif format == "pt2":
            got = torch.export.load(out).module()(torch.from_numpy(x)).numpy()
        else:
            import onnxruntime

            got = onnxruntime.InferenceSession(out).run(None, {"images": x})[0]
        wanted = reuse.load(champion)(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(got, wanted, atol=2e-6)


def test_an_exported_safetensors_file_holds_its_card(saved: Path, images: np.ndarray) -> None:
    reuse.export(saved, "safetensors", saved / "alone.safetensors", images[:10])
    assert reuse.load_folder(saved / "alone.safetensors")[1] == reuse.load_folder(saved)[1]
    with pytest.raises(ModelError, match=r"must hold a model's card .*KeyError.'model.json'"):
        reuse.load_folder(saved / "model.safetensors")


def test_an_export_that_disagrees_writes_nothing(
    saved: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse, "TOLERANCE", -1.0)
    with pytest.raises(ModelError, match="must agree with the network to -1 on all 10 images, got"):
        reuse.export(saved, "safetensors", tmp_path / "out" / "x", images[:10])
    assert list((tmp_path / "out").iterdir()) == []


def test_export_refuses_bad_input(
    saved: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="format must be one of safetensors, pt2, onnx, got h5"):
        reuse.export(saved, "h5", saved / "x", images)
    with pytest.raises(ModelError, match="champion cannot be written: Is a directory"):
        reuse.export(saved, "pt2", saved, images)
    with pytest.raises(ModelError, match=r"x cannot be written: File exists"):
        reuse.export(saved, "safetensors", saved / "model.json" / "x", images)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as where the extra is not installed
    message = r"^onnx export needs the extra 'export': pip install 'vgg-search\[export\]'$"
    with pytest.raises(ModelError, match=message):
        reuse.export(saved, "onnx", saved / "x", images)


def test_the_command_verifies_an_export_on_validation_images(
    saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(saved), "--format", "safetensors", "--dataset", "sample", "--json"]
    assert main(["export", *flags, "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["images"] == 1000
