"""What a search makes of its surroundings: a clock that jumps, a neighbour, a pause, little room.

    python tests/faults/surroundings.py                    # all, ten minutes; as root
    python tests/faults/surroundings.py side clock+        # some

Each case is a small real search (`scene`); for the disks that take no more see `disks.py`.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

from invariants import of_the_record, of_the_tables, processes, record, trained
from mlflow import MlflowClient
from scene import NUM_TRIALS, Cases, Scene, campaign

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
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/dev/shm"], check=True)
    scene.end(scene.start(), 0)
    scene.holds()


CASES: Cases = {
    "clock+": clock_forward,
    "clock-": clock_back,
    "suspended": suspended,
    "raylet": raylet_killed,
    "side": side_by_side,
    "same-name": same_name,
    "shm-64": little_shared_memory,
}

if __name__ == "__main__":
    sys.exit(campaign(__doc__, CASES))
