"""Stop a search by Ctrl-C or SIGTERM in each of its phases, and see how long it takes to end.

    python tests/faults/signals.py --tries 30 --seed 0      # 20 minutes of two cores

One small real search a try, from its start, stopped some time after the moment whose turn it is
(`random_kills.MOMENTS`), by the two signals in turn. A line of JSON a try, then the distribution.
Exits with 1 if a search ended with another code than 130 or 143, or 0 where it was done before; if
it showed a traceback; if MLflow has a run that is RUNNING; if a process is still there after
DRAINED_SECONDS. Times are printed and not judged: 10 s are promised on a quiet machine.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from invariants import left
from mlflow import MlflowClient
from random_kills import FLAGS, MOMENTS, SESSION_SECONDS, Session

from vgg_search.provenance import provenance

SMALL = {"--num-trials": "3", "--max-epochs": "3"}  # of FLAGS: the last phase is reached sooner
DRAINED_SECONDS = 30.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stop(folder: Path, phase: str, number: signal.Signals, delay: float) -> dict[str, Any]:
    """One try: what was seen, and under `problems` what must not be."""
    name, value = "VGG_SIGNALS_MARK", str(uuid4())
    command = [sys.executable, "-m", "vgg_search.run", *FLAGS]
    for flag, text in SMALL.items():
        command[command.index(flag) + 1] = text
    session, (moment, _) = Session(folder, {}), MOMENTS[phase]
    with (folder / "log").open("w") as log:
        driver = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=os.environ | {name: value}
        )
        try:
            while driver.poll() is None and not moment(session):
                time.sleep(0.05)
            time.sleep(delay)
            began = time.monotonic()
            driver.send_signal(number)  # which nobody gets where it has ended
            code = driver.wait(SESSION_SECONDS)
            # Python is ending, the work is done: the signal ends the process, as a shell tells it
            code = 128 - code if code < 0 else code
        finally:
            driver.kill()
            driver.wait()
    seconds = time.monotonic() - began
    problems = [f"exit code {code}"] * (code not in (0, 128 + number))
    problems += ["a traceback"] * ("Traceback" in (folder / "log").read_text())
    problems += running(folder / "mlflow.db")
    alive = left(f"{name}={value}", DRAINED_SECONDS)
    problems += [f"process {pid}: {text}" for pid, text in alive.items()]
    return {
        "phase": phase if code else "ended before",
        "signal": number.name,
        "seconds": round(seconds, 2),
        "code": code,
        "load": round(os.getloadavg()[0], 1),
        "problems": problems,
    }


def running(database: Path) -> list[str]:
    """Runs that MLflow shows as if they were still trained."""
    if not database.exists():
        return []
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("vgg-search")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return [f"{run.info.run_name} is RUNNING" for run in runs if run.info.status == "RUNNING"]


def distribution(tries: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each phase, and one for all."""
    lines = []
    for phase in (*MOMENTS, "all"):
        seconds = sorted(t["seconds"] for t in tries if phase in (t["phase"], "all") and t["code"])
        if seconds:
            middle, most = statistics.median(seconds), seconds[-1]
            lines.append(
                f"{phase:<9} n {len(seconds):>3}  median {middle:5.2f} s  most {most:5.2f} s"
            )
    return lines


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    print(json.dumps(provenance() | vars(options)), flush=True)
    rng, tries, phases = random.Random(options.seed), [], list(MOMENTS)
    for i in range(options.tries):
        phase, number = phases[i % len(phases)], SIGNALS[i // len(phases) % 2]
        delay = rng.uniform(0, MOMENTS[phase][1])
        with tempfile.TemporaryDirectory(prefix="vgg-signals-") as folder:
            tries.append(stop(Path(folder), phase, number, delay))
        print(json.dumps(tries[-1]), flush=True)
    print("\n".join(distribution(tries)))
    return int(any(t["problems"] for t in tries))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
