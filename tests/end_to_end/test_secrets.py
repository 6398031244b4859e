"""What is secret in addresses and in the environment is nowhere to be read, and nobody elsewhere is
listened to: a search with champion, then the other commands, on a real server."""

import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import STUDY_UMASK, MlflowServer

PASSWORD, KEY, TOKEN = "hush-a1b2c3", "hush-d4e5f6", "hush-" + 32 * "7"
LOOPBACK = {  # as /proc/net has 127.0.0.1, the same in IPv6, and ::1
    "0100007F",
    "0000000000000000FFFF00000100007F",
    "00000000000000000000000001000000",
}
SEARCH = (
    "run --name study --dataset sample --num-trials 2 --max-epochs 1 --train-images 300 "
    "--val-images 100 --champion-epochs 1 --time-budget null"
)
COMMANDS = (SEARCH, "status study", "report study", "sync study", "evaluate", "run --dry-run")
BAD = ("sync study --storage-path hush:x", "evaluate --model models:/none@champion")


def sockets(process: Path) -> set[str]:
    return {
        os.readlink(file)[len("socket:[") : -1]
        for file in (process / "fd").iterdir()
        if os.readlink(file).startswith("socket:[")
    }


def listening() -> dict[str, str]:
    """Hexadecimal addresses at which this machine takes connections, by their sockets."""
    lines = [
        line.split()
        for file in map(Path, ("/proc/net/tcp", "/proc/net/tcp6"))
        if file.exists()
        for line in file.read_text().splitlines()[1:]
    ]
    return {line[9]: line[1].partition(":")[0] for line in lines if line[3] == "0A"}


@contextmanager
def watched(mark: str) -> Iterator[tuple[set[bytes], set[str]]]:
    """All that `ps` would show meanwhile, and where processes with `mark` in their environment
    listen."""
    seen: set[bytes] = set()
    addresses: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            there = listening()
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    seen.add((process / "cmdline").read_bytes())
                    if mark.encode() in (process / "environ").read_bytes():
                        addresses.update(there[n] for n in sockets(process) & there.keys())
                except OSError:
                    continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen, addresses
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
def test_no_secret_is_shown_or_kept(tmp_path: Path, mlflow_server: MlflowServer) -> None:
    mlflow_server.start()
    address = mlflow_server.uri.replace("://", f"://me:{PASSWORD}@")
    folder = tmp_path / "here"
    folder.mkdir()
    with tempfile.TemporaryDirectory(prefix="v") as short, watched(short) as (seen, ours):
        variables = {"MLFLOW_TRACKING_URI": address, "AWS_SECRET_ACCESS_KEY": KEY}
        variables |= {"RAY_TMPDIR": short, "TMPDIR": short, "RAY_AUTH_TOKEN": TOKEN}
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
        secrets = [secret.encode() for secret in (PASSWORD, KEY, TOKEN)]
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
    assert ours, "Ray's"
    assert ours <= LOOPBACK


@pytest.mark.slow
def test_files_have_what_the_users_umask_leaves(study: Path) -> None:
    """Run folder, database and artifacts: no wider, and a group that is let in can read them."""
    modes = {str(path.relative_to(study)): path.stat().st_mode for path in study.rglob("*")}
    usual = {stat.S_IFREG | 0o666 & ~STUDY_UMASK, stat.S_IFDIR | 0o777 & ~STUDY_UMASK}
    assert {path: oct(mode) for path, mode in modes.items() if mode not in usual} == {}
    assert {"mlflow.db", "mlruns", "runs"} <= modes.keys()
