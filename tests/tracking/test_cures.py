"""What a real MLflow refuses for now, for good, or of one thing only; each fault put and cured."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest
from conftest import MlflowServer
from mlflow import MlflowClient
from proxy import Call, Proxy, error, proxied
from test_sender import EPOCH, champion, check_study, put_study, refusals, send, servable, trackers

from vgg_search.storage.addresses import sqlite_address
from vgg_search.tracking.check import ask, look
from vgg_search.tracking.choice import Check
from vgg_search.tracking.outbox import Outbox
from vgg_search.tracking.sender import MlflowTracker, sync
from vgg_search.tracking.tracker import TrackerError

pytestmark = [  # MLflow's own
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*type hint is inferred as AnyType:UserWarning"),
]
NAME = "vgg-search"


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return sqlite_address(tmp_path / "mlflow.db")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Iterator[MlflowServer]:
    """One for all tests, each of which has an experiment of its own."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "server.db")
    server = MlflowServer(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server: MlflowServer) -> Iterator[Proxy]:
    with proxied(server.uri) as proxy:
        yield proxy


@pytest.fixture
def make(tmp_path: Path, uri: str) -> Iterator[Callable[..., MlflowTracker]]:
    with trackers(tmp_path, uri) as make:
        yield make


def until(holds: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def names(uri: str, experiment: str) -> dict[str, Any]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


def test_a_deleted_experiment_is_said_with_its_cure_and_found_by_sync(make, uri):
    client = MlflowClient(uri)
    number = client.create_experiment(NAME)
    client.delete_experiment(number)
    tracker = make()
    put_study(tracker, trials=2, epochs=2)
    put = tracker.unsent
    tracker.start()
    until(lambda: tracker.error)
    assert tracker.close(0.5) == put
    cure = rf"experiment 'vgg-search' is deleted.*experiments restore --experiment-id {number}"
    assert tracker.refused == 0
    with pytest.raises(TrackerError, match=cure):
        sync(tracker.folder, servable, 60)
    client.restore_experiment(number)
    assert sync(tracker.folder, servable, 120)["unsent"] == 0
    check_study(uri, trials=2, epochs=2)


def test_an_experiment_deleted_in_the_middle_gets_all_once_it_is_restored(make, uri, caplog):
    tracker, client = make(), MlflowClient(uri)
    tracker.run("study", "s1", {"kind": "study"}, {"num_trials": 3})
    tracker.start()
    assert tracker.flush(60) == 0
    number = client.get_experiment_by_name(NAME).experiment_id
    client.delete_experiment(number)
    put_study(tracker, trials=3, epochs=2)
    until(lambda: tracker.error)
    tracker.flush(3)
    assert "is deleted" in str(tracker.error)
    assert tracker.refused == 0
    assert len([r for r in caplog.records if "tracker" in r.message]) == 1
    client.restore_experiment(number)
    assert tracker.close(60) == 0
    check_study(uri, trials=3, epochs=2)


def test_a_deleted_run_waits_for_itself_alone(make, uri):
    tracker, client = make(), MlflowClient(uri)
    for key in ("trial/0", "trial/1"):
        tracker.run(key, key, {"kind": "trial"}, {})
    tracker.start()
    assert tracker.flush(60) == 0
    lost = tracker.results("trial/0")["run_id"]
    client.delete_run(lost)
    for key in ("trial/0", "trial/1"):
        tracker.log(key, {"val_accuracy": 0.5}, 1)
        tracker.end(key, "FINISHED")
    until(lambda: tracker.unsent == 2)
    tracker.flush(1)
    assert (tracker.unsent, tracker.refused) == (2, 0)
    assert f"mlflow runs restore --run-id {lost}" in str(tracker.error)
    client.restore_run(lost)
    assert tracker.close(60) == 0
    assert [run.data.metrics for run in names(uri, NAME).values()] == [{"val_accuracy": 0.5}] * 2


def test_a_run_that_mlflow_has_no_more_is_made_again(make, uri, tmp_path, empty_database):
    tracker = make()
    tracker.run("trial/0", "0 net", {"kind": "trial"}, {"lr": 0.1})
    send(tracker)
    shutil.copy(empty_database, tmp_path / "mlflow.db")  # as if its database was thrown away
    again = make()
    again.log("trial/0", {"val_accuracy": 0.5}, 1)
    send(again)
    (run,) = names(uri, NAME).values()
    assert (run.data.params, run.data.metrics) == ({"lr": "0.1"}, {"val_accuracy": 0.5})


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403, 408, 429, 499, 500, 503])
def test_what_may_pass_later_is_kept(make, proxy, status):
    """Rights, load, and a server that is in trouble."""
    failed: list[Call] = []

    def busy(call: Call) -> tuple[int, str] | None:
        if call.path == "mlflow/runs/log-batch" and len(failed) < 2:
            failed.append(call)
            return status, "later"
        return None

    proxy.answer = busy
    tracker = make(to=proxy.uri, experiment=f"later-{status}")
    put_study(tracker, trials=1, epochs=2)
    send(tracker)
    assert (len(failed), tracker.refused) == (2, 0)
    assert names(proxy.uri, f"later-{status}")["0 net"].data.metrics.keys() == set(EPOCH)


