"""Output that goes away: the work goes on to its end, and the exit code tells of the work."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SEARCH = (
    "--name study --dataset sample --num-trials 2 --max-epochs 1 --train-images 300 "
    "--val-images 100 --champion-epochs 1 --time-budget null --max-concurrent 1"
)
PYTHON = sys.executable
FROM_PYTHON = """
import sys, vgg_search
fields = dict(name="study", dataset="sample", num_trials=2, max_epochs=1, train_images=300,
    val_images=100, champion_epochs=1, max_concurrent=1)
print("begins", flush=True)
result = vgg_search.search(**fields)
open("result", "w").write(result.summary["state"])
"""


def shell(folder: Path, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_whole(folder: Path) -> None:
    """The search in `folder` went to its end, and its log tells of all."""
    study = folder / "runs" / "study"
    assert (study / "champion" / "model.json").exists()
    assert (study / "report.html").exists()
    log = (study / "log.txt").read_text()
    assert "Traceback" not in log
    assert all(f"trial {n} " in log for n in (0, 1))
    assert "champion, seed 0: epoch 1/1" in log


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirection", ["2>&1 | head -2", "2>/dev/full >&-", "</dev/null >&- 2>&-"]
)
def test_a_search_outlasts_its_output(tmp_path: Path, redirection: str) -> None:
    command = f"{PYTHON} -m vgg_search.run {SEARCH}"
    done = shell(tmp_path, f"{command} {redirection}; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) <= 2
    assert_whole(tmp_path)


@pytest.mark.slow
def test_a_search_outlasts_its_terminal(tmp_path: Path) -> None:
    """Under nohup with a terminal as its output, which is closed while it runs."""
    controller, terminal = os.openpty()
    driver = subprocess.Popen(
        [PYTHON, "-m", "vgg_search.run", *SEARCH.split()],
        cwd=tmp_path,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        start_new_session=True,
    )
    os.close(terminal)
    said = b""
    while b"starting Ray" not in said:
        said += os.read(controller, 1000)
    os.close(controller)
    assert driver.wait(300) == 0
    assert_whole(tmp_path)


@pytest.mark.slow
def test_a_search_from_python_outlasts_its_output(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(FROM_PYTHON)
    done = shell(tmp_path, f"{PYTHON} script.py 2>&1 | head -1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "begins\n", "")
    assert (tmp_path / "result").read_text() == "completed"
    assert_whole(tmp_path)


QUICK = ["run --help", "--help", "nothing", "run --num-trials 0", "status", "predict x.png"]


@pytest.mark.parametrize(
    "redirection", ["2>&1 | true", "2>&1 | head -1", ">&- 2>&-", "&>/dev/full"]
)
@pytest.mark.parametrize("line", QUICK)
def test_a_command_without_output_ends_with_its_own_code(
    tmp_path: Path, line: str, redirection: str
) -> None:
    command = f"{PYTHON} -m vgg_search {line}"
    code = shell(tmp_path, command).returncode
    done = shell(tmp_path, f"{command} {redirection}; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (code, "")


def test_what_is_opened_next_does_not_become_standard_output(tmp_path: Path) -> None:
    """Without a file descriptor 1 the next file would have it, and take what a library prints."""
    script = (
        "import os\n"
        "from vgg_search.machine import lasting_output\n"
        "with lasting_output(), open('record', 'w') as record:\n"
        "    print('said'); os.write(1, b'said by a library'); assert record.fileno() > 2\n"
    )
    (tmp_path / "script.py").write_text(script)
    assert shell(tmp_path, f"{PYTHON} script.py <&- >&-").returncode == 0
    assert (tmp_path / "record").read_text() == ""
