"""What made the numbers: versions, commit and host."""

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from vgg_search.machine import cores

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "numpy")


def provenance() -> dict[str, Any]:
    """versions (by package), commit of this code (None unless it is a checkout) and host."""
    import torch

    command, here = "git describe --always --dirty --abbrev=12".split(), Path(__file__).parent
    commit = ""
    if (here.parent / ".git").exists() and shutil.which("git"):
        answer = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
        commit = answer.stdout.strip()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "commit": commit or None,
        "host": f"{platform.system()} {platform.machine()}, {cores()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
    }
