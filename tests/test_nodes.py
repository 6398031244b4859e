"""Real nodes on this machine: joined, looked at, lost, and gone on without."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nodes import LocalNodes
from optuna.trial import FrozenTrial

import vgg_search
from vgg_search.journal import read_trials, rows_of

pytestmark = pytest.mark.slow
pytest.importorskip("aiohttp_cors", reason="a cluster needs the extra 'cluster'")

PACKAGE = Path(vgg_search.__file__).parent
RAY = str(Path(sys.executable).parent / "ray")
# Epochs long enough for both nodes to have a trial: a worker takes seconds to start
SMALL = {
    "dataset": "sample",
    "val_images": 500,
    "num_trials": 5,
    "max_epochs": 2,
    "champion_epochs": 1,
    "top_k": 2,
    "time_budget": "null",
    "precision": "fp32",
}
SPACE = {"num_blocks": 2, "num_convs": 1, "out_channels": [32, 48], "hidden_features": 64}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head without cores, and two nodes of one core."""
    with LocalNodes(tmp_path_factory.mktemp("nodes")) as on:
        for number in range(3):
            on.start(num_cpus=min(number, 1))
        yield on


def flags(**fields: Any) -> list[str]:
    given = SMALL | {"space": json.dumps(SPACE)} | fields
    return [text for k, v in given.items() for text in (f"--{k.replace('_', '-')}", str(v))]


def start(folder: Path, nodes: Any, *argv: str, **environment: str) -> subprocess.Popen[str]:
    """A driver in `folder`; its output goes to files there."""
    command = [sys.executable, "-m", "vgg_search.run", "--quiet", *argv]
    # Where the package is does not follow from where the driver runs
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    given = os.environ | nodes.environment | {"PYTHONPATH": path} | environment
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        return subprocess.Popen(command, cwd=folder, env=given, stdout=out, stderr=err, text=True)


def finish(driver: subprocess.Popen[str], folder: Path) -> tuple[int, str]:
    """Exit code and what was said on stderr, but for the sample's line."""
    try:
        code = driver.wait(200)
    finally:
        driver.kill()
    said = (folder / "err").read_text().splitlines()
    return code, "\n".join(line for line in said if "BUNDLED SAMPLE" not in line)


def placed(trials: list[FrozenTrial]) -> dict[str, list[int]]:
    """Numbers of the trials of each worker."""
    found: dict[str, list[int]] = {}
    for trial in trials:
        for row in rows_of(trial):
            numbers = found.setdefault(row["worker"], [])
            if trial.number not in numbers:
                numbers.append(trial.number)
    return found


def test_a_driver_elsewhere_takes_its_package_along(nodes: Any, tmp_path: Path) -> None:
    """The nodes have no such package: this one differs from what is installed."""
    there = tmp_path / "elsewhere"
    shutil.copytree(PACKAGE, there / "vgg_search", ignore=shutil.ignore_patterns("__pycache__"))
    with (there / "vgg_search" / "config.py").open("a") as file:
        file.write("# another version\n")
    paths = os.pathsep.join([str(there), os.environ.get("PYTHONPATH", "")])
    driver = start(
        tmp_path,
        nodes,
        *flags(name="a", address=nodes.address),
        PYTHONPATH=paths,
        RAY_ADDRESS="127.0.0.9:1",  # the flag goes first
    )
    code, said = finish(driver, tmp_path)
    assert (code, said) == (0, "")
    summary = json.loads((tmp_path / "runs" / "a" / "summary.json").read_text())
    assert summary["champion"]["test_accuracy"] > 0.3
    trials = read_trials(tmp_path / "runs" / "a")
    assert len(placed(trials)) == 2, placed(trials)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"a"}  # no probe is left
    assert not list((tmp_path / "runs" / "a" / "trials").glob("champion*"))


def test_a_job_is_submitted(nodes: Any, tmp_path: Path) -> None:
    run = ["python", "-m", "vgg_search.run", "--quiet", *flags(name="b", num_trials=2)]
    command = [RAY, "job", "submit", "--working-dir", ".", "--", *run]
    command += ["--storage-path", str(tmp_path), "--tracking-uri", f"sqlite:///{tmp_path}/m.db"]
    done = subprocess.run(
        command,
        cwd=PACKAGE.parent,
        env=os.environ | nodes.environment | {"RAY_ADDRESS": nodes.dashboard},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["state"] == "completed"


def test_an_unsound_node_is_named_and_left_out_if_asked(nodes: Any, tmp_path: Path) -> None:
    """The third node has another torch, by what its packages say, and looks at another disk."""
    shim = tmp_path / "shim" / "torch-1.2.3.dist-info"
    shim.mkdir(parents=True)
    (shim / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.2.3\n")
    paths = os.pathsep.join([str(shim.parent), os.environ.get("PYTHONPATH", "")])
    bad = nodes.start(PYTHONPATH=paths)
    try:
        code, said = finish(start(tmp_path, nodes, *flags(name="c")), tmp_path)
        assert code == 2
        first, last = said.splitlines()
        assert first.startswith(f"vgg-search: node {bad}: torch 1.2.3, the driver has ")
        assert last == (
            "vgg-search: 1 of 4 nodes cannot take part; --skip-bad-nodes true starts on the other 3"
        )
        assert not (tmp_path / "runs").exists()
        skipping = flags(name="c", skip_bad_nodes="true", num_trials=3)
        code, said = finish(start(tmp_path, nodes, *skipping), tmp_path)
        assert (code, said) == (0, first)
        assert len(placed(read_trials(tmp_path / "runs" / "c"))) <= 2
    finally:
        nodes.end(bad)
