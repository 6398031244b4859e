"""Damage a file of a study as a disk, a copy or a hand would, and see what the next command says.

    python tests/faults/corruption.py --cases 200 --seed 0      # ten minutes of one core
    python tests/faults/corruption.py --cases 20                # a try, by a seed that it prints

One small real search is killed, copied, resumed to its end and copied again. A case is a copy of
which one file is cut, flipped in one to four bits, emptied, or has two parts that changed places;
then comes the command that a user would give next. What it comes to is compared with what the same
command says of an undamaged copy:

detected    one line on stderr names the file and a cure, exit code 1 or 2
recovered   the values are right, of the last good state; the file was said or made anew
harmless    the values are right
wrong       anything else: another value, another error, more than a line

`resume` is the session's own parts in their order, with the worker in this process instead of in
Ray's. Exits with 1 if anything is wrong.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from corruption_commands import OWN, last_json, load, readdress, tracker_of
from invariants import Facts, epochs, processes, record
from mlflow import MlflowClient
from PIL import Image
from random_kills import SPACE

from vgg_search.cli import commands
from vgg_search.provenance import provenance

STUDY = Path("runs", "kills")
FLAGS = ["--dataset", "sample", "--val-images", "200", "--train-images", "300", "--quiet"]
FLAGS += ["--max-epochs", "4", "--time-budget", "null", "--baseline", "null", "--name", "kills"]
FLAGS += ["--num-trials", "6", "--champion-epochs", "1", "--space", json.dumps(SPACE)]
NOBODY = "http://127.0.0.1:9"  # a tracker that is away: all rows stay in the outbox
KILLED_AFTER = 4  # epochs; most trials end with the search, when none is promoted any more
SEARCH_SECONDS = 600.0
IMAGES = "../images"
ARGV = {
    "resume": ["resume", "kills"],
    "status": ["status", "kills"],
    "report": ["report", "kills"],
    "sync": ["sync", "kills"],
    "predict": ["predict", f"{IMAGES}/a/0.png", f"{IMAGES}/b/7.png"],
    "predict best": ["predict", f"{IMAGES}/a/0.png", "--model", "{folder}"],
    "evaluate": ["evaluate"],
    "load": ["load", IMAGES],
}
CURES = ("restore", "remove", "--resume")
KINDS = ("cut", "flipped", "emptied", "swapped")


@dataclass(frozen=True)
class Target:
    """A kind of file, in which state of the study it is damaged, and what is then asked."""

    name: str
    state: str
    pattern: str  # of the file, in the state's folder
    commands: Sequence[str]
    weight: int = 1


TARGETS = [
    Target("checkpoint", "unfinished", "runs/kills/trials/*/last.pt", ["resume"], 4),
    Target("best checkpoint", "finished", "runs/kills/trials/*/best/*", ["predict best"], 2),
    Target("journal", "finished", "runs/kills/study.journal", ["status", "report"], 2),
    Target("journal", "unfinished", "runs/kills/study.journal", ["resume"], 2),
    Target("outbox", "finished", "runs/kills/outbox.db", ["status"], 1),
    Target("outbox", "unfinished", "runs/kills/outbox.db", ["resume", "sync"], 3),
    Target("outbox's log", "killed", "runs/kills/outbox.db-wal", ["resume"], 1),
    Target("config.yaml", "finished", "runs/kills/config.yaml", ["report"], 1),
    Target("config.yaml", "unfinished", "runs/kills/config.yaml", ["resume"], 3),
    Target("data cache", "finished", "cache/vgg_search/images/*/*.*", ["load"], 4),
    Target(
        "champion",
        "finished",
        "runs/kills/champion/model.*",
        ["predict", "evaluate", "report", "resume", "sync"],
        5,
    ),
]


@dataclass(frozen=True)
class Answer:
    """What a command came to."""

    code: int
    values: Any
    lines: tuple[str, ...]  # on stderr


@dataclass
class Campaign:
    """What a campaign has come to."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # file, kind, outcome
    wrong: list[str] = field(default_factory=list)

    def table(self) -> Iterator[str]:
        outcomes = ("detected", "recovered", "harmless", "wrong")
        yield f"{'file':<16} {'damage':<8} " + " ".join(f"{name:>9}" for name in outcomes)
        for file, kind in sorted({key[:2] for key in self.counts}):
            numbers = [self.counts[file, kind, outcome] for outcome in outcomes]
            yield f"{file:<16} {kind:<8} " + " ".join(f"{number:>9}" for number in numbers)
        total = Counter[str]()
        for (_, _, outcome), number in self.counts.items():
            total[outcome] += number
        yield f"{'all':<25} " + " ".join(f"{total[name]:>9}" for name in outcomes)