@pytest.mark.slow
def test_each_row_is_sent_once(make, proxy):
    """What is sent twice is one point to MLflow, so that only the calls can tell."""
    tracker = make(to=proxy.uri, experiment="once")
    put_study(tracker, trials=3, epochs=4)
    send(tracker)
    batches = proxy.made("mlflow/runs/log-batch")
    points = Counter(
        (body["run_id"], point["key"], point["step"])
        for body in batches
        for point in body.get("metrics", [])
    )
    assert len(points) == 3 * 4 * len(EPOCH) + 1
    assert set(points.values()) == {1}
    assert len(proxy.made("mlflow/runs/create")) == 4
    ends = [body for body in proxy.made("mlflow/runs/update") if body["status"] == "FINISHED"]
    assert len(ends) == 4


@pytest.mark.slow
def test_a_run_that_is_refused_keeps_its_rows_and_holds_up_no_other(make, proxy):
    refusing = [True]

    def refuse(call: Call) -> tuple[int, str] | None:
        if call.path == "mlflow/runs/create" and call.body["run_name"] == "0 net" and refusing:
            return error(400, "INVALID_PARAMETER_VALUE")
        return None

    proxy.answer = refuse
    tracker = make(to=proxy.uri, experiment="creating")
    put_study(tracker, trials=3, epochs=2)
    tracker.start()
    tracker.flush(6)
    assert names(proxy.uri, "creating").keys() == {"s1", "1 net", "2 net"}
    assert tracker.refused == 0
    assert "INVALID_PARAMETER_VALUE of the proxy" in str(tracker.error)
    refusing.clear()
    assert tracker.close(60) == 0
    found = names(proxy.uri, "creating")
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert found["0 net"].data.metrics.keys() == set(EPOCH)


def test_a_refused_row_is_listed_with_its_reason(make, uri):
    tracker = make()
    tracker.run("trial/0", "0 net", {}, {"lr": 1})
    tracker.log("trial/0", {"a(b)": 1.0, "val_accuracy": 0.5}, 1)
    tracker.artifact("trial/0", tracker.folder / "gone.txt")
    send(tracker)
    assert len(refusals(tracker)) == 2
    result = sync(tracker.folder, servable, 60)
    metric, artifact = result["refusals"]
    assert metric.startswith("trial/0: metric a(b): Invalid ")
    assert artifact.startswith("trial/0: artifact gone.txt: [Errno 2]")
    assert result["refused"] == 2
    assert names(uri, NAME)["0 net"].data.metrics == {"val_accuracy": 0.5}


@pytest.mark.slow
def test_artifacts_that_cannot_be_stored_wait_by_themselves(make, tmp_path):
    """The server's artifact root is below a file, which not even root can make a folder of."""
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "file").write_text("")
    server = MlflowServer(folder, artifacts=str(folder / "file" / "root"))
    server.start()
    try:
        with proxied(server.uri) as proxy:
            tracker = make(to=proxy.uri)
            tracker.run("study", "s1", {"kind": "study"}, {"num_trials": 3})
            (tracker.folder / "report.html").write_text("report")
            tracker.artifact("study", tracker.folder / "report.html")
            put_study(tracker, trials=3, epochs=2)
            tracker.artifact("trial/0", tracker.folder / "report.html")
            tracker.start()
            until(lambda: tracker.unsent == 2)
            began, before = time.monotonic(), len(proxy.calls)
            while time.monotonic() < began + 8:
                tracker.flush(0.5)
            assert len(proxy.calls) - before < 30
            assert tracker.unsent == 2
            check_study(proxy.uri, trials=3, epochs=2)
    finally:
        server.kill()


