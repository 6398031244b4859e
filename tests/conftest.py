"""Fixtures that more than one test file uses."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vgg_search.engine.environment import RAY_ENVIRONMENT

if TYPE_CHECKING:
    from vgg_search.data.splits import Splits

for name, value in RAY_ENVIRONMENT.items():  # before any test imports Ray
    os.environ.setdefault(name, value)


STUDY = "seen"
STUDY_UMASK = 0o027  # between the usual ones: a group may read, others may not
STUDY_FLAGS = {
    "num-trials": 5,
    "max-epochs": 3,
    "scheduler": "none",
    "train-images": 2000,
    "val-images": 500,
    "champion-epochs": 2,
    "top-k": 2,
    "time-budget": "null",
}


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a small search, named STUDY, ran by its command."""
    folder = tmp_path_factory.mktemp("study")
    flags = [text for name, value in STUDY_FLAGS.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "vgg_search", "run", "--name", STUDY, *flags]
    ran = subprocess.run(
        command, cwd=folder, umask=STUDY_UMASK, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's, to be copied: to make one takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@contextmanager
def serving(command: list[str], ping: str, folder: Path, **environment: str) -> Iterator[str]:
    """The address of a web server while its command runs in `folder`, from when `ping` answers."""
    port = free_port()
    with tempfile.NamedTemporaryFile() as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=folder,
            env=os.environ | environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            until, answers = time.monotonic() + 180, False
            while not answers:
                assert time.monotonic() < until, Path(log.name).read_text()
                assert server.poll() is None, Path(log.name).read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{ping}", timeout=5).close()
                    answers = True
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # with its workers
            server.wait()


def ask(url: str, **body: Any) -> dict[str, Any]:
    """The JSON that a server answers."""
    sent = urllib.request.Request(
        url, json.dumps(body).encode() if body else None, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(sent, timeout=60) as answer:
        return dict(json.load(answer))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class MlflowServer:
    """A real `mlflow server` on a database, its own SQLite file unless another is given, which
    can be killed and started again."""

    def __init__(
        self, folder: Path, store: str | None = None, artifacts: str | None = None, **env: str
    ) -> None:
        self.folder, self.port, self.environment = folder, free_port(), env
        self.artifacts = ["--artifacts-destination", artifacts] if artifacts else []
        self.uri = f"http://127.0.0.1:{self.port}"
        self.store = store or f"sqlite:///{folder / 'server.db'}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--backend-store-uri", self.store]
        command += ["--port", str(self.port), *self.artifacts]
        # Its seven job processes take 2 GB and do nothing for us.
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=os.environ | quiet | self.environment,
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


class Postgres:
    """A real PostgreSQL of the test's own, which can be stopped and started again."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.programs, self.port = folder, programs, free_port()
        # It refuses to run as root.
        self.user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        if self.user:
            shutil.chown(folder, **self.user)
        self._run("initdb", "-U", "mlflow", "-A", "trust", "--no-sync")

    def _run(self, program: str, *options: str) -> None:
        command = [self.programs / program, "-D", self.folder / "data", *options]
        subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL, **self.user)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off -k {self.folder}"
        self._run("pg_ctl", "start", "-w", "-o", options, "-l", str(self.folder / "log"))

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-m", "immediate")

    def database(self, name: str) -> str:
        """The address of a new database."""
        create = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "mlflow", name]
        subprocess.run([self.programs / "createdb", *create], check=True)
        return f"postgresql+psycopg2://mlflow:secret@127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("psycopg2")
    places = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.get_exec_path())]
    programs = next((place for place in places if (place / "initdb").exists()), None)
    if not programs:
        pytest.skip("no PostgreSQL on this machine")
    # Not under pytest's folder, which none but its owner may enter.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = Postgres(Path(folder), programs)
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray of our own, one for all tests: it takes seconds to start."""
    from vgg_search.config import Config
    from vgg_search.engine.connection import ray_cluster

    with ray_cluster(Config(address="local")):
        yield


@pytest.fixture(scope="session")
def splits() -> "Splits":
    """300 training and 100 validation images of the bundled sample."""
    from vgg_search.data.splits import load_splits

    return load_splits("sample", val_images=100, train_images=300)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder in memory where there is such a place, for tests that flush many files to the disk
    often."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if usable else None) as folder:
        yield Path(folder)