def prepare(folder: Path) -> None:
    """States of one study in `folder`: killed, the same with its outbox closed, and finished; with
    images and their cache."""
    work, mark = folder / "work", {"VGG_CORRUPTION_MARK": str(uuid4())}
    environment = os.environ | mark | {"MLFLOW_TRACKING_URI": NOBODY}
    work.mkdir()
    command = [sys.executable, "-m", "vgg_search.run", *FLAGS]
    with (folder / "log").open("w") as log:
        driver = subprocess.Popen(command, cwd=work, stdout=log, stderr=log, env=environment)
        until = time.monotonic() + SEARCH_SECONDS
        # One of those that have not ended has a checkpoint
        while driver.poll() is None and not (
            epochs(record(work / STUDY)) >= KILLED_AFTER
            and any((work / STUDY).glob("trials/*/last.pt"))
        ):
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.02)
        driver.kill()
        driver.wait()
        # Of a champion that a kill interrupts nothing but the outbox tells
        assert not any((work / STUDY).glob("trials/champion*")), "killed too late"
        while processes("=".join(*mark.items())) and time.monotonic() < until:
            time.sleep(0.1)  # its workers end too
        shutil.copytree(work, folder / "killed", symlinks=True)
        shutil.copytree(work, folder / "unfinished", symlinks=True)
        resumed = subprocess.run(
            [*command, "--resume", "kills"],
            cwd=work,
            stdout=log,
            stderr=log,
            env=environment,
            timeout=SEARCH_SECONDS,
        )
    assert resumed.returncode == 1, (folder / "log").read_text()  # the tracker is away
    work.rename(folder / "finished")
    _draw_images(folder / "images")
    for state in ("killed", "unfinished", "finished"):
        place = folder / state
        readdress(place / STUDY, place / "mlflow.db", closed=state != "killed")
    with _in(folder / "finished"):
        load([IMAGES])
    MlflowClient(f"sqlite:///{folder}/empty.db").search_experiments()


