"""Disks that take no more, real ones: what is said of them, and that a record survives them."""

import errno
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fake_workers import experiment, row_at

from vgg_search.engine.search import StudySearcher
from vgg_search.errors import SearchError
from vgg_search.session import claim
from vgg_search.storage.disk import disk_fault, disk_watched
from vgg_search.storage.folder import JOURNAL
from vgg_search.study.record import read_trials, rows_of
from vgg_search.study.segment import Segment
from vgg_search.study.study import Study
from vgg_search.terminal.status import status
from vgg_search.tracking.mlflow_adapter import POOL, connected
from vgg_search.tracking.outbox import Outbox, sending

Disk = Callable[[str], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounts a file system of its own in memory, with these options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no right to mount a file system")
        return folder

    yield mount
    subprocess.run(["umount", "-l", folder], capture_output=True, check=False)


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    file = folder / "rest"
    with file.open("wb", buffering=0) as rest, suppress(OSError):
        while True:
            rest.write(b"\0" * 4096)
    return file


def error_of(action: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011  # each disk has its own
        action()
    return raised.value


def test_a_full_disk(disk: Disk) -> None:
    folder = disk("size=64k")
    fill(folder)
    error = error_of(lambda: (folder / "x").write_bytes(b"\0" * 9999))
    assert disk_fault(error, folder) == f"the disk at {folder}, where {folder} is, is full"


def test_no_inodes(disk: Disk) -> None:
    folder = disk("nr_inodes=3")
    (folder / "a").touch()
    (folder / "b").touch()
    error = error_of((folder / "c").touch)
    assert "has no room for another file" in str(disk_fault(error, folder))


def test_read_only(disk: Disk) -> None:
    folder = disk("size=1m")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    error = error_of((folder / "c").touch)
    assert str(disk_fault(error, folder)).endswith("is read-only")


def test_a_database_on_a_full_disk(disk: Disk) -> None:
    folder = disk("size=64k")
    with sqlite3.connect(folder / "x.db") as database:
        database.execute("CREATE TABLE x (y)")
        database.commit()
        rest = fill(folder)
        error = error_of(lambda: database.execute("INSERT INTO x VALUES (?)", ["y" * 9999]))
        assert str(disk_fault(error, folder)) == f"the disk at {folder}, where {folder} is, is full"
        rest.unlink()
    database.close()


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    script = "import sys; open(sys.argv[1], 'wb', buffering=0).write(b'.' * 9999)"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # noqa: E731
    command = [sys.executable, "-c", script, tmp_path / "x"]
    said = subprocess.run(command, preexec_fn=limit, stderr=subprocess.PIPE, text=True, check=False)
    assert "takes no file that is as large" in str(disk_fault(OSError(said.stderr), tmp_path))


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ECONNREFUSED])
def test_another_error_is_no_disk_s(tmp_path: Path, number: int) -> None:
    assert disk_fault(OSError(number, os.strerror(number)), tmp_path) is None
    assert disk_fault(KeyError("x"), tmp_path) is None
    with pytest.raises(OSError, match=r"Errno"), disk_watched(tmp_path, "runs"):
        raise OSError(number, os.strerror(number))


def test_the_cause_behind_an_error_counts(tmp_path: Path) -> None:
    def wrapped() -> None:
        try:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        except OSError as error:
            raise RuntimeError("a library's own") from error

    assert "quota" in str(disk_fault(error_of(wrapped), tmp_path))


def test_a_search_ends_at_its_first_error_and_goes_on_when_there_is_room(disk: Disk) -> None:
    folder = disk("size=256k") / "study"
    config = experiment(num_trials=50, name="study", storage_path=str(folder.parent), max_epochs=3)
    claim(folder, config, resume=False)
    study = Study(folder, config)
    study.open()
    searcher, rest = StudySearcher(study, lambda: 1), None
    for i in range(50):
        asked = searcher.suggest(str(i))
        if not isinstance(asked, dict):
            break
        segment: Segment = asked["segment"]
        if i == 3:
            rest = fill(folder.parent)
        row = row_at(segment.candidate, segment.until)
        result = {"worker": "w", "rows": [row], "end": "reached"}
        searcher.on_trial_complete(str(i), result)
    study.release()
    assert rest
    assert searcher.fault
    assert study.stopping
    line = (
        r"is full: once it takes files again, go on with python -m vgg_search\.run --resume study "
    )
    with pytest.raises(SearchError, match=line), disk_watched(folder, str(folder.parent)):
        raise searcher.fault
    reported = sum(len(rows_of(trial)) for trial in read_trials(folder))
    assert reported >= 3
    rest.unlink()
    study = Study(folder, config)
    study.open()
    assert study.propose()
    study.release()
    assert (folder / JOURNAL).read_bytes().endswith(b"\n")


