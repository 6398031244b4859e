"""Kill a search's driver with -9 at random moments, resume it each time, and count what was lost.

    python tests/faults/random_kills.py --kills 100 --seed 0      # ninety minutes of two cores
    python tests/faults/random_kills.py --kills 5                 # one study or two, some minutes

Small real searches (sample, real Ray, MLflow on SQLite, champion), one after another, each in a
temporary folder and killed several times. A kill comes some time after a moment that is drawn: the
start, the first epoch of a session, the end of a trial, the champion, the report. A study is then
left to end by itself. Counted are, by `invariants`:

lost        epochs and trials' ends that were in the record before a kill and are not after it
broken      what does not hold of an ended study: see `invariants.violations`
left        processes still there two minutes after a kill or an end, and new segments in /dev/shm
            that no process has mapped at the end

Exits with 1 if there is any, if a study cannot be resumed to its end, or if fewer than half of the
kills met a record with an epoch in it.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from invariants import (
    Facts,
    changed,
    ended_trials,
    epochs,
    left,
    orphaned_segments,
    record,
    violations,
)

from vgg_search.provenance import provenance

SPACE = {"num_blocks": [1, 2], "num_convs": [1, 2], "out_channels": [8, 16], "lr": [0.02, 0.4]}
SPACE |= {"hidden_features": 64, "num_hidden": 1, "dropout": 0.0}
NUM_TRIALS, STUDY = 8, Path("runs", "kills")
FLAGS = ["--dataset", "sample", "--val-images", "500", "--train-images", "1500", "--quiet"]
FLAGS += ["--max-epochs", "9", "--time-budget", "null", "--baseline", "null", "--name", "kills"]
FLAGS += ["--num-trials", str(NUM_TRIALS), "--champion-epochs", "2", "--space", json.dumps(SPACE)]
KILLS_A_STUDY = 8  # at most; a session may end before its kill
DRAINED_SECONDS = (
    120.0  # until all processes of a dead driver are gone: Ray's look for their parent
)
SESSION_SECONDS = 600.0  # a session that takes longer hangs


@dataclass
class Session:
    """One driver at work in `folder`, and what was there before it."""

    folder: Path
    before: Facts
    began: float = field(default_factory=time.time)
    log_before: int = 0  # characters

    def __post_init__(self) -> None:
        self.log_before = len(self.log())

    @property
    def study(self) -> Path:
        return self.folder / STUDY

    def log(self) -> str:
        path = self.study / "log.txt"
        return path.read_text() if path.exists() else ""

    def start(self) -> bool:
        return True

    def epoch(self) -> bool:
        return epochs(record(self.study)) > epochs(self.before)

    def trial(self) -> bool:
        return ended_trials(record(self.study)) > ended_trials(self.before)

    def champion(self) -> bool:
        return "champion: trial" in self.log()[self.log_before :]

    def report(self) -> bool:
        path = self.study / "summary.json"
        return path.exists() and path.stat().st_mtime >= self.began


MOMENTS: dict[str, tuple[Callable[[Session], bool], float]] = {  # and seconds after it at most
    "start": (Session.start, 8.0),
    "epoch": (Session.epoch, 3.0),
    "trial": (Session.trial, 3.0),
    "champion": (Session.champion, 4.0),
    "report": (Session.report, 3.0),
}


@dataclass
class Campaign:
    """What a campaign has come to."""

    kills: int = 0
    studies: int = 0
    trained: int = 0  # kills that met a record with an epoch in it
    lost: int = 0
    left: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    moments: Counter[str] = field(default_factory=Counter)  # of the kills

    def problems(self) -> list[str]:
        """A line for each reason why the campaign failed."""
        nothing = self.trained < self.kills / 2
        reasons = [f"only {self.trained} of {self.kills} kills met a trained epoch"] * nothing
        reasons += [f"{self.lost} lost"] * bool(self.lost)
        return reasons + [f"left: {what}" for what in self.left] + self.broken

    def summary(self) -> str:
        moments = ", ".join(f"{count} {name}" for name, count in sorted(self.moments.items()))
        return (
            f"{self.kills} kills ({moments}) of {self.studies} studies, {self.trained} with epochs "
            f"in the record: {self.lost} lost, {len(self.broken)} broken, {len(self.left)} left"
        )


class Killer:
    """Runs studies and kills them, by a seed of its own for each study."""

    def __init__(self, campaign: Campaign, longest: float = SESSION_SECONDS) -> None:
        self.campaign, self.longest = campaign, longest
        self.mark = f"VGG_KILLS_MARK={uuid4()}"  # all processes of the campaign have it

    def study(self, folder: Path, kills: int, rng: random.Random) -> None:
        """One study from its start to its end, killed so many times on the way."""
        campaign, code, before = self.campaign, None, dict[object, object]()
        campaign.studies += 1
        for _ in range(kills):
            session = Session(folder, before)
            name = rng.choice(list(MOMENTS))
            moment, longest = MOMENTS[name]
            code = self.session(session, moment, rng.uniform(0, longest))
            after = record(folder / STUDY)
            campaign.lost += changed(before, after)
            if code != -signal.SIGKILL:
                break
            campaign.kills += 1
            campaign.moments[name] += 1
            campaign.trained += epochs(after) > 0
            print(
                f"study {campaign.studies}, kill {campaign.kills} ({name}, "
                f"{time.time() - session.began:.1f} s): {ended_trials(after)} trials ended, "
                f"{epochs(after)} epochs, {campaign.lost} lost",
                flush=True,
            )
            before = after
        if code == -signal.SIGKILL:
            code = self.session(Session(folder, before), None, 0.0)
            campaign.lost += changed(before, record(folder / STUDY))
        if code:
            log = (folder / "log").read_text()[-2000:]
            campaign.broken.append(f"study {campaign.studies} ended with {code}: {log}")
        else:
            lines = violations(folder, folder / STUDY, NUM_TRIALS)
            campaign.broken += [f"study {campaign.studies}: {line}" for line in lines]
            print(f"study {campaign.studies} ended: {lines or 'all holds'}", flush=True)

    def session(
        self, session: Session, moment: Callable[[Session], bool] | None, delay: float
    ) -> int:
        """Start or resume the search; -9 so many seconds after the moment. The exit code."""
        command = [sys.executable, "-m", "vgg_search.run", *FLAGS]
        command += ["--resume", "kills"] if session.study.exists() else []
        name, _, value = self.mark.partition("=")
        with (session.folder / "log").open("a") as log:
            driver = subprocess.Popen(
                command, cwd=session.folder, stdout=log, stderr=log, env=os.environ | {name: value}
            )
            try:
                self._wait(driver, session, moment)
                driver.wait(delay if moment else self.longest)
            except subprocess.TimeoutExpired:
                driver.send_signal(signal.SIGKILL)
                driver.wait()
        self._count_left()
        return driver.returncode

    def _wait(
        self,
        driver: "subprocess.Popen[bytes]",
        session: Session,
        moment: Callable[[Session], bool] | None,
    ) -> None:
        end = session.began + self.longest
        while moment and driver.poll() is None and not moment(session):
            if time.time() > end:
                self.campaign.broken.append(f"study {self.campaign.studies} hangs")
                raise subprocess.TimeoutExpired("the search", self.longest)
            time.sleep(0.05)

    def _count_left(self) -> None:
        alive = left(self.mark, DRAINED_SECONDS)
        self.campaign.left += [f"process {pid}: {command}" for pid, command in alive.items()]
        for pid in alive:  # or each later look would count it again
            os.kill(pid, signal.SIGKILL)


def run_campaign(folder: Path, kills: int, seed: int, longest: float = SESSION_SECONDS) -> Campaign:
    """Studies in `folder`, one after another, until so many kills were met."""
    campaign, before = Campaign(), orphaned_segments()
    killer = Killer(campaign, longest)
    while campaign.kills < kills and campaign.studies < kills:
        rng = random.Random(f"{seed}/{campaign.studies}")
        place = folder / str(campaign.studies)
        place.mkdir()
        most = rng.randint(KILLS_A_STUDY // 2, KILLS_A_STUDY)
        killer.study(place, min(most, kills - campaign.kills), rng)
    campaign.left += [f"/dev/shm/{name}" for name in orphaned_segments() - before]
    return campaign


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args(argv)
    print(json.dumps(provenance() | {"seed": options.seed}), flush=True)
    with tempfile.TemporaryDirectory(prefix="vgg-kills-") as folder:
        campaign = run_campaign(Path(folder), options.kills, options.seed)
    print(campaign.summary())
    for problem in campaign.problems():
        print(f"failed: {problem}", file=sys.stderr)
    return int(bool(campaign.problems()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