def test_a_lock_of_a_dead_process_is_not_waited_for(make, uri):
    """What a process leaves that was killed with -9 while it sent."""
    tracker = make()
    put_study(tracker, trials=1, epochs=1)
    code = (
        "import fcntl, os, sys\n"
        "lock = open(sys.argv[1], 'w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "lock.write(str(os.getpid()))\n"
        "lock.flush()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tracker.folder / "outbox.lock")], check=False)
    assert (tracker.folder / "outbox.lock").read_text()
    tracker.start()
    assert tracker.close(30) == 0
    check_study(uri, trials=1, epochs=1)


def test_a_study_in_a_moved_project_finds_the_database_beside_it(tmp_path, empty_database):
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "runs" / "s1").mkdir(parents=True)
    shutil.copy(empty_database, old / "mlflow.db")
    first = MlflowTracker(
        old / "runs" / "s1", sqlite_address(old / "mlflow.db"), NAME, "s1", servable
    )
    put_study(first, trials=1, epochs=1)
    send(first)
    old.rename(new)
    stored = Outbox.stored(new / "runs" / "s1")
    assert stored["tracking_uri"] == sqlite_address(new / "mlflow.db")
    again = MlflowTracker(new / "runs" / "s1", **stored, servable=servable)
    assert again.results("study") == first.results("study")
    again.tag("study", state="x")
    again.close(0)
    with pytest.raises(TrackerError, match=r"keeps its files in .*/old/mlruns/vgg-search: "):
        sync(new / "runs" / "s1", servable, 30)
    assert not old.exists()


@pytest.fixture
def share(tmp_path: Path, uri: str) -> Path:
    """Where the experiment keeps its files, as on a disk that can be unmounted."""
    (tmp_path / "nas" / "us").mkdir(parents=True)
    place = tmp_path / "nas" / "us" / "mlruns" / NAME
    MlflowClient(uri).create_experiment(NAME, place.as_uri())
    return tmp_path / "nas"


@pytest.mark.parametrize("kind", ["artifact", "register"])
def test_files_wait_while_their_place_is_away_and_it_is_not_made_anew(make, uri, share, kind):
    tracker, away = make(), share.with_name("away")
    tracker.run("champion", "net", {"kind": "champion"}, {})
    tracker.start()
    assert tracker.flush(60) == 0
    share.rename(away)
    folder = champion(tracker.folder / "champion", val_accuracy=0.9)
    if kind == "artifact":
        tracker.artifact("champion", folder, "champion")
    else:
        tracker.register("champion", "net", folder)
    until(lambda: tracker.error or not tracker.unsent)
    tracker.flush(3)  # it is tried again
    assert (tracker.unsent, tracker.refused) == (1, 0)
    cause = f"keeps its files in {share}/us/mlruns/{NAME}: there is no such folder; mend that, or"
    assert cause in str(tracker.error)
    assert "Errno" not in str(tracker.error)
    assert not share.exists()
    away.rename(share)
    assert tracker.close(60) == 0
    assert tracker.refused == 0
    (run,) = names(uri, NAME).values()
    files = MlflowClient(uri).list_artifacts(run.info.run_id, "champion")
    assert [Path(file.path).name for file in files] == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("folder", ["a%2Fb", "c d#e", "f?g", "ué", "x@y:z", "h&i=j", "100%"])
def test_a_folder_of_any_name_keeps_its_own_records(tmp_path, empty_database, monkeypatch, folder):
    here = tmp_path / folder
    for place in (here, tmp_path / "a" / "b", tmp_path / "f"):
        place.mkdir(parents=True, exist_ok=True)
    shutil.copy(empty_database, here / "mlflow.db")
    monkeypatch.chdir(here)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from vgg_search.tracking.choice import connect

    (here / "runs" / "s1").mkdir(parents=True)
    tracker = connect(here / "runs" / "s1", None, "/../ab/so%2Flute #?", "s1", servable)
    tracker.run("study", "s1", {}, {})
    (here / "report.html").write_text("report")
    tracker.artifact("study", here / "report.html")
    tracker.start()
    assert tracker.close(60) == 0, tracker.error
    assert tracker.refused == 0
    files = {p.relative_to(here).parts[:2] for p in here.rglob("report.html")}
    assert files == {("report.html",), ("mlruns", "ab-so-2Flute-")}
    databases = [p for p in tmp_path.rglob("*.db") if p.name != "outbox.db"]
    assert databases == [here / "mlflow.db"]
    assert runs_of(tracker.uri, "/../ab/so%2Flute #?") == ["s1"]


