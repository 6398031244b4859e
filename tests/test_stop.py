"""The first Ctrl-C or SIGTERM stops in order, the second at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_workers import experiment, opened

from vgg_search.stop import StopSignals
from vgg_search.study.study import FINISHED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_the_study(tmp_path: Path, number: signal.Signals) -> None:
    with opened(tmp_path / "s", experiment()) as study:
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        with StopSignals() as signals:
            signals.attach(study)
            assert not study.stopping
            assert not signals
            signal.raise_signal(number)
            assert study.stopping
            assert signals.received == [number]
            assert study.propose() == FINISHED
            assert not study.finished  # but stopped
        assert {s: signal.getsignal(s) for s in before} == before


def test_what_ray_makes_of_sigterm_while_it_starts_has_our_code() -> None:
    """`ray.init` sets this handler first, and takes seconds; ours is there again after it."""

    def starting() -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended, StopSignals():
        starting()
    assert ended.value.code == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_without_a_study_it_ends_the_process_with_its_code(number: signal.Signals) -> None:
    with StopSignals() as signals:
        signal.signal(number, signal.SIG_IGN)  # as Ray sets handlers of its own
        signals.install()
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(number)
    assert ended.value.code == 128 + number


@pytest.mark.parametrize(
    ("in_python", "ending", "args"), [(False, SystemExit, (130,)), (True, KeyboardInterrupt, ())]
)
def test_a_library_that_wraps_the_exit_changes_nothing(
    in_python: bool, ending: type[BaseException], args: tuple[int, ...]
) -> None:
    """As pydantic's serializer does, in the middle of writing the configuration."""

    def serialize() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException as error:
            raise ValueError("while serializing") from error

    with pytest.raises(ending) as ended, StopSignals(in_python):
        serialize()
    assert ended.value.args == args


def test_an_error_without_a_signal_stays_an_error() -> None:
    with pytest.raises(ValueError, match="its own"), StopSignals():
        raise ValueError("its own")


def test_one_that_came_before_the_study_stops_it(tmp_path: Path) -> None:
    """An exit that is raised in a destructor goes no further."""
    with opened(tmp_path / "s", experiment()) as study, StopSignals() as signals:
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        signals.attach(study)
        assert study.stopping


TWICE = """
import os, signal, sys
from pathlib import Path
from fake_workers import experiment, opened
from vgg_search.stop import StopSignals
with opened(Path(sys.argv[1]), experiment()) as study, StopSignals() as signals:
    signals.attach(study)
    os.kill(os.getpid(), signal.SIGINT)
    print("once", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("twice", flush=True)
"""


def test_the_second_signal_ends_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWICE, str(tmp_path / "s")]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=100)
    assert (done.returncode, done.stdout) == (143, "once\n"), done.stderr


ENDING = """
import os, signal, sys
from vgg_search.stop import told_if_killed
with told_if_killed("go on with $(this) and 'that'"):
    if sys.argv[1] == "error":
        raise ValueError("its own")
    if number := int(sys.argv[1]):
        os.kill(os.getpid(), number)
"""


@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("0", 0, ""),
        (str(int(signal.SIGKILL)), -signal.SIGKILL, "go on with $(this) and 'that'"),
        ("error", 1, "ValueError: its own"),
    ],
)
def test_of_a_killed_process_another_says_so(how: str, code: int, told: str) -> None:
    command = [sys.executable, "-c", ENDING, how]
    # Its streams are at their end once nothing of it is left
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.strip().rpartition("\n")[2] == told
