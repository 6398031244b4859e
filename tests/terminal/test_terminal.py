"""The live table in a real terminal, tmux's, narrow and wide, while trials fail, stop and go on."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("tmux"), reason="no tmux on this machine"),
]
NAME, TRIALS, PATIENCE = "shown", 12, 240  # PATIENCE in s; the machine may be busy
SHOTS = Path(__file__).parents[2] / "test-output"
ENDLESS = 2**40  # hidden features, for which no machine has the memory
EXPERIMENT = f"""
space:
  num_blocks: [1, 3]
  num_convs: [1, 2]
  out_channels: [8, 16]
  hidden_features: {{choices: [24, 32, 40, 48, {ENDLESS}]}}
  num_hidden: 1
  lr: [0.01, 0.2]
baseline: null
enqueue:
- {{arch: [[1, 8]], hidden_features: 32, lr: 0.1}}
- {{arch: [[1, 8], [1, 16]], hidden_features: {ENDLESS}, lr: 0.1}}
- {{arch: [[2, 8], [2, 16]], hidden_features: 32, lr: 0.1}}
- {{arch: [[1, 8], [2, 8]], hidden_features: 32, lr: 0.01}}
- {{arch: [[1, 16], [1, 16]], hidden_features: 32, lr: 0.01}}
num_trials: {TRIALS}
max_epochs: 9
scheduler: asha
time_budget: null
dataset: sample
train_images: 3000
val_images: 300
champion_epochs: 1
"""


class Terminal:
    """A tmux session of our own in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.socket = f"vgg-search-{os.getpid()}"
        self("new-session", "-d", "-s", "t", "-x", "80", "-y", "24", "-c", str(folder), "bash")

    def __call__(self, *command: str) -> str:
        tmux = ["tmux", "-L", self.socket, "-f", "/dev/null", *command]
        return subprocess.run(tmux, check=True, capture_output=True, text=True).stdout

    def type(self, line: str) -> None:
        self("send-keys", "-t", "t", line, "Enter")

    def widen(self, columns: int) -> None:
        self("resize-window", "-t", "t", "-x", str(columns))

    def screen(self, history: bool = False) -> str:
        return self("capture-pane", "-p", "-t", "t", *(["-S", "-"] if history else []))

    def wait(self, shows: Callable[[str], object], history: bool = False) -> str:
        until = time.monotonic() + PATIENCE
        while not shows(screen := self.screen(history)):
            assert time.monotonic() < until, screen
            time.sleep(0.05)
        return screen


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path)
    yield made
    made("kill-server")


def keep(name: str, screen: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    (SHOTS / f"{name}.txt").write_text(screen)


def test_a_search_in_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "shown.yaml").write_text(EXPERIMENT)
    program = f"{sys.executable} -m vgg_search"
    terminal.type(f"PS1='$ '; clear; {program} run --config shown.yaml --name {NAME}")

    def table(screen: str) -> bool:
        return "epoch  val_accuracy" in screen and " running" in screen

    narrow = terminal.wait(lambda s: table(s) and re.search(r"\d/9 +0\.\d{4}", s))
    keep("terminal_80", narrow)
    assert max(map(len, narrow.splitlines())) <= 80
    assert f"{NAME}: " in narrow
    asked = [*program.split(), "status", NAME, "--json"]
    state = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True)
    assert state.returncode == 0, state.stderr
    assert json.loads(state.stdout)["running"] is True

    terminal.wait(lambda s: "1 failed" in s, history=True)
    terminal.widen(200)
    wide = terminal.wait(lambda s: table(s) and "1 failed" in s and re.search(r"\d pruned", s))
    keep("terminal_200", wide)
    # One headline, each trial on one line, and nothing left over from the narrow screen.
    assert len(re.findall(rf"{NAME}: \d+ of {TRIALS} trials", wide)) == 1
    assert len(re.findall(r"^ +\d+ .* (running|started)$", wide, re.MULTILINE)) in (1, 2)

    terminal("send-keys", "-t", "t", "C-c")
    stopped = terminal.wait(lambda s: f"--resume {NAME}" in s)
    keep("terminal_stopped", stopped)
    assert f"study {NAME} interrupted" in stopped
    terminal.type(f"clear; {program} run --resume {NAME}")
    resumed = terminal.wait(table)
    keep("terminal_resumed", resumed)
    last = terminal.wait(lambda s: "use       python -m vgg_search predict" in s)
    keep("terminal_done", last)
    assert "champion  test_accuracy" in last
    assert "epoch  val_accuracy" not in last  # the table has left no trace
    summary = json.loads((tmp_path / "runs" / NAME / "summary.json").read_text())
    assert summary["trials"]["failed"] >= 1
    assert sum(summary["trials"].values()) - summary["trials"]["infeasible"] == TRIALS
