"""The registered champion, served by MLflow's own server where our package cannot be imported."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ask, serving

import vgg_search
from vgg_search.data.splits import load_test

pytestmark = pytest.mark.slow


def test_a_request_is_answered_with_the_right_class(study: Path, tmp_path: Path) -> None:
    """As the README says: `mlflow models serve -m models:/vgg-search@champion ...`."""
    images, labels = load_test("auto")
    champion = vgg_search.load(study / "runs" / "seen")
    images = images[:200]
    expected = champion(torch.from_numpy(images.copy())).softmax(1).numpy()
    # A package of our name that cannot be imported stands before the real one.
    (tmp_path / "path" / "vgg_search").mkdir(parents=True)
    (tmp_path / "path" / "vgg_search" / "__init__.py").write_text("raise ImportError('not here')")
    environment = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{study / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONPATH": str(tmp_path / "path"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    served = "-m mlflow models serve -m models:/vgg-search@champion --env-manager local"
    with serving([sys.executable, *served.split()], "/ping", tmp_path, **environment) as url:
        answer = ask(f"{url}/invocations", inputs=images.tolist())["predictions"]
    np.testing.assert_allclose(answer, expected, atol=1e-6)
    guesses = np.argmax(answer, 1)
    assert (guesses == labels[:200]).mean() > 0.5
    assert guesses[0] == expected[0].argmax()
