"""Many files, decoded by processes: wherever a search is started from, and however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vgg_search.data import decoders, folder, own_images
from vgg_search.data.decoders import Decoders
from vgg_search.data.source import DataError, Reading
from vgg_search.data.splits import load_splits

RNG = np.random.default_rng(0)
EACH = 120  # files of a class, so that more than one process has work
LOAD = "from vgg_search.data.splits import load_splits; splits = load_splits({path!r})"
LOAD += "; print(splits.digest, len(splits.whole()[1]))"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(own_images, "_announced", set())
    return tmp_path / "cache" / "vgg_search" / "images"


def dots(root: Path, each: int = EACH, side: int = 9) -> Path:
    """Two classes of grey images."""
    for name in "ab":
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = RNG.integers(0, 256, (side, side), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:05}.png")
    return root


def load(root: Path, **reading: Any) -> Any:
    return load_splits(str(root), reading=Reading(**reading))


def children(number: int) -> list[int]:
    """Processes that a process has started."""
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(number)], capture_output=True)
    return list(map(int, done.stdout.split()))


def await_true(condition: Any) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("not within a minute")


def test_processes_and_this_one_read_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = dots(tmp_path / "dots")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    by_processes = load(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(decoders, "FEW", 10**6)
    by_this = load(root)
    assert by_this.digest == by_processes.digest
    assert by_this.train_images.shape == (167, 1, 9, 9)


def test_a_wrong_guess_of_size_and_channels_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = dots(tmp_path / "dots")
    for i in range(1, EACH):
        Image.new("L", (12, 12), i).save(root / "a" / f"{i:05}.png")
        Image.new("L", (12, 12), 128 + i).save(root / "b" / f"{i:05}.png")
    Image.new("RGB", (12, 12), "red").save(root / "b" / "00050.png")
    monkeypatch.setattr(folder, "SAMPLE", 1)
    assert load(root).train_images.shape[1:] == (3, 12, 12)


def test_the_first_broken_file_is_named_or_all_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = dots(tmp_path / "dots")
    for i in (7, 50, 110):
        (root / "b" / f"{i:05}.png").write_bytes(b"broken")
    Image.new("1", (20_000, 20_000)).save(root / "b" / "00111.png")
    with pytest.raises(DataError, match=rf"^{root}/b/00007.png must be a PNG, .*--skip-broken"):
        load(root)
    splits = load(root, skip_broken=True)
    assert any("and 3 more; they are left out" in text for text in caplog.messages)
    assert len(splits.train_labels) + len(splits.val_labels) == 236 - 236 // 6


def test_a_name_that_is_no_text_is_read(tmp_path: Path) -> None:
    root = dots(tmp_path / "dots")
    before = load(root).digest
    (root / "a" / "00000.png").rename(os.fsdecode(bytes(root / "a") + b"/\xff\n.png"))
    assert load(root).digest == before


DAEMON = """
import multiprocessing
def work():
    {load}
if __name__ == "__main__":
    process = multiprocessing.get_context({method!r}).Process(target=work, daemon=True)
    process.start()
    process.join()
"""
THREAD = """
import threading
def work():
    {load}
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
SCRIPTS = {
    "a script without a guard": ("{load}", ""),
    "a forked daemon": (DAEMON, "fork"),
    "a spawned daemon": (DAEMON, "spawn"),
    "a thread": (THREAD, ""),
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_any_program_can_read_many_files(kind: str, tmp_path: Path) -> None:
    root = dots(tmp_path / "dots")
    text, method = SCRIPTS[kind]
    script = text.format(load=LOAD.format(path=str(root)), method=method)
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True)
    assert done.stdout.split() == [load(root).digest.encode(), b"200"], done.stderr


def test_a_program_without_a_file_can_too(tmp_path: Path) -> None:
    """As a notebook's, whose __main__ has no file."""
    root = dots(tmp_path / "dots")
    text = LOAD.format(path=str(root)).encode()
    done = subprocess.run([sys.executable, "-"], input=text, cwd=tmp_path, capture_output=True)
    assert done.stdout.split() == [load(root).digest.encode(), b"200"], done.stderr


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that take seconds."""
    root = tmp_path_factory.mktemp("many")
    noise = RNG.integers(0, 256, (500, 500, 3), dtype=np.uint8)
    for name in "ab":
        (root / name).mkdir()
        for i in range(250):
            image = Image.fromarray(np.roll(noise, 2 * i + (name == "b"), axis=1))
            image.save(root / name / f"{i}.jpg", quality=95, progressive=True)
    return root


def start(root: Path) -> subprocess.Popen[bytes]:
    """A process that reads it, and whose own processes have begun."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", LOAD.format(path=str(root))]
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    await_true(lambda: len(children(process.pid)) or process.poll() is not None)
    return process


def test_ctrl_c_leaves_no_process_and_no_half_entry(many: Path, own_cache: Path) -> None:
    process = start(many)
    own = children(process.pid)
    assert own
    os.killpg(process.pid, signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert text.rstrip().endswith(b"KeyboardInterrupt")
    assert not [number for number in own if Path("/proc", str(number)).exists()]
    assert [path.suffix for path in own_cache.iterdir()] == [".lock"]


def test_what_a_killed_process_leaves_goes_away(many: Path, own_cache: Path) -> None:
    process = start(many)
    own = children(process.pid)
    await_true(lambda: list(own_cache.glob("*.part/*")))
    process.kill()
    process.communicate()
    await_true(lambda: not [number for number in own if Path("/proc", str(number)).exists()])
    assert list(own_cache.glob("*.part"))
    load(many)
    assert not list(own_cache.glob("*.part"))


def test_a_process_that_ends_is_an_error_that_names_its_files(tmp_path: Path) -> None:
    files = [(str(tmp_path / f"{i}.png"), 1, 1) for i in range(800)]
    with Decoders(len(files)) as some:
        for process in some.processes:
            process.kill()
        with pytest.raises(DataError, match=r"0\.png and the \d+ files after it cannot be decoded"):
            list(some.decode(files))
    assert all(process.returncode is not None for process in some.processes)


def test_two_processes_make_one_entry(many: Path, own_cache: Path) -> None:
    pair = [start(many) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    (entry,) = (path for path in own_cache.iterdir() if path.is_dir())
    card = json.loads((entry / "card.json").read_text())
    assert card["train_images"] == int(answers[0][0].split()[1])
