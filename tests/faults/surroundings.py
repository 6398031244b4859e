"""What a search makes of its surroundings: full disks, a clock that jumps, a neighbour, a pause.

    python tests/faults/surroundings.py                    # all, a quarter of an hour; as root
    python tests/faults/surroundings.py run-full clock+    # some

Each case is a small real search (sample, real Ray, MLflow on SQLite, champion) in a folder and a
mount namespace of its own, whose small disks (tmpfs) nobody else sees. What is left is looked at
from outside (`invariants`). A line of JSON a case; exit code 1 if in any of them anything is lost,
repeated or left, a traceback is shown, or a search that was stopped cannot be resumed to its end.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from invariants import (
    changed,
    epochs,
    left,
    of_the_record,
    of_the_tables,
    processes,
    record,
    trained,
    violations,
)
from mlflow import MlflowClient
from random_kills import DRAINED_SECONDS, FLAGS, STUDY

NUM_TRIALS = 4
SECONDS = 400.0  # a search that takes longer hangs
JUMP = 3600.0
SHIFTED = """
import time as real
now, now_ns = real.time, real.time_ns
def offset():
    with open({file!r}) as file:
        return float(file.read() or 0)
real.time = lambda: now() + offset()
real.time_ns = lambda: now_ns() + int(offset() * 1e9)
"""


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
        """Its exit code, which must be one of `codes`; and it has shown no traceback."""
        try:
            code = driver.wait(SECONDS)
        except subprocess.TimeoutExpired:
            driver.kill()
            code = driver.wait()
        text = (self.folder / log).read_text()
        self.seen[f"{log}: code"] = code
        self.seen[f"{log}: end"] = [line[:300] for line in text.strip().splitlines()[-2:]]
        if code not in codes:
            self.wrong.append(f"exit code {code}, not one of {codes}")
        if "Traceback" in text:
            self.wrong.append("it shows a traceback")
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

    def disk(self, name: str, options: str) -> Path:
        """A small disk of this name in the folder."""
        place = self.folder / name
        place.mkdir()
        mount(place, options)
        return place

    def drained(self) -> None:
        """All its processes end by themselves."""
        alive = left(f"VGG_SCENE={self.mark}", DRAINED_SECONDS)
        self.wrong += [f"left: {command}" for command in alive.values()]
        for pid in alive:
            os.kill(pid, signal.SIGKILL)


def mount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all the room there is."""
    rest = disk / "rest"
    with rest.open("wb", buffering=0) as file:
        for size in (65536, 512):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return rest


def crowd(disk: Path) -> Path:
    """A folder of so many files that there is room for no other."""
    rest = disk / "rest"
    rest.mkdir()
    try:
        for i in range(10**6):
            (rest / str(i)).touch()
    except OSError:
        pass
    return rest


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# ---- cases --------------------------------------------------------------------------------------


def _clock(scene: Scene, jump: float) -> None:
    site, offset = scene.folder / "site", scene.folder / "offset"
    site.mkdir()
    offset.write_text("0")
    (site / "sitecustomize.py").write_text(SHIFTED.format(file=str(offset)))
    driver = scene.start(PYTHONPATH=str(site))
    scene.met(driver)
    offset.write_text(str(jump))
    scene.end(driver, 0)
    scene.holds()
    client = MlflowClient(f"sqlite:///{scene.folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'vgg-search'")
    for run in client.search_runs([experiment.experiment_id]):
        if run.info.end_time < run.info.start_time:
            scene.wrong.append(f"run {run.info.run_name} ends before it starts")


def clock_forward(scene: Scene) -> None:
    _clock(scene, JUMP)


def clock_back(scene: Scene) -> None:
    _clock(scene, -JUMP)


def suspended(scene: Scene) -> None:
    """All processes stop for a minute, as on a laptop whose lid is closed."""
    driver = scene.start()
    scene.met(driver)
    stopped, before = list(processes(f"VGG_SCENE={scene.mark}")), record(scene.study)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in stopped:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        time.sleep(60 if number == signal.SIGSTOP else 0)
    scene.seen["stopped"] = len(stopped)
    scene.end(driver, 0)
    scene.lost_nothing(before)
    scene.holds()


def raylet_killed(scene: Scene) -> None:
    """Ray's own process of the machine is killed while trials train."""
    driver = scene.start()
    scene.met(driver)
    alive = processes(f"VGG_SCENE={scene.mark}")
    (raylet,) = (pid for pid, command in alive.items() if "raylet/raylet" in command)
    os.kill(raylet, signal.SIGKILL)
    scene.end(driver, 1)
    scene.resume()


