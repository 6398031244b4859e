"""A small real search (sample, real Ray, MLflow on SQLite, champion) in a folder and a mount
namespace of its own, and what is wrong with it afterwards, looked at from outside (`invariants`).

A campaign is a script of cases, each a function of a `Scene`. It prints a line of JSON a case, and
ends with 1 if in any of them anything is lost, repeated or left, a traceback is shown, or a search
that was stopped cannot be resumed to its end.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

from invariants import changed, epochs, left, record, violations
from random_kills import DRAINED_SECONDS, FLAGS, STUDY

from vgg_search.provenance import provenance
from vgg_search.storage.folder import CONFIG

NUM_TRIALS = 4
SECONDS = 400.0  # a search that takes longer hangs


class Scene:
    """A search's folder, its processes, and what is wrong with them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.study, self.mark = folder, folder / STUDY, str(uuid4())
        self.wrong: list[str] = []
        self.seen: dict[str, object] = {}

    def start(self, *flags: str, log: str = "log", **variables: str) -> "subprocess.Popen[bytes]":
        smaller = ["--num-trials", str(NUM_TRIALS), "--max-epochs", "6"]
        command = [sys.executable, "-m", "vgg_search.run", *FLAGS, *smaller, *flags]
        with (self.folder / log).open("a") as file:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=file,
                stderr=file,
                env=os.environ | variables | {"VGG_SCENE": self.mark},
            )

    def met(self, driver: "subprocess.Popen[bytes]", least: int = 2) -> None:
        """Wait until the search has trained some epochs: before, there is nothing to lose."""
        end = time.monotonic() + SECONDS
        while epochs(record(self.study)) < least and driver.poll() is None:
            if time.monotonic() > end:
                break
            time.sleep(0.05)
        if driver.poll() is not None or epochs(record(self.study)) < least:
            self.wrong.append("it trained nothing before the fault")

    def end(self, driver: "subprocess.Popen[bytes]", *codes: int, log: str = "log") -> int:
        """Its exit code, which must be one of `codes`; it has shown no traceback, and where it
        failed it has said how to go on."""
        try:
            code = driver.wait(SECONDS)
        except subprocess.TimeoutExpired:
            driver.kill()
            code = driver.wait()
        text = (self.folder / log).read_text()
        self.seen[f"{log}: code"] = code
        self.seen[f"{log}: end"] = [line[:400] for line in text.strip().splitlines()[-2:]]
        if code not in codes:
            self.wrong.append(f"exit code {code}, not one of {codes}")
        if "Traceback" in text:
            self.wrong.append("it shows a traceback")
        going_on = (self.study / CONFIG).exists()  # it was not removed
        if code == 1 and going_on and not ("--resume" in text or " sync " in text):
            self.wrong.append("it does not say how to go on")
        return code

    def holds(self) -> None:
        """All that must hold of a search that has ended."""
        self.wrong += violations(self.folder, self.study, NUM_TRIALS)

    def resume(self, *flags: str, **variables: str) -> None:
        """Go on to the end, with all that was in the record."""
        before = record(self.study)
        driver = self.start("--resume", self.study.name, *flags, log="resumed", **variables)
        self.end(driver, 0, log="resumed")
        self.lost_nothing(before)
        self.holds()

    def lost_nothing(self, before: dict[object, object]) -> None:
        if lost := changed(before, record(self.study)):
            self.wrong.append(f"{lost} lost")

    def drained(self) -> None:
        """All its processes end by themselves."""
        alive = left(f"VGG_SCENE={self.mark}", DRAINED_SECONDS)
        self.wrong += [f"left: {command}" for command in alive.values()]
        for pid in alive:
            os.kill(pid, signal.SIGKILL)


Cases = Mapping[str, Callable[[Scene], None]]


def campaign(doc: str, cases: Cases) -> int:
    """The exit code of a script whose docstring and cases these are; each case is run in a process
    of its own, whose mounts nobody else sees."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*cases, []], help=f"of {', '.join(cases)}")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        return _one(options.cases[0], cases)
    codes = []
    for name in options.cases or cases:
        command = ["unshare", "-m", sys.executable, sys.argv[0], name, "--here"]
        codes.append(subprocess.run(command, check=False).returncode)
    return int(any(codes))


def _one(name: str, cases: Cases) -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vgg-scene-", ignore_cleanup_errors=True) as folder:
        scene = Scene(Path(folder))
        cases[name](scene)
        scene.drained()
    told = {"case": name, "wrong": scene.wrong, "seconds": round(time.monotonic() - began)}
    told |= {"commit": provenance()["commit"]}
    print(json.dumps(told | scene.seen | {"load": os.getloadavg()[0]}), flush=True)
    return int(bool(scene.wrong))
