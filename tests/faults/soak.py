"""Two thousand short trials: do memory, file handles and threads of driver and workers stay flat?

    python tests/faults/soak.py --trials 2000      # four to seven minutes of two cores

One real search with Ray and MLflow (a database in a file), looked at from outside now and then. By
kind of process: the median over the second tenth of the trials, by when all is loaded, and by how
much that over the last tenth is more. Exits with 1 if the search does not end well, or if the
growth is above its bound: memory of the driver GROWTH_KIB a trial (its record of it), of a worker
and of a process of Ray's a twentieth; file handles and threads SPARE.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

from invariants import processes, violations
from random_kills import SPACE

from vgg_search.provenance import provenance

NAME = "soak"
FLAGS = ["--dataset", "sample", "--val-images", "200", "--train-images", "300", "--quiet"]
FLAGS += ["--max-epochs", "2", "--scheduler", "asha", "--time-budget", "null", "--name", NAME]
FLAGS += ["--baseline", "null", "--champion-epochs", "1", "--sampler", "random"]
FLAGS += ["--space", json.dumps(SPACE)]
SECONDS = 3.0  # between two looks
GROWTH_KIB, SHARE, SPARE = 40.0, 0.05, 4
KINDS = {"vgg_search.run": "driver", "ray::": "worker", "gcs_server": "gcs", "raylet": "raylet"}
Sizes = tuple[float, float, float]  # MiB of memory of its own, file handles, threads


def sizes(mark: str) -> dict[str, Sizes]:
    """By kind of process, the most that one of them has now."""
    found: dict[str, Sizes] = {}
    for pid, command in processes(mark).items():
        kind = next((kind for text, kind in KINDS.items() if text in command), None)
        process = Path("/proc", str(pid))
        try:
            status = (process / "status").read_text()
            handles = len(list((process / "fd").iterdir()))
        except OSError:  # it has ended
            continue
        values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if kind and "RssAnon" in values:
            mib = int(values["RssAnon"].split()[0]) / 1024
            here = (mib, float(handles), float(values["Threads"]))
            found[kind] = max(found.get(kind, (0.0, 0.0, 0.0)), here)
    return found


def ended(study: Path) -> int:
    """Trials whose end the record has, by its lines."""
    journal = study / "study.journal"
    return journal.read_text().count('"user_attr":{"state":"') if journal.exists() else 0


def growth(looks: list[tuple[int, dict[str, Sizes]]], trials: int) -> Iterator[tuple[str, bool]]:
    """A line for each kind of process, and whether it is within its bounds."""
    by_kind: dict[str, dict[bool, list[Sizes]]] = defaultdict(lambda: {False: [], True: []})
    for number, found in looks:
        for kind, here in found.items():
            # Not the end of the search, which loads what makes a report
            if 0.1 * trials <= number < 0.2 * trials or 0.9 * trials <= number < trials:
                by_kind[kind][number >= 0.9 * trials].append(here)
    for kind, there in sorted(by_kind.items()):
        if not all(there.values()):
            continue
        early, late = (
            [statistics.median(values) for values in zip(*there[is_late], strict=True)]
            for is_late in (False, True)
        )
        more = [after - before for before, after in zip(early, late, strict=True)]
        bound = GROWTH_KIB * 0.8 * trials / 1024 if kind == "driver" else SHARE * early[0]
        is_flat = more[0] <= bound and max(more[1:]) <= SPARE
        yield (
            (
                f"{kind:<8} {early[0]:7.1f} MiB {more[0]:+7.1f} (bound {bound:.1f})  "
                f"{early[1]:4.0f} handles {more[1]:+3.0f}  {early[2]:4.0f} threads {more[2]:+3.0f}"
            ),
            is_flat,
        )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    options = parser.parse_args(argv)
    print(json.dumps(provenance() | vars(options)), flush=True)
    name, value = "VGG_SOAK_MARK", str(uuid4())
    looks: list[tuple[int, dict[str, Sizes]]] = []
    with tempfile.TemporaryDirectory(prefix="vgg-soak-") as temporary:
        folder = Path(temporary)
        command = [sys.executable, "-m", "vgg_search.run", *FLAGS]
        command += ["--num-trials", str(options.trials)]
        with (folder / "log").open("w") as log:
            search = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=log, env=os.environ | {name: value}
            )
            while search.poll() is None:
                time.sleep(SECONDS)
                looks.append((ended(folder / "runs" / NAME), sizes(f"{name}={value}")))
                if len(looks) % 20 == 0:
                    print(json.dumps(looks[-1]), flush=True)
        faults = violations(folder, folder / "runs" / NAME, options.trials)
        if search.returncode:
            faults.append((folder / "log").read_text()[-2000:])
    for line, is_flat in growth(looks, options.trials):
        print(line)
        faults += [f"grows: {line}"] * (not is_flat)
    for fault in faults:
        print(f"failed: {fault}", file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
