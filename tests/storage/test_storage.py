"""Files of a study, in a folder and in a bucket, and a run folder that is copied to one."""

import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from conftest import free_port
from fake_workers import Workers, experiment, opened, record, search
from nodes import s3_server

from vgg_search.config import Config
from vgg_search.data.splits import Splits
from vgg_search.engine.checkpoints import TrainingCheckpoints
from vgg_search.space.candidate import Candidate
from vgg_search.storage import mirror
from vgg_search.storage.folder import FolderInUseError, FolderLock, in_use, local_folder, new_name
from vgg_search.storage.mirror import Checkpoints, Mirror, bring
from vgg_search.storage.place import Place, StorageError
from vgg_search.study.segment import Segment
from vgg_search.study.tables import write_tables
from vgg_search.tracking.outbox import Outbox
from vgg_search.training.model import build
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident, Training


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket; its credentials are in this process's environment."""
    pytest.importorskip("moto")
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield "s3://bucket"


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        place = Place.of(str(tmp_path), "study")
        place.make()
        return place
    return Place.of(request.getfixturevalue("bucket"), tmp_path.name)


def test_what_is_written_is_read_everywhere(place: Place) -> None:
    with place.writing("trials/7") as folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "last.pt").write_bytes(b"state")
    with place.reading("trials/7/last.pt") as file:
        assert file
        assert file.read_bytes() == b"state"
    with place.reading("trials/8/last.pt") as file:
        assert file is None
    place.remove("trials/7")
    place.remove("trials/7")
    with place.reading("trials/7/last.pt") as file:
        assert file is None


def test_what_is_removed_leaves_the_rest(bucket: str) -> None:
    import boto3

    place = Place.of(bucket, "removes")
    for number in (1, 2, 10):
        kept(place, number, "last.pt", "best/model.json")
    place.remove("trials/1")  # a folder, in whose name another's begins
    place.remove("trials/2/last.pt")  # a file
    for name in ("nothing", "trials/3", "trials/2/nothing.pt"):
        place.remove(name)
    left = {"trials/2/best/model.json", "trials/10/last.pt", "trials/10/best/model.json"}
    assert place.files().keys() == left
    # Nor do the empty keys stay by which pyarrow marks a folder
    listed = boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix="removes/trials/1/")
    assert listed["KeyCount"] == 0


def test_a_block_that_fails_leaves_nothing_in_the_bucket(bucket: str) -> None:
    place = Place.of(bucket, "fails")
    with suppress(ZeroDivisionError), place.writing("trials/7") as folder:
        (folder / "last.pt").write_bytes(b"half")
        raise ZeroDivisionError
    assert place.files() == {}


@pytest.mark.parametrize(
    ("root", "text"),
    [
        ("s3://nobody", "^s3://nobody/s cannot be reached: .*bucket does not exist"),
        ("s3:///x", "^s3:///x/s cannot be reached: Missing bucket name"),
        ("foo://x/y", "^foo://x/y/s cannot be reached: Unrecognized filesystem type"),
    ],
)
@pytest.mark.usefixtures("bucket")
def test_a_storage_that_is_not_there_is_one_line(root: str, text: str) -> None:
    with (
        pytest.raises(StorageError, match=text) as raised,
        Place.of(root, "s").writing("a") as folder,
    ):
        (folder / "file").touch()
    assert len(str(raised.value).splitlines()) == 1


def test_the_run_folder_stays_beside_the_driver() -> None:
    assert local_folder("s3://bucket/prefix", "study") == Path("runs/study")
    assert local_folder("/shared", "study") == Path("/shared/study")
    assert Place.of("s3://bucket/prefix/", "study").root == "s3://bucket/prefix/study"


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def kept(place: Place, number: int, *names: str) -> None:
    for name in names:
        folder, _, file = f"trials/{number}/{name}".rpartition("/")
        with place.writing(folder) as here:
            here.mkdir(parents=True, exist_ok=True)
            (here / file).write_text(f"{number} {name}")


