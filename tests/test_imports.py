"""Who may import what, and that importing does nothing."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vgg_search

PACKAGE = Path(vgg_search.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
PURE = (
    "config search_space arch data images model train augment device scheduler"
).split()  # fmt: skip
TORCHLESS = "config storage mirror search_space arch data scheduler __main__ run".split()


def imported(module: str) -> set[str]:
    """Top-level names that a module's source imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found.add(str(node.module).partition(".")[0])
    return found


def loaded(modules: list[str], cwd: Path) -> dict[str, list[str]]:
    """What a fresh interpreter has loaded, and its threads and children, after each import."""
    script = (
        "import importlib, json, sys, threading\n"
        "heavy = ('torch', 'ray', 'optuna', 'mlflow')\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module('vgg_search' + ('.' + name if name != '__init__' else ''))\n"
        "print(json.dumps({'heavy': [h for h in heavy if h in sys.modules],\n"
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


def test_pure_modules_load_neither_ray_nor_optuna_nor_mlflow(tmp_path: Path) -> None:
    assert loaded(PURE, tmp_path)["heavy"] == ["torch"]


def test_the_command_line_and_its_errors_load_nothing_heavy(tmp_path: Path) -> None:
    assert loaded(TORCHLESS, tmp_path)["heavy"] == []


def test_importing_writes_nothing_and_starts_nothing(tmp_path: Path) -> None:
    found = loaded(MODULES, tmp_path)
    assert found["threads"] == ["MainThread"]
    assert "mlflow" not in found["heavy"], "it takes seconds"
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("library", "modules"),
    [
        ("mlflow", {"tracking", "registry"}),
        ("ray", {"connection", "cluster", "distributed", "search", "trial", "champion"}),
    ],
)
def test_a_library_stays_in_its_modules(library: str, modules: set[str]) -> None:
    assert {module for module in MODULES if library in imported(module)} <= modules


def test_imports_go_one_way() -> None:
    """No module imports, at its top, one that imports it."""
    wants: dict[str, set[str]] = {}
    for module in MODULES:
        tree = ast.parse((PACKAGE / f"{module}.py").read_text())
        names = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
        wants[module] = {str(n).partition(".")[2] for n in names if str(n).startswith("vgg_search")}
    settled: set[str] = set()
    while ready := {
        m for m, needs in wants.items() if m not in settled and needs - {""} <= settled
    }:
        settled |= ready
    assert settled == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_fits_in_one_sitting(module: str) -> None:
    assert len((PACKAGE / f"{module}.py").read_text().splitlines()) <= 300


def test_no_module_is_a_drawer() -> None:
    assert not {"utils", "common", "helpers", "misc"} & set(MODULES)
