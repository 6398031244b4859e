"""`--json` of every command has at least the keys that it had at commit d1e9672 (`json_keys.json`).

Keys of states in `trials` of `status` are left out there: it names those states that occur.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

KEYS = json.loads((Path(__file__).parent / "json_keys.json").read_text())
TINY = (
    "--dataset sample --train-images 1500 --val-images 500 --num-trials 4 --max-epochs 3 "
    "--champion-epochs 1"
)
COMMANDS = {  # in this order: the first makes what the others speak of
    "run": f"run --name a {TINY} --quiet",
    "predict": "predict square.png",
    "evaluate": "evaluate",
    "export": "export --format safetensors --out network.safetensors",
    "report": "report a",
    "status": "status a",
    "sync": "sync a",
    "refine": "refine --champion-epochs 1",
    "dry-run": f"run --dry-run {TINY}",
}


def keys(value: Any, prefix: str = "") -> set[str]:
    """Keys of a JSON value: `a.b` of an object in an object, `a[].b` of objects in a list."""
    if isinstance(value, list):
        return {key for item in value for key in keys(item, f"{prefix}[]")}
    if not isinstance(value, dict):
        return set()
    names = {f"{prefix}.{name}".lstrip("."): item for name, item in value.items()}
    return names.keys() | {key for name, item in names.items() for key in keys(item, name)}


@pytest.mark.slow
def test_no_key_of_any_commands_json_is_gone(tmp_path: Path) -> None:
    image = np.zeros((28, 28), np.uint8)
    image[7:21, 7:21] = 200
    Image.fromarray(image).save(tmp_path / "square.png")
    others = ("VGG_SEARCH_", "MLFLOW_", "RAY_ADDRESS")  # what could name other data or trackers
    env = {name: text for name, text in os.environ.items() if not name.startswith(others)}
    assert list(COMMANDS) == list(KEYS)
    for name, words in COMMANDS.items():
        command = [sys.executable, "-m", "vgg_search", *words.split(), "--json"]
        ended = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )
        assert ended.returncode == 0, ended.stderr
        line = ended.stdout.splitlines()[-1]
        assert set(KEYS[name]) - keys(json.loads(line)) == set(), name