def test_a_study_goes_on_from_its_copy(bucket: str, tmp_path: Path) -> None:
    """Half a search here, the disk is lost, and the other half is what it would have been."""
    whole = record(search(tmp_path / "whole", experiment(num_trials=8), Workers()))
    config, workers = experiment(num_trials=8), Workers()
    here, place = tmp_path / "here" / "whole", Place.of(bucket, "goes-on")
    here.parent.mkdir()
    checkpoints = Mirror(here, place)
    with opened(here, config) as study:
        (here / "config.yaml").write_text(config.dump())
        (here / "champion").mkdir()
        (here / "champion" / "model.json").write_text("card")
        with closing(sqlite3.connect(here / "outbox.db")) as outbox:
            outbox.execute("PRAGMA journal_mode=WAL")
            outbox.execute("CREATE TABLE rows (a)")
            outbox.execute("INSERT INTO rows VALUES (1)")
            outbox.commit()
            workers.run(study, turns=9)
            checkpoints.copy()
    there = tmp_path / "there" / "whole"
    bring(place, there)
    with closing(sqlite3.connect(there / "outbox.db")) as outbox:
        assert outbox.execute("SELECT a FROM rows").fetchall() == [(1,)]
    assert {file.relative_to(there).as_posix() for file in there.rglob("*.*")} == {
        *("champion/model.json", "config.yaml", "outbox.db", "study.journal")
    }
    assert record(search(there, config, workers)) == whole
    longer = (there / "study.journal").stat().st_size
    bring(place, there)  # what is here is ahead of it
    assert (there / "study.journal").stat().st_size == longer


def test_keys_of_a_bucket_cannot_lead_out_of_the_run_folder(bucket: str, tmp_path: Path) -> None:
    import boto3

    keys = ["study.journal", "a/b", "../../up", "trials/../../../out", f"/{tmp_path}/abs", "a/./c"]
    for key in keys:
        boto3.client("s3").put_object(Bucket="bucket", Key=f"deep/s/{key}", Body=b"x")
    folder = tmp_path / "x" / "runs" / "s"
    bring(Place.of(f"{bucket}/deep", "s"), folder)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(files) == [folder / "a" / "b", folder / "study.journal"]


def test_the_tables_are_copied_and_brought_too(bucket: str, tmp_path: Path) -> None:
    here, there, place = tmp_path / "here", tmp_path / "there", Place.of(bucket, "tables")
    write_tables(here, search(here, experiment(num_trials=2), Workers()).optuna.get_trials())
    Mirror(here, place).copy()
    bring(place, there)
    for name in ("trials.csv", "epochs.csv"):
        assert (there / name).read_text() == (here / name).read_text()


def test_a_round_puts_each_file_once_and_the_journal_first(bucket: str, tmp_path: Path) -> None:
    """While the search goes on writing: what MLflow is to get is then never behind the record."""
    folder, puts = tmp_path / "s", list[str]()
    search(folder, experiment(num_trials=1), Workers())
    Outbox(folder, "http://127.0.0.1:9", "vgg-search", "s").run("study", "s", {}, {})
    for name in ("config.yaml", "summary.json", "trials.csv"):
        (folder / name).write_text(name)

    class Noted(Place):
        def put(self, file: Path, name: str) -> None:
            super().put(file, name)
            puts.append(name)
            with (folder / "study.journal").open("a") as journal:
                journal.write("\n")

    Mirror(folder, Noted.of(bucket, "round")).copy()
    names = {"study.journal", "outbox.db", "config.yaml", "summary.json", "trials.csv"}
    assert puts[0] == "study.journal"
    assert sorted(puts) == sorted(names)