def test_a_worker_s_text_names_the_disk(tmp_path: Path) -> None:
    told = RuntimeError("OSError: [Errno 122] Disk quota exceeded: '/dev/shm/x'\nin the worker")
    line = "the disk at /dev/shm, where /dev/shm/x is, is full as far as this user's quota goes"
    assert disk_fault(told, tmp_path) == line


@pytest.mark.parametrize("removed", ["study", "study, and trials made anew", "runs", JOURNAL])
def test_a_run_folder_that_is_removed_ends_the_search_in_a_line(
    tmp_path: Path, removed: str
) -> None:
    folder = tmp_path / "runs" / "study"
    config = experiment(num_trials=50, name="study", storage_path=str(folder.parent))
    claim(folder, config, resume=False)
    study = Study(folder, config)
    study.open()
    searcher, asked = StudySearcher(study, lambda: 1), 0
    while isinstance(given := searcher.suggest(str(asked)), dict):
        if asked == 3:
            if removed == JOURNAL:
                (folder / JOURNAL).unlink()
            else:
                shutil.rmtree(folder.parent if removed == "runs" else folder)
            if "anew" in removed:  # as by a worker of an older version
                (folder / "trials").mkdir(parents=True)
        row = row_at(given["segment"].candidate, given["segment"].until)
        result = {"worker": "w", "rows": [row], "end": "reached"}
        searcher.on_trial_complete(str(asked), result)
        asked += 1
    study.release()
    assert asked == 4
    assert study.stopping
    gone = folder / JOURNAL if removed == JOURNAL else folder
    line = f"^{gone} was removed while it was worked in$"
    with pytest.raises(SearchError, match=line), disk_watched(folder, str(folder.parent)):
        raise searcher.fault or AssertionError
    assert not (folder / JOURNAL).exists()


def test_a_study_on_a_read_only_disk_can_be_looked_at(disk: Disk) -> None:
    folder = disk("size=1m") / "study"
    config = experiment(num_trials=1, name="study", storage_path=str(folder.parent))
    claim(folder, config, resume=False)
    study = Study(folder, config)
    study.open()
    study.release()
    outbox = Outbox(folder, "http://localhost:1", "e", "study")
    outbox.run("study", "study", {}, {})
    del outbox  # which closes its file
    subprocess.run(["mount", "-o", "remount,ro", folder.parent], check=True)
    state = status(folder, sending(folder))
    assert (state["num_trials"], state["unsent"]) == (0, 1)
    with pytest.raises(SearchError, match=r"is read-only$"), disk_watched(folder):
        (folder / "report.html").touch()


def test_a_database_whose_making_failed_is_made_once_there_is_room(disk: Disk) -> None:
    folder = disk("size=300k")
    with pytest.raises(Exception, match=r"full|disk"):
        connected(f"sqlite:///{folder}/mlflow.db")
    assert not list(folder.iterdir())
    subprocess.run(["mount", "-o", "remount,size=20m", folder], check=True)
    client = connected(f"sqlite:///{folder}/mlflow.db")
    assert [experiment.name for experiment in client.search_experiments()] == ["Default"]
    assert POOL not in os.environ


def test_an_outbox_keeps_its_id_on_a_disk_that_fails(tmp_path: Path) -> None:
    """As in a power failure, what is not yet on the disk is lost; by its id its runs are found."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    image.touch()
    os.truncate(image, 16 << 20)
    mount = ["mount", "-o", "loop,errors=remount-ro", str(image), str(folder)]
    made = [["mkfs.ext4", "-q", str(image)], mount]
    if os.geteuid() or any(subprocess.run(one, capture_output=True).returncode for one in made):
        pytest.skip("no right to mount a file system")
    try:
        outbox = Outbox(folder, "http://localhost:1", "e", "study")
        before = outbox.id
        outbox.run("study", "study", {}, {})
        device = folder.stat().st_dev
        name = f"loop{os.minor(device)}"
        assert os.major(device) == 7, "never the machine's own"
        Path("/sys/fs/ext4", name, "trigger_fs_error").write_text("1")
        del outbox  # which closes its file
        subprocess.run(["umount", folder], check=True)
        subprocess.run(mount, check=True)
        again = Outbox(folder, "http://localhost:1", "e", "study")
        assert again.id == before
        del again
    finally:
        subprocess.run(["umount", "-l", folder], capture_output=True, check=False)


def test_a_folder_that_cannot_be_begun_is_not_there(disk: Disk) -> None:
    folder = disk("size=4k") / "study"
    fill(folder.parent)
    config = experiment(name="study", storage_path=str(folder.parent))
    line = r"is full: once it takes files again, start again$"
    with pytest.raises(SearchError, match=line), disk_watched(folder, str(folder.parent)):
        claim(folder, config, resume=False)
    assert not folder.exists()
