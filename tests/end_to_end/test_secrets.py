"""What is secret in addresses and in the environment is nowhere to be read: a search with champion,
then the other commands, on a real server."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import MlflowServer

PASSWORD, KEY = "hush-a1b2c3", "hush-d4e5f6"
SEARCH = (
    "run --name study --dataset sample --num-trials 2 --max-epochs 1 --train-images 300 "
    "--val-images 100 --champion-epochs 1 --time-budget null"
)
COMMANDS = (SEARCH, "status study", "report study", "sync study", "evaluate", "run --dry-run")
BAD = ("sync study --storage-path hush:x", "evaluate --model models:/none@champion")


@contextmanager
def command_lines() -> Iterator[set[bytes]]:
    """All that `ps` would show meanwhile."""
    seen: set[bytes] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes())
                except OSError:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
def test_no_secret_is_shown_or_kept(tmp_path: Path, mlflow_server: MlflowServer) -> None:
    mlflow_server.start()
    address = mlflow_server.uri.replace("://", f"://me:{PASSWORD}@")
    folder = tmp_path / "here"
    folder.mkdir()
    with tempfile.TemporaryDirectory(prefix="v") as short, command_lines() as seen:
        variables = {"MLFLOW_TRACKING_URI": address, "AWS_SECRET_ACCESS_KEY": KEY}
        variables |= {"RAY_TMPDIR": short, "TMPDIR": short}
        texts = []
        for command in (*COMMANDS, *BAD):
            done = subprocess.run(
                [sys.executable, "-m", "vgg_search", *command.split()],
                cwd=folder,
                env=os.environ | variables,
                capture_output=True,
                check=False,
            )
            assert (done.returncode == 0) == (command in COMMANDS), done.stderr.decode()
            texts += [done.stdout, done.stderr]
        places = [path for root in (tmp_path, Path(short)) for path in root.rglob("*")]
        secrets = [secret.encode() for secret in (PASSWORD, KEY)]
        files = [path for path in places if path.is_file()]
        # What Tune hands to workers of the environment, AWS_*, Ray writes into its own log
        leaks = [
            str(path)
            for path in files
            for secret in secrets
            if secret in path.read_bytes()
            and (path.name, secret) != ("runtime_env_agent.log", KEY.encode())
        ]
    assert len(files) > 30  # those of Ray and the server too
    assert leaks == []
    seen = {line for line in seen if b"setup_worker.py" not in line or secrets[0] in line}  # too
    shown = [text for text in (*texts, *seen) if any(secret in text for secret in secrets)]
    assert shown == []
    assert any(b"vgg_search" in line for line in seen)