def runs_of(uri: str, experiment: str) -> list[str]:
    return list(names(uri, experiment))


def test_a_database_of_another_version_is_refused_in_mlflows_words(uri, tmp_path):
    Check(uri, NAME).result()
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'another'")
    with pytest.raises(TrackerError, match="run 'mlflow db upgrade <database_uri>'"):
        Check(uri, NAME).result()


@pytest.mark.slow
def test_databricks_without_credentials_is_refused(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("DATABRICKS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # where they would be
    with pytest.raises(TrackerError, match="cannot take the study: Reading Databricks credential"):
        ask("databricks", NAME)


def test_a_tracker_that_is_away_stops_no_study(tmp_path):
    for address in (
        "http://127.0.0.1:9",
        "https://127.0.0.1:9/path",
        "http://no-such-host.invalid",
    ):
        Check(address, NAME).result()
    with proxied("http://127.0.0.1:9") as away:  # a proxy whose server is away
        Check(away.uri, NAME).result()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["http://me:s3cret@127.0.0.1", "https://me:12345@host/path"])
def test_a_password_without_a_port_is_left_to_mlflow(address):
    """Of Python's own client it would be the port, and be shown."""
    assert not look(address, NAME)


@contextmanager
def saying(data: bytes) -> Iterator[str]:
    """The address of a server that answers so, whatever it is asked."""

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.wfile.write(data)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
        b"HTTP/1.1 302 Found\r\nLocation: http://me:s3cret@host/\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"experiment": null}',
        b"HTTP/1.1 404 x\r\nContent-Length: 99\r\n\r\ncut",
    ],
)
def test_a_port_that_does_not_speak_http_is_left_to_mlflow(data):
    with saying(data) as address:
        assert not look(address, NAME)


def test_mlflow_is_asked_in_another_process_which_shows_no_password():
    """Neither among its arguments and variables nor in what it says."""
    commands, shown = list[str](), list[Path]()

    def deny(_: Call) -> tuple[int, str]:
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                if parent == str(os.getpid()):
                    commands.append((process / "cmdline").read_text())
                    files = (process / "cmdline", process / "environ")
                    shown.extend(file for file in files if b"s3cret" in file.read_bytes())
        return error(403, "PERMISSION_DENIED")

    with proxied("http://127.0.0.1:9") as proxy:
        proxy.answer = deny
        address = proxy.uri.replace("//", "//me:s3cret@")
        with pytest.raises(TrackerError, match=r"cannot take the study: .*PERMISSION") as raised:
            Check(address, NAME).result()
    assert "s3cret" not in str(raised.value)
    assert any("vgg_search.tracking.check" in command for command in commands)
    assert not shown


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_does_not_take_us_is_refused(proxy, status):
    proxy.answer = lambda _: error(status, "PERMISSION_DENIED")
    with pytest.raises(TrackerError, match=r"cannot take the study: .*PERMISSION_DENIED"):
        Check(proxy.uri, NAME).result()


@pytest.mark.slow
def test_a_deleted_experiment_of_a_server_is_found(proxy):
    Check(proxy.uri, "to be deleted").result()
    client = MlflowClient(proxy.uri)
    client.delete_experiment(client.create_experiment("to be deleted"))
    with pytest.raises(TrackerError, match=r"experiment 'to be deleted' is deleted; .* restore"):
        Check(proxy.uri, "to be deleted").result()


@pytest.mark.slow
@pytest.mark.parametrize("status", [405, 408, 413, 429, 499, 503])
def test_a_file_that_may_pass_later_is_kept(make, proxy, status):
    """Files go another way through MLflow's client than records."""
    failed: list[Call] = []

    def busy(call: Call) -> tuple[int, str] | None:
        if call.path.startswith("mlflow-artifacts/") and len(failed) < 2:
            failed.append(call)
            return status, "later"
        return None

    proxy.answer = busy
    tracker = make(to=proxy.uri, experiment=f"files-{status}")
    tracker.run("study", "s1", {}, {})
    (tracker.folder / "report.html").write_text("report")
    tracker.artifact("study", tracker.folder / "report.html")
    send(tracker)
    assert (len(failed), tracker.refused) == (2, 0)
    (run,) = names(proxy.uri, f"files-{status}").values()
    files = MlflowClient(proxy.uri).list_artifacts(run.info.run_id)
    assert [file.path for file in files] == ["report.html"]
