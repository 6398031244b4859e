"""Fixtures that more than one test file uses."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vgg_search.run import RAY_ENVIRONMENT

if TYPE_CHECKING:
    from vgg_search.data import Splits

for name, value in RAY_ENVIRONMENT.items():  # before any test imports Ray
    os.environ.setdefault(name, value)


class MlflowServer:
    """A real `mlflow server` on a SQLite database, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--port", str(self.port)]
        # Its seven job processes take 2 GB and do nothing for us.
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=os.environ | quiet,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                if time.monotonic() > until or self.process.poll() is not None:
                    raise RuntimeError((self.folder / "server.log").read_text()) from None
                time.sleep(0.2)

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)  # with its worker
            self.process.wait()
            self.process = None


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[MlflowServer]:
    folder = tmp_path / "server"
    folder.mkdir()
    server = MlflowServer(folder)
    yield server
    server.kill()


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray of our own, one for all tests: it takes seconds to start."""
    from vgg_search.cluster import ray_cluster
    from vgg_search.config import Config

    with ray_cluster(Config(address="local")):
        yield


@pytest.fixture(scope="session")
def splits() -> "Splits":
    """300 training and 100 validation images of the bundled sample."""
    from vgg_search.data import load_splits

    return load_splits("sample", val_images=100, train_images=300)