def _draw_images(folder: Path) -> None:
    """Twelve of each of two classes, all different."""
    rng = random.Random(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            Image.frombytes("L", (8, 8), rng.randbytes(64)).save(folder / name / f"{i}.png")


@contextmanager
def _in(folder: Path) -> Iterator[None]:
    before, there = os.environ.copy(), Path.cwd()
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    for name in ("MLFLOW_TRACKING_URI", "VGG_SEARCH_TRACKING_URI"):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.chdir(there)
        os.environ.clear()
        os.environ.update(before)


def damaged(content: bytes, kind: str, rng: random.Random) -> bytes:
    """The content as it is after such a damage; never as it was."""
    size, changed = len(content), bytearray(content)
    while changed == content:
        if kind == "emptied":
            return b""
        if kind == "cut":
            return content[: rng.randrange(1, size)]
        if kind == "flipped":
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(size)] ^= 1 << rng.randrange(8)
        else:
            length = rng.randint(1, max(1, size // 3))
            first = rng.randint(0, size - 2 * length)
            second = rng.randint(first + length, size - length)
            one, other = (slice(at, at + length) for at in (first, second))
            changed[one], changed[other] = changed[other], changed[one]
    return bytes(changed)


class Damager:
    """Cases on copies of what `prepare` has made in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.truths: dict[tuple[str, ...], Answer] = {}
        self.cases = 0

    @property
    def place(self) -> Path:
        return self.folder / f"case-{self.cases}"

    def answer(self, state: str, argv: Sequence[str], damage: Callable[[Path], None]) -> Answer:
        """What a command says in a copy of a state that `damage` has changed."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.cases += 1  # MLflow keeps what it has opened, by its path
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.folder / state, self.place, symlinks=True)
        shutil.copy(self.folder / "empty.db", self.place / "mlflow.db")
        damage(self.place)
        out, err, values = StringIO(), StringIO(), None
        with _in(self.place), redirect_stdout(out), redirect_stderr(err):
            with patch.dict(commands.COMMANDS, OWN):
                code = commands.main([*argv, "--json"])
            if code == 0:
                values = last_json(out.getvalue())
                if argv[0] == "report":
                    values = Path(values["report"]).read_text()
                elif argv[0] == "sync":
                    values |= tracker_of(self.place / "mlflow.db")
        return Answer(
            code, values, tuple(err.getvalue().replace(str(self.place), ".").splitlines())
        )

    def truth(self, state: str, argv: Sequence[str]) -> Answer:
        """What it says of an undamaged copy."""
        key = (state, *argv)
        if key not in self.truths:
            self.truths[key] = self.answer(state, argv, lambda _: None)
            assert self.truths[key].code == 0, self.truths[key]
        return self.truths[key]

    def case(self, target: Target, kind: str, rng: random.Random) -> tuple[str, str]:
        """(outcome, what was done and said)."""
        state, command = self.folder / target.state, rng.choice(list(target.commands))
        file = rng.choice(sorted(state.glob(target.pattern))).relative_to(state)
        argv = [text.format(folder=file.parent) for text in ARGV[command]]
        truth, content = self.truth(target.state, argv), b""

        def damage(place: Path) -> None:
            nonlocal content
            path = place / file
            status, content = path.stat(), damaged(path.read_bytes(), kind, rng)
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

        answer = self.answer(target.state, argv, damage)
        path = self.place / file
        is_same = path.is_file() and path.read_bytes() == content
        said = [line for line in answer.lines if line not in truth.lines]
        is_earlier = (
            (kind, command, file.name) == ("cut", "status", "study.journal")
            and answer.code == 0
            and _is_earlier(answer.values, record(self.place / STUDY), record(state / STUDY))
        )
        outcome = _outcome(answer, truth, said, file, is_same, is_earlier)
        what = f"{target.name} ({file.name}) {kind}, {command} ({target.state})"
        return outcome, f"{what}: {outcome}, exit {answer.code} {' | '.join(said)[:500]}"


def _outcome(
    answer: Answer, truth: Answer, said: list[str], file: Path, is_same: bool, is_earlier: bool
) -> str:
    if answer.code in (1, 2):
        line = said[-1] if len(said) == 1 else ""
        place, cure = file.name.removesuffix("-wal"), any(word in line for word in CURES)
        is_plain = line.startswith("vgg-search: ") and "(--debug" not in line
        return "detected" if is_plain and place in line and cure else "wrong"
    if answer.code or (answer.values != truth.values and not is_earlier):
        return "wrong"
    return "harmless" if is_same and not said and not is_earlier else "recovered"


def _is_earlier(values: Any, here: Facts, whole: Facts) -> bool:
    """Whether `status` tells of a record all of which is in the whole one: that has no end of its
    own, so that it can have been cut between two lines."""
    kept = {key: value for key, value in here.items() if whole.get(key) == value}
    return kept == here and values["epochs_trained"] == epochs(here)


def run_campaign(folder: Path, cases: int, seed: int) -> Campaign:
    """So many cases, each drawn by its own seed, the files and the kinds in turn."""
    campaign, damager = Campaign(), Damager(folder)
    turns = [target for target in TARGETS for _ in range(target.weight)]
    random.Random(seed).shuffle(turns)
    for i in range(cases):
        rng = random.Random(f"{seed}/{i}")
        target, kind = turns[i % len(turns)], KINDS[(i + i // len(turns)) % len(KINDS)]
        outcome, line = damager.case(target, kind, rng)
        campaign.counts[target.name, kind, outcome] += 1
        campaign.wrong += [f"case {i}: {line}"] * (outcome == "wrong")
        print(f"case {i}: {line}", flush=True)
    return campaign


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--folder", type=Path, help="what an earlier campaign has prepared")
    options = parser.parse_args(argv)
    print(json.dumps(provenance() | {"seed": options.seed}), flush=True)
    with tempfile.TemporaryDirectory(prefix="vgg-corruption-") as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "empty.db").exists():
            folder.mkdir(exist_ok=True)
            prepare(folder)
        campaign = run_campaign(folder, options.cases, options.seed)
    print(*campaign.table(), sep="\n")
    for line in campaign.wrong:
        print(f"wrong: {line}", file=sys.stderr)
    return int(bool(campaign.wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
