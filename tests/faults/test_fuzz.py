"""Command lines, variables, experiment files and image files as nobody would write them: exit code
0 or 2 (1 for an image), one clear line on stderr, nothing left behind.

    FUZZ_EXAMPLES=5000 FUZZ_SEED=1 pytest -s tests/faults/test_fuzz.py

Without these variables a few, the same each time. Memory is bounded: who asks for MOST_MEMORY more
than the process has mapped is refused it, which would be an error of another kind.
"""

import json
import os
import re
import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from champions import save_champion
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from vgg_search.cli import commands
from vgg_search.config import Config
from vgg_search.data.decoding import ImageError, read_square
from vgg_search.data.source import DatasetInfo
from vgg_search.models.files import save_model
from vgg_search.training.model import VGG

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
MOST_MEMORY = 4 * 2**30  # of addresses; torch alone maps as much, tests that ran before twice that
PICTURES = 8  # at most, of a command
BASE: dict[str, Any] = {
    "dataset": "sample",
    "name": "fuzz",
    "num_trials": 2,
    "max_epochs": 1,
    "val_images": 100,
    "train_images": 100,
    "batch_size": 8,
    "baseline": None,
    "champion_epochs": 1,
    "space": {"num_blocks": 1, "num_convs": 1, "out_channels": 4, "lr": [0.1, 0.2]}
    | {"hidden_features": 8, "num_hidden": 1, "dropout": 0.0},
}
# Names of data sets that would be downloaded are not drawn
JUNK = ["", " ", "null", "true", "false", "-1", "0", "1", "2", "7", "1e400", "nan", "-inf", "1.5"]
JUNK += ["9" * 30, "0x10", "1_000", "[]", "{}", "[[1,2]]", '{"a":1}', '{"lr":[0.1]}', "[1,2", "☃"]
JUNK += ["\udcff", "..", "../up", "/", "~", "~nobody/x", "a b", "-", "--", "--help", "-5s", "1h30m"]
JUNK += ["s3://", "http://", "http://a:b", "sqlite:///x.db", "sqlite://", "a" * 300, "a\nb", "=,"]
JUNK += ["val_accuracy,num_params", "num_params<=9", "knee", "auto", "fp32", "asha", "none", "tpe"]
FIELDS = [field for field in Config.model_fields if field not in ("dataset", "data_dir")]
COMMANDS = [name for name in commands.COMMANDS if name not in ("run", "refine")]
FLAGS = ["--json", "--model", "--format", "--out", "--dataset", "--data-dir", "--storage-path"]
FLAGS += ["--timeout", "--tracking-uri", "--seed", "--help", "-h", "--help-all", "--nothing"]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 30),
    st.sampled_from([10**n for n in range(2, 14)]),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    st.sampled_from(JUNK),
    st.dates(),
)
structures = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(scalars, inner, max_size=4),
    max_leaves=8,
)
spaces = st.dictionaries(
    st.sampled_from([*BASE["space"], "weight_decay", "batch_norm", "max_params", "max_flops", "x"]),
    structures
    | st.lists(st.integers(1, 8), min_size=1, max_size=3)
    | st.lists(st.floats(0.01, 1), min_size=2, max_size=2)
    | st.integers(1, 8)
    | st.sampled_from([10**n for n in range(2, 14)]),
    max_size=4,
).map(lambda changes: BASE["space"] | changes)
words = st.sampled_from(JUNK) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12
)
words |= st.integers(-3, 40).map(str) | structures.map(
    lambda x: json.dumps(x, default=str, skipkeys=True)
)
words |= st.integers(1, 9).map(str) | st.sampled_from(["0.5", "0.1", "true", "false", "null"])
fields = st.dictionaries(st.sampled_from(FIELDS), words, max_size=2)


def fuzzed(strategy: Any, name: str, few: int) -> Any:
    """A test of so many examples, or of as many as are asked for."""
    many = settings(
        max_examples=EXAMPLES or few,
        deadline=None,
        database=None,
        derandomize=not EXAMPLES,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    return lambda function: many(seed(SEED)(given(**{name: strategy})(function)))


@pytest.fixture(scope="module", autouse=True)
def _bounded() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MOST_MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def codes() -> Iterator[Counter[str]]:
    """How often what came out; shown at the end of a run of many."""
    counter: Counter[str] = Counter()
    yield counter
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"\n{dict(counter)}; peak {peak} MiB")


