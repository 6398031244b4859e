"""Studies of an experiment of many: each run as a user would, and never twice."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def summary_of(
    folder: Path, name: str, flags: Sequence[str], num_trials: int = 0
) -> dict[str, Any]:
    """The summary of the study of that name in `folder`, which is run, or gone on with, unless it
    has a champion and so many trials. What it prints is added to NAME.log."""
    file = folder / "runs" / name / "summary.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    if not found.get("champion") or found["num_trials"] < num_trials:
        command = [sys.executable, "-m", "vgg_search.run", "--quiet", *flags]
        command += ["--resume", name] if file.parent.exists() else ["--name", name]
        with (folder / f"{name}.log").open("a") as log:
            subprocess.run(command, cwd=folder, stdout=log, stderr=log, check=True)
        found = json.loads(file.read_text())
    return found


def half_width(values: np.ndarray) -> float:
    """Half of the 95 % interval of the mean (Student's t)."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
