"""Champion files written and loaded, and nothing else run; the module that they are loaded as."""

import ast
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from champions import INFO, network, save_champion, some_test_images

import vgg_search
from vgg_search.models.files import (
    ModelError,
    load_classifier,
    load_folder,
    save_model,
    servable,
)
from vgg_search.training.inference import prepare
from vgg_search.training.model import VGG


@pytest.fixture(scope="module", params=[28, 32])
def champion(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_champion(tmp_path_factory.mktemp("run") / "champion", request.param)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_champion(tmp_path / "champion")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return some_test_images()[0]


def edit(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "model.json").read_text()) | changes
    del card["checksums"]
    (folder / "model.json").write_text(json.dumps(card))


def flip(path: Path, where: int | bytes) -> None:
    """Change a bit, as a disk or a copy does; in the last byte of a text."""
    content = bytearray(path.read_bytes())
    content[where if isinstance(where, int) else content.index(where) + len(where) - 1] ^= 1
    path.write_bytes(content)


# Files


def test_what_is_saved_is_loaded(champion: Path) -> None:
    loaded, card = load_folder(champion)
    original = network(loaded.resolution).eval()
    x = torch.randn(5, 1, loaded.resolution, loaded.resolution)
    assert not loaded.training
    torch.testing.assert_close(loaded(x), original(x), rtol=0, atol=0)
    assert card["study"] == "a"
    assert card["classes"] == list(INFO.classes)
    assert card["normalisation"] == {"mean": list(INFO.mean), "std": list(INFO.std)}
    assert sorted(path.name for path in champion.iterdir()) == ["model.json", "model.safetensors"]


def test_channels_last_weights_are_saved(tmp_path: Path) -> None:
    save_model(tmp_path, network().to(memory_format=torch.channels_last), INFO, {})
    torch.testing.assert_close(load_folder(tmp_path)[0].state_dict(), network().state_dict())


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_what_the_users_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save_model(tmp_path, network(), INFO, {})
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("model.json", "model.safetensors"), 0o666 & ~umask)


def test_a_save_that_fails_leaves_the_old_files(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(ValueError, match="Out of range float values"):
        save_model(saved, network(), INFO, {"metrics": {"test_loss": float("nan")}})
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-10])


def other_weights(folder: Path) -> None:
    save_model(folder.parent / "other", VGG(((1, 4),), hidden_features=16, num_hidden=1), INFO, {})
    (folder.parent / "other" / "model.safetensors").replace(folder / "model.safetensors")
    edit(folder)


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
    ("flipped weight", lambda f: flip(f / "model.safetensors", -5), "safetensors in .* is not as"),
    ("flipped digit", lambda f: flip(f / "model.json", b"0.28"), "model.json in .* is not as it"),
]


@pytest.mark.parametrize(
    ("damage", "message"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES]
)
def test_a_damaged_folder_says_so_in_one_line(
    damage: Callable[[Path], object], message: str, saved: Path
) -> None:
    damage(saved)
    with pytest.raises(ModelError, match=message) as caught:
        servable(saved)
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
            load_folder(saved)
        with pytest.raises(ModelError, match="must be a whole safetensors file"):
            load_folder(saved / "model.safetensors")
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
UNSAFE_MODULES |= {"cloudpickle"}
UNSAFE_NAMES = {"read_pickle", "unsafe_load", "full_load", "eval", "exec", "load_model"}
UNSAFE_NAMES |= {"PackageImporter"}


def unsafe_loads(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0], *(a.name for a in node.names)}
            found += sorted(names & UNSAFE_MODULES)
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        wrong = (
            name == "torch.jit.load"
            or (name == "torch.load" and given.get("weights_only") != "True")
            or given.get("allow_pickle", "False") != "False"
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
        ("np.lib.format.read_array(f, allow_pickle=True)", 1),
        ("torch.jit.load(f)", 1),
        ("mlflow.pyfunc.load_model(uri)", 1),
        ("from ray import cloudpickle", 1),
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
    assert [m.name for m in modules if "export.load(" in m.read_text()] == ["export.py"]


# Use


def test_a_loaded_network_is_ready_for_use_and_prepares_images_as_training_did(
    champion: Path, images: np.ndarray
) -> None:
    module = load_classifier(champion)
    x = torch.from_numpy(images[:7].copy())
    logits = module(x)
    assert not module.training
    assert not logits.requires_grad
    assert module.info.classes == INFO.classes
    original = network(module.network.resolution).eval()
    with torch.no_grad():
        expected = original(prepare(x, original.resolution, INFO))
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    torch.testing.assert_close(servable(champion)[0](x), expected.softmax(1), rtol=0, atol=0)


def test_the_card_decides_the_normalisation(saved: Path, images: np.ndarray) -> None:
    edit(saved, normalisation={"mean": 0.5, "std": 0.5})
    pixels = torch.from_numpy((images[:7] / 255 - 0.5) / 0.5).float()
    with torch.no_grad():
        expected = network().eval()(pixels)
    answer = load_classifier(saved)(torch.from_numpy(images[:7].copy()))
    torch.testing.assert_close(answer, expected)


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_images_that_are_not_bytes_are_refused(saved: Path, dtype: str) -> None:
    images = torch.zeros(2, 1, 28, 28, dtype=getattr(torch, dtype))
    for module in (load_classifier(saved), servable(saved)[0]):
        with pytest.raises(TypeError, match=f"^images must be uint8, got {dtype}$"):
            module(images)


def test_the_example_is_servable(champion: Path) -> None:
    module, example = servable(champion)
    assert (example.dtype, example.shape) == (np.uint8, (2, 1, 28, 28))
    answer = module(torch.from_numpy(example))
    assert (answer.dtype, answer.shape) == (torch.float32, (2, 10))