def test_what_a_killed_driver_left_of_its_outbox_gives_way(bucket: str, tmp_path: Path) -> None:
    killed, there, here = (tmp_path / name / "s" for name in ("killed", "there", "here"))
    for folder in (killed, there, here):
        folder.mkdir(parents=True)
    search(killed, experiment(num_trials=1), Workers())
    search(here, experiment(num_trials=2), Workers())

    def outbox(folder: Path, count: int) -> Outbox:
        made = Outbox(folder, "http://127.0.0.1:9", "vgg-search", "s")
        for i in range(count):
            made.run(f"trial/{i}", "name", {"kind": "trial"}, {"lr": i})
        return made

    left = outbox(killed, 200)
    for file in killed.iterdir():  # as they are while the driver lives: the last is in the log
        shutil.copy(file, there)
    assert (there / "outbox.db-wal").stat().st_size > 0
    ours = outbox(here, 3)
    place = Place.of(bucket, "gives-way")
    Mirror(here, place).copy()
    bring(place, there)
    assert outbox(there, 0).open_runs == ours.open_runs == ["trial/0", "trial/1", "trial/2"]
    assert len(left.open_runs) == 200


def test_checkpoints_are_kept_dropped_and_brought(bucket: str, tmp_path: Path) -> None:
    place, here, there = Place.of(bucket, "kept"), tmp_path / "s", tmp_path / "t"
    search(here, experiment(num_trials=2), Workers())
    kept(place, 0, "last.pt", "best/model.json")
    kept(place, 1, "last.pt", "best/model.json")
    kept(place, 2, "last.pt", "best/model.json")  # still being trained
    checkpoints = Mirror(here, place)
    assert checkpoints.numbers() == {0, 1, 2}
    assert not checkpoints.is_kept(0)
    assert (checkpoints.keep(0) / "model.json").read_text() == "0 best/model.json"
    assert checkpoints.is_kept(0)
    checkpoints.drop(1)
    assert "trials/1/last.pt" in place.files()  # the record that gives it up is not there yet
    checkpoints.copy()
    trials = {name for name in place.files() if name.startswith("trials")}
    assert trials == {"trials/0/best/model.json", "trials/2/last.pt", "trials/2/best/model.json"}
    bring(place, there)
    assert Mirror(there, place).is_kept(0)
    assert not Mirror(there, place).is_kept(2)


def test_checkpoints_in_the_folder_itself(tmp_path: Path) -> None:
    place, checkpoints = Place(str(tmp_path)), Checkpoints(tmp_path)
    kept(place, 3, "last.pt", "last.77.tmp", "best/model.json")
    assert not checkpoints.is_kept(3)
    assert checkpoints.numbers() == {3}
    assert checkpoints.keep(3) == tmp_path / "trials" / "3" / "best"
    assert checkpoints.is_kept(3)
    assert [path.name for path in (tmp_path / "trials" / "3").iterdir()] == ["best"]
    checkpoints.drop(3)
    assert not checkpoints.is_kept(3)
    assert checkpoints.numbers() == set()


def test_one_driver_at_a_time(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "COPY_SECONDS", 0.5)
    monkeypatch.setattr(mirror, "ALIVE_SECONDS", 2.5)  # of a bucket whose clock ticks in seconds
    place = Place.of(bucket, "one")
    for name in ("a", "b"):
        search(tmp_path / name, experiment(num_trials=1), Workers())
    first, second = Mirror(tmp_path / "a", place), Mirror(tmp_path / "b", place)
    first.claim()
    first.start()
    with pytest.raises(FolderInUseError, match=r"^study b is in use by a running search$"):
        second.claim()
    first._ended.set()  # gone without a word
    first._left.set()
    first._copier.join()
    first._signer.join()
    assert platform.node() in "".join(place.files(mirror.DRIVER))
    second.claim()  # and ends before it has copied anything
    second.stop()
    assert not place.files(mirror.DRIVER)


def test_a_driver_lives_while_it_copies(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "COPY_SECONDS", 0.5)
    monkeypatch.setattr(mirror, "ALIVE_SECONDS", 2.5)
    place, at_it, refused = Place.of(bucket, "long"), threading.Event(), threading.Event()
    for name in ("a", "b"):
        search(tmp_path / name, experiment(num_trials=1), Workers())

    class LongRecord(Mirror):
        def copy(self) -> None:
            super().copy()
            if self._copier.is_alive():
                at_it.set()
                refused.wait(60)

    first = LongRecord(tmp_path / "a", place)
    first.claim()
    first.start()
    at_it.wait()
    with pytest.raises(FolderInUseError):
        Mirror(tmp_path / "b", place).claim()
    refused.set()
    first.stop()
    assert not place.files(mirror.DRIVER)


