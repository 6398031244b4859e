"""What each room loads, and that importing does nothing.

Loaded, not named: a room is imported, all of it and whatever its functions import at their top, in
a fresh process, and what stands in `sys.modules` afterwards is looked at.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from champions import save_champion

import vgg_search

PACKAGE = Path(vgg_search.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "ray", "optuna", "mlflow", "plotly", "rich", "pandas", "scipy")
# Room -> the heavy libraries that importing every module of it loads
LOADS: dict[str, set[str]] = {
    "errors": set(),
    "records": set(),
    "machine": set(),
    "objectives": set(),
    "provenance": set(),
    "stop": set(),
    "space": set(),
    "storage": set(),
    "config": set(),
    "data": set(),
    "training": {"torch"},
    "study": {"optuna"},
    "models": {"torch"},
    "finding": {"torch"},
    "champions": {"optuna", "rich"},
    "engine": {"torch", "ray", "optuna", "pandas", "rich"},  # Ray Tune loads the last two
    "tracking": {"optuna"},  # MLflow takes seconds, and is imported by the sender's thread
    "report": {"optuna", "plotly"},
    "terminal": {"optuna", "rich"},
    "cli": set(),
    "run": set(),
    "__main__": set(),
}


def name_of(file: Path) -> str:
    """The module's dotted name."""
    parts = ["vgg_search", *file.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules_of(room: str) -> list[str]:
    place = PACKAGE / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return [name_of(file) for file in files]


def loaded(modules: list[str], cwd: Path) -> dict[str, list[str]]:
    """What a fresh interpreter has loaded, and its threads, after importing each."""
    script = (
        "import importlib, json, sys, threading\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "print(json.dumps({'modules': [name for name in sys.modules if '.' not in name],\n"
        "    'threads': [t.name for t in threading.enumerate()]}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *modules],
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
        env=os.environ | {"HOME": str(cwd), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.stderr == ""
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("room", LOADS)
def test_a_room_loads_what_its_level_may(room: str, tmp_path: Path) -> None:
    found = loaded(modules_of(room), tmp_path)
    assert set(found["modules"]) & set(HEAVY) == LOADS[room]
    assert found["threads"] == ["MainThread"]
    assert list(tmp_path.rglob("*")) == [], "importing writes nothing"


def test_every_room_is_in_the_table() -> None:
    rooms = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES}
    at_the_top = {"__init__", "session", "refine", "dry_run", "api"}
    assert rooms - at_the_top == set(LOADS)


def test_the_package_loads_nothing(tmp_path: Path) -> None:
    assert not set(loaded(["vgg_search"], tmp_path)["modules"]) & {*HEAVY, "pydantic", "numpy"}


def test_a_loaded_network_brings_torch_and_no_part_of_the_search(tmp_path: Path) -> None:
    """What somebody pays who only wants to classify images."""
    folder = save_champion(tmp_path / "champion")
    script = (
        "import sys, vgg_search\n"
        "network = vgg_search.load(sys.argv[1])\n"
        "import torch\n"
        "assert network(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)).shape == (1, 10)\n"
        "print(*sorted(name for name in sys.modules if '.' not in name))\n"
    )
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert set(done.stdout.split()) & {*HEAVY, "pydantic"} == {"torch"}


# Level -> rooms; a room imports from rooms of a lower level, and from itself
LEVELS = (
    ("errors", "records", "machine"),
    ("provenance", "stop", "objectives", "space", "storage"),
    ("config",),
    ("data", "study"),
    ("training",),
    ("models",),
    ("engine", "tracking", "report", "terminal"),
    ("finding", "champions"),
    ("session", "refine", "dry_run"),
    ("cli",),
    ("run", "__main__", "api"),
)


def wanted(file: Path) -> set[str]:
    """Modules of this package that a file imports anywhere, also inside functions, but for those
    that only a type checker reads."""
    tree = ast.parse(file.read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            files = {name_of(file) for file in FILES}
            found |= {name if name in files else str(node.module) for name in names}
    return {name for name in found if name.startswith("vgg_search.")}


def test_rooms_import_from_below() -> None:
    level = {room: i for i, rooms in enumerate(LEVELS) for room in rooms}
    wrong = []
    for file in FILES:
        own = name_of(file).split(".")[1:2]
        for name in wanted(file) if own else ():
            other = name.split(".")[1]
            if other != own[0] and level[other] >= level[own[0]]:
                wrong.append(f"{name_of(file)} imports {name}")
    assert wrong == []


def test_no_module_imports_one_that_imports_it() -> None:
    wants = {name_of(file): wanted(file) & {name_of(f) for f in FILES} for file in FILES}
    settled: set[str] = set()
    while ready := {m for m, needs in wants.items() if m not in settled and needs <= settled | {m}}:
        settled |= ready
    assert set(wants) - settled == set()


@pytest.mark.parametrize(
    ("library", "room"), [("mlflow", "tracking"), ("ray", "engine"), ("plotly", "report")]
)
def test_a_library_is_named_in_its_room_alone(library: str, room: str) -> None:
    def names(file: Path) -> set[str]:
        nodes = list(ast.walk(ast.parse(file.read_text())))
        found = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
        found |= {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)}
        return {name.partition(".")[0] for name in found}

    users = {file.relative_to(PACKAGE).parts[0] for file in FILES if library in names(file)}
    assert users == {room}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_is_one_idea(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 400
    assert file.stem not in {"utils", "common", "helpers", "misc"}


# Functions that are longer than a screen, and why
LONG: dict[str, str] = {}


def functions(file: Path) -> dict[str, int]:
    """Lines of each function and method, by name."""
    found = {}
    for owner in ast.walk(ast.parse(file.read_text())):
        name = f"{owner.name}." if isinstance(owner, ast.ClassDef) else ""
        for node in ast.iter_child_nodes(owner):
            if isinstance(node, ast.FunctionDef) and node.end_lineno:
                found[name + node.name] = node.end_lineno - node.lineno + 1
    return found


def test_a_function_fits_on_a_screen() -> None:
    lengths = {name: lines for file in FILES for name, lines in functions(file).items()}
    assert {name for name, lines in lengths.items() if lines > 40} == set(LONG)