def side_by_side(scene: Scene) -> None:
    """Two searches at once, of one folder, one database and one machine."""
    names = ("one", "two")
    drivers = {name: scene.start("--name", name, log=name) for name in names}
    for name, driver in drivers.items():
        scene.end(driver, 0, log=name)
        study = scene.study.parent / name
        absolute, trials = scene.folder / study, trained(scene.folder / study)
        scene.wrong += [*of_the_record(absolute, trials, NUM_TRIALS)]
        scene.wrong += [*of_the_tables(absolute, trials)]
    client = MlflowClient(f"sqlite:///{scene.folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'vgg-search'")
    runs = client.search_runs([experiment.experiment_id])
    kinds = Counter((run.data.tags["kind"], run.info.status) for run in runs)
    expected = {"study": 2, "trial": 2 * NUM_TRIALS, "champion": 2}
    if kinds != Counter({(kind, "FINISHED"): number for kind, number in expected.items()}):
        scene.wrong.append(f"MLflow has {dict(kinds)}")
    versions = client.search_model_versions("name = 'vgg-search'")
    if len(versions) != 2:
        scene.wrong.append(f"{len(versions)} versions are registered")


def same_name(scene: Scene) -> None:
    """Two searches of one name, begun at the same instant: one is told so, the other loses
    nothing."""
    drivers = {log: scene.start(log=log) for log in ("one", "two")}
    codes = [scene.end(driver, 0, 2, log=log) for log, driver in drivers.items()]
    if sorted(codes) != [0, 2]:
        scene.wrong.append(f"exit codes {codes}")
    scene.holds()


def little_shared_memory(scene: Scene) -> None:
    """64 MiB of /dev/shm, as a container has by default."""
    mount(Path("/dev/shm"), "size=64m")
    scene.end(scene.start(), 0)
    scene.holds()


def _run_folder(scene: Scene, fault: Callable[[Path], Path]) -> None:
    disk = scene.disk("runs", "size=24m,nr_inodes=400")
    driver = scene.start()
    scene.met(driver)
    rest = fault(disk)
    scene.end(driver, 1)
    shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    scene.resume()


def run_folder_full(scene: Scene) -> None:
    _run_folder(scene, fill)


def run_folder_without_inodes(scene: Scene) -> None:
    _run_folder(scene, crowd)


def _database(scene: Scene, size: str, fault: Callable[[Path], object], *codes: int) -> Path:
    disk = scene.disk("db", f"size={size}")
    driver = scene.start("--tracking-uri", f"sqlite:///{disk}/mlflow.db")
    scene.met(driver)
    fault(disk)
    scene.end(driver, *codes)
    return disk


def database_full(scene: Scene) -> None:
    """The search goes on, and `sync` sends the rest where there is room again."""
    disk = _database(scene, "6m", fill, 1)
    (disk / "rest").unlink()
    subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
    _synced(scene, disk)


def database_removed(scene: Scene) -> None:
    """The folder of the database is emptied; `sync` makes all runs again."""
    _synced(scene, _database(scene, "60m", empty, 0, 1))


def _synced(scene: Scene, disk: Path) -> None:
    command = [sys.executable, "-m", "vgg_search", "sync", scene.study.name]
    told = subprocess.run(command, cwd=scene.folder, capture_output=True, text=True, check=False)
    scene.seen["sync"] = [told.returncode, (told.stdout + told.stderr).strip()[-300:]]
    if told.returncode:
        scene.wrong.append(f"sync ends with {told.returncode}")
        return
    (scene.folder / "mlflow.db").symlink_to(disk / "mlflow.db")
    scene.holds()


def _scratch(scene: Scene, disk: Path, **variables: str) -> None:
    driver = scene.start(**variables)
    scene.met(driver)
    rest = fill(disk)
    code = scene.end(driver, 0, 1)
    rest.unlink()
    if code:
        scene.resume(**variables)
    else:
        scene.holds()


def scratch_full(scene: Scene) -> None:
    """The disk of Ray's logs and sockets."""
    with tempfile.TemporaryDirectory(prefix="v", dir="/tmp") as short:
        disk = Path(short)  # the path of a socket is short
        mount(disk, "size=120m")
        _scratch(scene, disk, RAY_TMPDIR=short, TMPDIR=short)
        scene.drained()
        subprocess.run(["umount", "-l", short], check=True)


def shared_memory_full(scene: Scene) -> None:
    disk = Path("/dev/shm")
    mount(disk, "size=300m")
    _scratch(scene, disk)


CASES: dict[str, Callable[[Scene], None]] = {
    "clock+": clock_forward,
    "clock-": clock_back,
    "suspended": suspended,
    "raylet": raylet_killed,
    "side": side_by_side,
    "same-name": same_name,
    "shm-64": little_shared_memory,
    "run-full": run_folder_full,
    "run-inodes": run_folder_without_inodes,
    "db-full": database_full,
    "db-removed": database_removed,
    "scratch-full": scratch_full,
    "shm-full": shared_memory_full,
}


def one(name: str) -> int:
    """A case, in this process's own mounts."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vgg-scene-", ignore_cleanup_errors=True) as folder:
        scene = Scene(Path(folder))
        CASES[name](scene)
        scene.drained()
    told = {"case": name, "wrong": scene.wrong, "seconds": round(time.monotonic() - began)}
    print(json.dumps(told | scene.seen | {"load": os.getloadavg()[0]}), flush=True)
    return int(bool(scene.wrong))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help=f"of {', '.join(CASES)}")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        return one(options.cases[0])
    codes = []
    for name in options.cases or CASES:
        command = ["unshare", "-m", sys.executable, __file__, name, "--here"]
        codes.append(subprocess.run(command, check=False).returncode)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