def test_of_two_drivers_that_begin_at_once_one_goes_on(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "COPY_SECONDS", 1.0)
    monkeypatch.setattr(mirror, "ALIVE_SECONDS", 3.0)
    place, together = Place.of(bucket, "both"), threading.Barrier(2)
    drivers = []
    for name in ("a", "b"):
        search(tmp_path / name, experiment(num_trials=1), Workers())
        drivers.append(Mirror(tmp_path / name, place))
        drivers[-1].sign += name  # two processes

    def start(driver: Mirror) -> bool:
        together.wait()
        try:
            driver.claim()
        except FolderInUseError:
            return False
        driver.start()
        return True

    with ThreadPoolExecutor(2) as pool:
        started = list(pool.map(start, drivers))
    assert sorted(started) == [False, True]
    drivers[started.index(True)].stop()


def test_a_name_is_nobody_else_s(tmp_path: Path) -> None:
    """Of searches that are started without one, in the same second."""
    names = [new_name("quick", tmp_path) for _ in range(100)]
    assert len(set(names)) == 100
    assert all(Config(name=name).name == name for name in names)


def test_an_outage_is_said_once_and_outlived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mirror, "COPY_SECONDS", 0.1)
    monkeypatch.setattr(mirror, "ALIVE_SECONDS", 0.1)
    search(tmp_path / "s", experiment(num_trials=1), Workers())
    pytest.importorskip("moto")
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        checkpoints = Mirror(tmp_path / "s", Place.of("s3://bucket", "outage"))
        checkpoints.claim()
        checkpoints.start()
    checkpoints.drop(0)
    checkpoints.stop()
    assert "outage cannot be reached" in caplog.text
    assert os.path.exists(tmp_path / "s" / "study.journal")


def test_an_outbox_that_cannot_be_read_for_a_while_stops_no_copying(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mirror, "COPY_SECONDS", 0.1)
    monkeypatch.setattr(mirror, "ALIVE_SECONDS", 0.1)
    folder, place = tmp_path / "s", Place.of(bucket, "unreadable")
    search(folder, experiment(num_trials=1), Workers())
    outbox = folder / "outbox.db"
    with closing(sqlite3.connect(outbox)) as made:
        made.execute("CREATE TABLE rows (a)")
    whole = outbox.read_bytes()
    checkpoints = Mirror(folder, place)
    checkpoints.claim()
    checkpoints.start()
    outbox.write_bytes(b"no database")
    until(lambda: "file is not a database; the run folder is copied when it can be" in caplog.text)
    place.remove("outbox.db")
    outbox.write_bytes(whole)
    until(lambda: "outbox.db" in place.files())
    outbox.write_bytes(b"no database either")
    checkpoints.stop()
    assert "file is not a database; the last of the run folder is here only" in caplog.text
    assert not checkpoints._signer.is_alive()
    assert not place.files(mirror.DRIVER)


def test_a_trial_outlives_an_outage_and_a_champion_says_so(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")  # nobody listens
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    place = Place.of("s3://bucket/out", tmp_path.name)
    candidate = Candidate(
        arch=((1, 8),), lr=0.05, batch_size=64, dropout=0.0, hidden_features=32, num_hidden=1
    )
    network, recipe = build(candidate.network(28), 0), Recipe(max_epochs=2, **candidate.recipe())
    training = Training(network, Resident.load(splits, "cpu"), recipe, 0)
    (row,) = training.run(1)
    segment = Segment(number=7, candidate=candidate, seed=0, until=1, known=0, keep_above=0.0)
    TrainingCheckpoints.of_trial(place, segment, 1).save(row, training)
    with pytest.raises(StorageError, match="cannot be reached"):
        TrainingCheckpoints(place, "trials/champion", 1).save(row, training)


def test_the_lock_of_a_dead_driver_is_taken_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from vgg_search.storage.folder import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1]))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / ".driver.lock").exists()
    assert not in_use(tmp_path)
    began = time.monotonic()
    FolderLock(tmp_path).release()
    assert time.monotonic() - began < 1