@contextmanager
def surroundings(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith(("VGG_SEARCH_", "MLFLOW_")):
            del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def answer(
    argv: list[str], variables: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code and stderr of a command that leaves its folder as it was."""
    files = sorted(Path().rglob("*"))
    capfd.readouterr()
    with surroundings(variables):
        try:
            code = commands.main(argv)
        except SystemExit as end:  # after a help
            code = int(end.code or 0)
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert sorted(Path().rglob("*")) == files
    return code, err


def exit_code(
    argv: list[str], variables: dict[str, str], capfd: pytest.CaptureFixture[str], file: str = ""
) -> int:
    """0, or 2 with one line on stderr. `file`: of an experiment, for what a failure says."""
    code, err = answer(argv, variables, capfd)
    if not code:
        return 0
    said = f"{argv} {variables} {file} -> {code}: {err}"
    assert code == 2, said
    lines = [line for line in err.splitlines() if "BUNDLED SAMPLE" not in line]
    assert len(lines) == 1, said
    assert all(line.startswith("vgg-search: ") and len(line) < 2000 for line in lines), said
    assert "(--debug tells more)" not in err, said
    return code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


experiments = st.fixed_dictionaries(
    {
        "flags": fields,
        "variables": fields,
        "file": st.dictionaries(st.sampled_from([*FIELDS, *JUNK[:4]]), structures, max_size=1),
        "space": st.none() | spaces,
        "damage": st.one_of(
            *[st.none()] * 4, st.tuples(st.integers(0, 400), st.binary(max_size=3))
        ),
        "resume": st.one_of(*[st.none()] * 9, words),
    }
)


@fuzzed(experiments, "example", few=60)
def test_no_experiment_ends_in_an_error_of_another_kind(
    example: dict[str, Any],
    folder: Path,
    codes: Counter[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    file = BASE | example["file"]
    file |= {"space": example["space"]} if example["space"] else {}
    text = yaml.dump(file, allow_unicode=True).encode("utf-8", "surrogatepass")
    if example["damage"]:
        at, content = example["damage"]
        text = text[:at] + content + text[at + len(content) :]
    Path("experiment.yaml").write_bytes(text)
    argv = ["run", "--dry-run", "--config", "experiment.yaml"]
    argv += [f"--{name.replace('_', '-')}={value}" for name, value in example["flags"].items()]
    argv += [] if example["resume"] is None else ["--resume", example["resume"]]
    variables = {f"VGG_SEARCH_{n.upper()}": x for n, x in example["variables"].items()}
    began = time.monotonic()
    code = exit_code(argv, variables, capfd, repr(text))
    codes[f"dry run, exit {code}"] += 1
    codes["slowest, s"] = max(codes["slowest, s"], round(time.monotonic() - began))


lines = st.lists(st.sampled_from(FLAGS) | words, max_size=5)


@fuzzed(st.tuples(st.sampled_from(COMMANDS), lines, fields), "example", few=100)
def test_no_line_of_another_command_does(
    example: tuple[str, list[str], dict[str, str]],
    folder: Path,
    codes: Counter[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    command, line, values = example
    variables = {f"VGG_SEARCH_{name.upper()}": text for name, text in values.items()}
    codes[f"command, exit {exit_code([command, *line], variables, capfd)}"] += 1


# Images


def encoded(kind: str, mode: str, **options: Any) -> bytes:
    picture = Image.linear_gradient("L").resize((40, 30))
    red = Image.merge("RGB", (picture, picture.rotate(180), picture.rotate(90)))
    picture, file = red.convert(mode), BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


WHOLE = [
    encoded("PNG", "L"),
    encoded("PNG", "RGBA"),
    encoded("PNG", "P"),
    encoded("PNG", "1"),
    encoded("JPEG", "RGB"),
    encoded("JPEG", "CMYK"),
    encoded("GIF", "P"),
    encoded("GIF", "P", save_all=True, append_images=[Image.new("P", (40, 30))]),
    encoded("BMP", "RGB"),
    encoded("BMP", "P"),
    encoded("TIFF", "RGB"),
    encoded("TIFF", "L", compression="tiff_lzw"),
    encoded("TIFF", "RGB", compression="jpeg"),
    encoded("TIFF", "1", compression="group4"),
    encoded("WEBP", "RGB"),
    encoded("WEBP", "RGBA", lossless=True),
]


# Sizes and counts, as heads have them
NUMBERS = [n.to_bytes(4, order) for n in (0, 1, 9000, 60000, 2**31) for order in ("little", "big")]
NUMBERS += [number[:2] for number in NUMBERS] + [number[2:] for number in NUMBERS] + [b"\xff" * 4]


@st.composite
def mutated(draw: Any) -> bytes:
    """An image with some bytes changed, most of them in its head, cut, or with parts repeated."""
    content = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(0, 3))):
        size = len(content)
        at = draw(st.integers(0, min(size, 80)) | st.integers(0, size))
        action = draw(st.sampled_from(["set", "set", "set", "insert", "remove", "repeat"]))
        if action == "set":
            part = draw(st.binary(min_size=1, max_size=4) | st.sampled_from(NUMBERS))
            content[at : at + len(part)] = part
        elif action == "insert":
            content[at:at] = draw(st.binary(max_size=20))
        elif action == "remove":
            del content[at : at + draw(st.integers(0, 40))]
        else:
            content[at:at] = content[at : at + draw(st.integers(0, 200))]
    is_cut = draw(st.integers(0, 5)) == 0
    return bytes(content[: draw(st.integers(0, len(content)))] if is_cut else content)


@pytest.fixture(scope="module")
def models(folder: Path) -> list[str]:
    """Champions of clothes and of photos, whose images are prepared in two ways."""
    torch.manual_seed(0)
    head = {"hidden_features": 16, "num_hidden": 1, "num_classes": 3, "in_channels": 3}
    info = DatasetInfo("photos", ("a", "b", "c"), (0.5, 0.4, 0.3), (0.2, 0.2, 0.3), side=32)
    save_model(folder / "photos", VGG(((1, 4), (1, 8)), resolution=32, **head), info, {})  # type: ignore[arg-type]
    return [str(save_champion(folder / "clothes")), str(folder / "photos")]


@fuzzed(st.lists(mutated(), min_size=1, max_size=PICTURES), "contents", few=25)
def test_no_image_file_does(
    contents: list[bytes],
    folder: Path,
    models: list[str],
    codes: Counter[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line for each that cannot be read; the others are answered."""
    monkeypatch.chdir(folder)
    names = [f"{i}.image" for i in range(len(contents))]
    for i in range(PICTURES):
        Path(f"{i}.image").write_bytes(contents[i] if i < len(contents) else b"")
    for model in models:
        began = time.monotonic()
        code, err = answer(["predict", *names, "--model", model], {}, capfd)
        lines, said = err.splitlines(), f"{[x.hex() for x in contents]} -> {code}: {err}"
        assert code == (len(lines) > 0), said
        assert all(re.match(r"vgg-search: \d\.image (cannot|must) ", line) for line in lines), said
        assert all(len(line) < 300 for line in lines), said
        codes["images answered"] += len(contents) - len(lines)
        codes["images refused"] += len(lines)
        seconds = round(time.monotonic() - began, 1)
        codes["slowest images, s"] = max(codes["slowest images, s"], seconds)


def test_a_damaged_tiff_is_one_line(
    folder: Path,
    models: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    content = bytearray(encoded("TIFF", "L", compression="tiff_lzw"))
    content[20:60] = bytes(40)  # of its strip
    Path("0.image").write_bytes(content)
    with pytest.raises(ImageError):
        read_square("0.image", 28, 1)
    assert capfd.readouterr().err, "libtiff's own words"
    code, err = answer(["predict", "0.image", "--model", models[0]], {}, capfd)
    assert (code, err) == (1, "vgg-search: 0.image cannot be read: decoder error -2\n")
