"""What a search makes of a disk that takes no more: five faults, each under each of four places.

    python tests/faults/disks.py                       # all 20, half an hour; as root
    python tests/faults/disks.py run-full db-quota     # some

run, scratch, shm, db   the run folder; Ray's logs and sockets, and other temporary files; /dev/shm;
                        the folder of MLflow's SQLite file
full        no block is free (tmpfs)
inodes      there is room for no other file (tmpfs)
quota       nothing more may be written (btrfs on a loop device, the limit of its quota group)
read-only   as after a damaged block (ext4 on a loop device, errors=remount-ro)
removed     all that was in it is deleted

Each is a search (`scene`) whose disk is broken once it has trained, in a mount namespace of its
own, and is resumed or synced once the disk is well again. What must hold then is in `scene` and
`invariants`; of a run folder that was removed there is nothing to resume.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path

from mlflow import MlflowClient
from random_kills import DRAINED_SECONDS
from scene import Scene, campaign

MEBIBYTES = {"run": 48, "scratch": 120, "shm": 300, "db": 60}
INODES = {"run": 400, "scratch": 4000, "shm": 400, "db": 300}
LEAST_IMAGE = 128  # MiB of a btrfs that can be mounted
# SQLite has an index of its log in memory that is a file's. On a disk that copies what is written
# the kernel may find no room for a page of it, and ends the process by SIGBUS
CODES = {("run", "quota"): (1, -signal.SIGBUS)}


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Disk(ABC):
    """A disk at `place`, which lives until the namespace ends."""

    def __init__(self, place: Path, size: int, inodes: int, image: Path) -> None:
        """`size` MiB; of a loop device `image` is the file."""
        self.place, self.size, self.inodes, self.image = place, size, inodes, image

    def make(self) -> None:
        options = f"size={self.size}m,nr_inodes={self.inodes}"
        run("mount", "-t", "tmpfs", "-o", options, "tmpfs", self.place)

    @abstractmethod
    def fault(self) -> None:
        """From now on it takes no more."""

    @abstractmethod
    def mend(self) -> None:
        """It takes more again."""


class Full(Disk):
    def fault(self) -> None:
        with (self.place / "rest").open("wb", buffering=0) as file:
            for size in (65536, 512):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def mend(self) -> None:
        (self.place / "rest").unlink()


class WithoutInodes(Disk):
    def fault(self) -> None:
        rest = self.place / "rest"
        rest.mkdir()
        try:
            for i in range(10**6):
                (rest / str(i)).touch()
        except OSError:
            pass

    def mend(self) -> None:
        shutil.rmtree(self.place / "rest")


class Removed(Disk):
    def fault(self) -> None:
        for path in self.place.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def mend(self) -> None:
        pass


class OverQuota(Full):
    def make(self) -> None:
        run("truncate", "-s", f"{max(2 * self.size, LEAST_IMAGE)}M", self.image)
        run("mkfs.btrfs", "-q", self.image)
        run("mount", "-o", "loop", self.image, self.place)
        run("btrfs", "quota", "enable", self.place)
        run("btrfs", "qgroup", "limit", f"{self.size}M", self.place)


class ReadOnly(Disk):
    def make(self) -> None:
        run("truncate", "-s", f"{self.size}M", self.image)
        run("mkfs.ext4", "-q", self.image)
        self._mount()

    def _mount(self) -> None:
        run("mount", "-o", "loop,errors=remount-ro", self.image, self.place)

    def fault(self) -> None:
        device = Path(run("findmnt", "-n", "-o", "SOURCE", self.place)).name
        assert device.startswith("loop"), device  # never the machine's own
        Path("/sys/fs/ext4", device, "trigger_fs_error").write_text("1")

    def mend(self) -> None:
        end = time.monotonic() + DRAINED_SECONDS  # Ray's agents may be the last to end
        while time.monotonic() < end and not self._unmounted():
            time.sleep(1)
        self._mount()

    def _unmounted(self) -> bool:
        command = ["umount", str(self.place)]
        return not subprocess.run(command, capture_output=True, check=False).returncode


FAULTS: dict[str, type[Disk]] = {
    "full": Full,
    "inodes": WithoutInodes,
    "quota": OverQuota,
    "read-only": ReadOnly,
    "removed": Removed,
}


def case(place: str, fault: str, scene: Scene) -> None:
    with tempfile.TemporaryDirectory(prefix="v", dir="/tmp") as short:  # a socket's path is short
        folders = {"scratch": Path(short), "shm": Path("/dev/shm")}
        folder = folders.get(place, scene.folder / {"run": "runs"}.get(place, place))
        folder.mkdir(exist_ok=True)
        disk = FAULTS[fault](folder, MEBIBYTES[place], INODES[place], scene.folder / "image")
        disk.make()
        variables = {"RAY_TMPDIR": short, "TMPDIR": short} if place == "scratch" else {}
        database = f"sqlite:///{folder}/mlflow.db"
        flags = ["--tracking-uri", database] if place == "db" else []
        driver = scene.start(*flags, **variables)
        scene.met(driver)
        disk.fault()
        began = time.monotonic()
        code = scene.end(driver, *CODES.get((place, fault), (1,) if place == "run" else (0, 1)))
        scene.seen["ended after"] = round(time.monotonic() - began, 1)
        scene.drained()
        if (place, fault) == ("run", "removed"):
            nothing_runs(scene)
        else:
            disk.mend()
            if place == "db":
                synced(scene, folder)
            elif code:
                scene.resume(**variables)
            else:
                scene.holds()
            scene.drained()
        run("umount", "-l", folder)


def nothing_runs(scene: Scene) -> None:
    """Of a study whose folder is gone, no run is left RUNNING."""
    client = MlflowClient(f"sqlite:///{scene.folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run_ in client.search_runs(experiments):
        if run_.info.status == "RUNNING":
            scene.wrong.append(f"run {run_.info.run_name} is RUNNING")


def synced(scene: Scene, folder: Path) -> None:
    """`sync` sends the rest, and MLflow has all of it."""
    command = [sys.executable, "-m", "vgg_search", "sync", scene.study.name, "--timeout", "100"]
    told = subprocess.run(command, cwd=scene.folder, capture_output=True, text=True, check=False)
    scene.seen["sync"] = [told.returncode, (told.stdout + told.stderr).strip()[-300:]]
    if told.returncode:
        scene.wrong.append(f"sync ends with {told.returncode}")
        return
    (scene.folder / "mlflow.db").symlink_to(folder / "mlflow.db")
    scene.holds()


CASES = {f"{place}-{fault}": partial(case, place, fault) for place in MEBIBYTES for fault in FAULTS}

if __name__ == "__main__":
    sys.exit(campaign(__doc__, CASES))
