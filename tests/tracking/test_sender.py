"""The outbox and its sender, against real MLflow: SQLite, PostgreSQL, and a server over HTTP."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from conftest import MlflowServer
from mlflow import MlflowClient
from mlflow.entities import Run

from vgg_search.storage.addresses import masked, without_password
from vgg_search.tracking.mlflow_adapter import ENVIRONMENT, address, connected
from vgg_search.tracking.outbox import Outbox, Row, open_database
from vgg_search.tracking.registry import fetch_champion
from vgg_search.tracking.sender import MlflowTracker, calls, sync

EXPERIMENT = "vgg-search"
pytestmark = [  # MLflow's own
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*type hint is inferred as AnyType:UserWarning"),
]
EPOCH = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "epoch_seconds")


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(28 * 28, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.flatten(1).float() / 255).softmax(1)


def servable(folder: Path) -> tuple[torch.nn.Module, np.ndarray]:
    assert (folder / "model.safetensors").exists()
    return Tiny().eval(), np.zeros((2, 1, 28, 28), np.uint8)


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    """A database of the test's own; MLflow takes seconds to make one."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@contextmanager
def trackers(tmp_path: Path, uri: str) -> Iterator[Callable[..., MlflowTracker]]:
    """Makes trackers, not yet started: the first on the run folder "s1", or others by name."""
    made: list[MlflowTracker] = []

    def one(name: str = "s1", to: str = uri, experiment: str = EXPERIMENT) -> MlflowTracker:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        made.append(MlflowTracker(folder, to, experiment, name, servable))
        return made[-1]

    yield one
    for tracker in made:
        tracker.close(0)


@pytest.fixture
def make(tmp_path: Path, uri: str) -> Iterator[Callable[..., MlflowTracker]]:
    with trackers(tmp_path, uri) as make:
        yield make


def send(tracker: MlflowTracker) -> None:
    tracker.start()
    assert tracker.close(60) == 0, tracker.error


def on_file(tracker: MlflowTracker, statement: str, *values: Any) -> None:
    """Changes an outbox behind its back, as a kill or an older version leaves it."""
    with closing(open_database(tracker.folder / "outbox.db")) as outbox, outbox:
        outbox.execute(statement, values)


def refusals(tracker: MlflowTracker) -> list[tuple[Row, str]]:
    """Rows, or parts of them, that the tracker will never take, and why."""
    query = "SELECT id, time, run, kind, body, error FROM refused ORDER BY id, body"
    with closing(open_database(tracker.folder / "outbox.db")) as outbox:
        rows = outbox.execute(query).fetchall()
    return [(Row(*values[:4], json.loads(values[4])), error) for *values, error in rows]


def runs(uri: str, kind: str | None = None) -> dict[str, Run]:
    """All runs of the experiment by name, which no two may share."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment
    found = client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'" if kind else "")
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def points(uri: str, run: Run, name: str) -> list[tuple[int, float]]:
    history = MlflowClient(uri).get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in history)


def put_study(tracker: MlflowTracker, trials: int, epochs: int) -> None:
    tracker.run("study", "s1", {"kind": "study"}, {"num_trials": trials})
    for number in range(trials):
        key = f"trial/{number}"
        tags = {"kind": "trial", "trial_number": number, "state": "running"}
        tracker.run(key, f"{number} net", tags, {"lr": 0.1 * number}, parent="study")
        for epoch in range(1, epochs + 1):
            tracker.log(key, {name: epoch + i / 10 for i, name in enumerate(EPOCH)}, epoch)
        tracker.tag(key, state="completed")
        tracker.end(key, "FINISHED")
    tracker.log("study", {"best_val_accuracy": 0.9}, trials)
    tracker.end("study", "FINISHED")


def check_study(uri: str, trials: int, epochs: int) -> None:
    """Exactly what `put_study` put: each run once, each point once, nothing else."""
    found = runs(uri)
    assert found.keys() == {"s1"} | {f"{number} net" for number in range(trials)}
    parent = found.pop("s1")
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"num_trials": str(trials)}
    assert points(uri, parent, "best_val_accuracy") == [(trials, 0.9)]
    for number in range(trials):
        run = found[f"{number} net"]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["state"] == "completed"
        assert run.data.params == {"lr": str(0.1 * number)}
        assert run.data.metrics.keys() == set(EPOCH)
        for i, name in enumerate(EPOCH):
            expected = [(epoch, epoch + i / 10) for epoch in range(1, epochs + 1)]
            assert points(uri, run, name) == expected


def test_a_study_is_a_parent_with_nested_children(make, uri):
    tracker = make()
    put_study(tracker, trials=3, epochs=4)
    assert tracker.unsent > 0  # nothing goes before start
    send(tracker)
    check_study(uri, trials=3, epochs=4)
    assert tracker.refused == 0
    assert tracker.error is None
    table = mlflow.MlflowClient(uri).search_runs(["1"], "tags.kind = 'trial'")
    ends = [(run.info.start_time, run.info.end_time) for run in table]
    assert all(start <= end for start, end in ends)  # of the puts, not of the sending


def test_a_second_study_of_the_same_name_has_runs_of_its_own(make, uri):
    for folder in ("s1", "s2"):
        tracker = make(folder)
        tracker.run("study", folder, {}, {"seed": folder})
        send(tracker)
    assert {name: run.data.params["seed"] for name, run in runs(uri).items()} == {
        "s1": "s1",
        "s2": "s2",
    }


def test_more_items_than_a_call_takes(make, uri):
    tracker = make()
    tracker.run("study", "s1", {f"t{i}": i for i in range(150)}, {f"p{i}": i for i in range(230)})
    tracker.log("study", {f"m{i}": i for i in range(1100)}, 1)
    for step in range(2, 1300):
        tracker.log("study", {"m0": step}, step)
    send(tracker)
    run = runs(uri)["s1"]
    assert (len(run.data.params), len(run.data.metrics)) == (230, 1100)
    assert run.data.tags["t149"] == "149"
    assert len(points(uri, run, "m0")) == 1299
    assert tracker.refused == 0


def test_calls_go_by_limits_and_keep_the_order():
    def row(number: int, kind: str, *sorts: str) -> Row:
        return Row(number, 0, "a", kind, [(sort, "n", "v", None) for sort in sorts])

    def items(call: list[Row]) -> list[tuple[int, str]]:
        return [(row.id, item[0]) for row in call for item in row.body]

    rows = [
        row(1, "batch", "metric", "tag"),
        row(2, "batch", "metric"),
        row(3, "batch", "metric"),
        row(4, "end"),
        row(5, "run"),
        row(6, "batch", *["metric"] * 4, "tag"),
        row(7, "batch", "metric", "tag", "param"),
    ]
    found = list(calls(rows, {"metric": 2, "param": 1, "tag": 1}))
    assert [items(call) for call in found] == [
        [(1, "metric"), (2, "metric"), (1, "tag")],
        [(3, "metric")],
        [],
        [],
        [(6, "metric"), (6, "metric"), (7, "param"), (6, "tag")],
        [(6, "metric"), (6, "metric"), (7, "tag")],
        [(7, "metric")],
    ]
    assert found[2:4] == [[rows[3]], [rows[4]]]


def test_puts_need_no_server_and_another_tracker_gets_all(make, uri):
    """What a dead server never got goes elsewhere when the study is opened with another address."""
    tracker = make(to="http://127.0.0.1:9")
    tracker.start()
    put_study(tracker, trials=3, epochs=4)
    put = tracker.unsent
    while tracker.error is None:
        time.sleep(0.05)
    assert tracker.close(0.5) == put
    assert "Connection refused" in tracker.error
    assert tracker.refused == 0
    assert tracker.results("study") == {}
    send(make())
    check_study(uri, trials=3, epochs=4)


def test_sync_needs_only_the_folder(make, uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = make(to="sqlite:///mlflow.db")
    monkeypatch.chdir("/")
    put_study(tracker, trials=1, epochs=2)
    tracker.close(0)
    result = {"unsent": 0, "refused": 0, "error": None, "refusals": []}
    assert sync(tracker.folder, servable, 120) == result
    check_study(uri, trials=1, epochs=2)
    with pytest.raises(ValueError, match=r"no outbox in .*nowhere"):
        sync(tracker.folder / "nowhere", servable, 1)


def test_a_password_is_not_kept_and_comes_from_the_environment(make, monkeypatch):
    address = "postgresql://me:s3cret@host/db"
    tracker = make(to=address)
    put_study(tracker, trials=1, epochs=1)
    on_file(tracker, "UPDATE runs SET run_id = 'known'")
    assert tracker.uri == address
    assert not [f for f in tracker.folder.glob("outbox.db*") if b"s3cret" in f.read_bytes()]
    for name in ("MLFLOW_TRACKING_URI", "VGG_SEARCH_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    assert Outbox.stored(tracker.folder)["tracking_uri"] == "postgresql://me@host/db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:s3cret@elsewhere/db")
    assert Outbox.stored(tracker.folder)["tracking_uri"] == "postgresql://me@host/db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert Outbox.stored(tracker.folder)["tracking_uri"] == address
    again = make(to="postgresql://me:changed@host/db")  # the same tracker: its runs are known
    assert again.results("study") == {"run_id": "known"}
    # An outbox of an older version holds one until it is opened
    on_file(again, "UPDATE meta SET value = ? WHERE name = 'tracking_uri'", address)
    assert make(to=address).results("study") == {"run_id": "known"}
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Outbox.stored(tracker.folder)["tracking_uri"] == "postgresql://me@host/db"


@pytest.mark.parametrize(
    ("address", "bare"),
    [
        ("sqlite:////tmp/a:b@c/mlflow.db", "sqlite:////tmp/a:b@c/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("http://host:5000/path@x", "http://host:5000/path@x"),
        ("https://me:secret@host:5000/path", "https://me@host:5000/path"),
        ("https://me@host", "https://me@host"),
        ("postgresql://:secret@/db", "postgresql://@/db"),
        ("postgresql://me:se/secret@host:5432/db", "postgresql://me@host:5432/db"),
        ("postgresql://host:5432/db?user=me&password=secret", "postgresql://host:5432/db?user=me"),
        ("mysql://host/db?PassWD=secret&ssl=1", "mysql://host/db?ssl=1"),
        ("http://host:5000?a=b@c", "http://host:5000?a=b@c"),
    ],
)
def test_an_address_without_its_password(address, bare):
    assert without_password(address) == bare
    said = masked(f"cannot reach '{address}', and http://other:1 neither")
    assert "secret" not in said
    assert said.endswith("', and http://other:1 neither")


def in_process(code: str, *arguments: str) -> "subprocess.Popen[str]":
    root = Path(__file__).parents[2]
    folders = root, root / "tests", Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


PUT_AND_DIE = """
import sys
from pathlib import Path
from test_sender import put_study, servable
from vgg_search.tracking.sender import MlflowTracker
tracker = MlflowTracker(Path(sys.argv[1]), sys.argv[2], "vgg-search", "s1", servable)
put_study(tracker, trials=60, epochs=5)
print("put", flush=True)
tracker.start()
tracker.flush(120)
"""


def test_kill_9_while_sending_loses_and_repeats_nothing(make, tmp_path, uri):
    folder = tmp_path / "runs" / "s1"
    folder.mkdir(parents=True)
    child = in_process(PUT_AND_DIE, str(folder), uri)
    assert child.stdout
    assert child.stdout.readline() == "put\n"
    outbox = open_database(folder / "outbox.db")
    (put,) = outbox.execute("SELECT count(*) FROM rows").fetchone()
    while outbox.execute("SELECT count(*) FROM rows").fetchone()[0] > put * 0.8:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert 0 < outbox.execute("SELECT count(*) FROM rows").fetchone()[0] < put
    outbox.close()
    send(make())
    check_study(uri, trials=60, epochs=5)


def test_a_replay_of_sent_rows_adds_nothing(make, uri):
    tracker = make()
    put_study(tracker, trials=2, epochs=3)
    tracker.dataset("study", "sample", "abc", {"num_rows": 5})
    rows = tracker.rows()
    send(tracker)
    again = make()
    for row in rows:
        values = (*row[:4], json.dumps(row.body))
        on_file(again, "INSERT INTO rows VALUES (?, ?, ?, ?, ?)", *values)
    on_file(again, "UPDATE runs SET run_id = NULL")  # as if killed before it was written down
    send(again)
    assert again.refused == 0
    check_study(uri, trials=2, epochs=3)
    (data,) = runs(uri)["s1"].inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, data.tags[0].value) == (
        "sample",
        "abc",
        "training",
    )


def delete_for_good(uri: str, run: Run) -> None:
    """As `mlflow gc` does."""
    MlflowClient(uri).delete_run(run.info.run_id)
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri]
    subprocess.run(
        [*command, "--run-ids", run.info.run_id],
        env=os.environ | {"MLFLOW_TRACKING_URI": uri},
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("name", ["s1", "1 net"])
def test_a_run_that_is_deleted_for_good_is_made_again_with_all_it_had(make, uri, name):
    tracker = make()
    put_study(tracker, trials=2, epochs=3)
    send(tracker)
    delete_for_good(uri, runs(uri)[name])
    again = make()
    again.tag("trial/1", state="completed")
    send(again)
    assert again.refused == 0
    check_study(uri, trials=2, epochs=3)


SYNC_AND_CHECK = """
import sys
from pathlib import Path
from test_sender import check_study, servable, sync
result = sync(Path(sys.argv[1]), servable, 120)
print([result["unsent"], result["refused"]])
check_study(sys.argv[2], trials=2, epochs=3)
"""


def test_runs_that_a_power_failure_took_out_of_the_outbox_are_made_anew(make, uri):
    """It has lost all but its id. The record has lost a trial, which then is of another network."""
    tracker = make()
    tracker.run("study", "study", {}, {"num_trials": 2})
    for number in range(2):
        tracker.run(f"trial/{number}", f"{number}", {}, {"lr": 0.1}, "study")
        tracker.log(f"trial/{number}", {"val_accuracy": 0.5}, 1)
    send(tracker)
    before = runs(uri)
    for file in tracker.folder.glob("outbox.db*"):
        file.unlink()
    make().close(0)
    on_file(tracker, "UPDATE meta SET value = ? WHERE name = 'id'", tracker.id)
    again = make()
    again.run("study", "study", {}, {"num_trials": 3})
    for number, lr in enumerate((0.1, 0.2)):
        again.run(f"trial/{number}", f"{number}", {}, {"lr": lr}, "study")
        again.log(f"trial/{number}", {"val_accuracy": 0.5}, 1)
    send(again)
    assert again.refused == 0
    after = runs(uri)
    assert [after[name].data.params for name in ("0", "1")] == [{"lr": "0.1"}, {"lr": "0.2"}]
    parents = {run.data.tags.get("mlflow.parentRunId") for run in after.values()}
    assert parents == {None, after["study"].info.run_id}
    client = MlflowClient(uri)
    assert len(client.get_metric_history(after["0"].info.run_id, "val_accuracy")) == 1
    for run in before.values():
        lost = client.get_run(run.info.run_id).info
        assert (lost.status, lost.lifecycle_stage) == ("KILLED", "deleted")


def test_a_database_that_was_removed_gets_all_anew(make, uri, tmp_path):
    tracker = make()
    put_study(tracker, trials=2, epochs=3)
    tracker.start()
    assert tracker.flush(60) == 0
    (tmp_path / "mlflow.db").unlink()
    tracker.tag("study", state="completed")
    assert tracker.close(5) > 1
    assert "mlflow.db was removed or replaced; `sync` sends all anew" in tracker.error
    assert not (tmp_path / "mlflow.db").exists()
    for _ in range(2):  # the second time, after the end of a search
        child = in_process(SYNC_AND_CHECK, str(tracker.folder), uri)
        printed, said = child.communicate()
        assert (printed, child.returncode) == ("[0, 0]\n", 0), said
        (tmp_path / "mlflow.db").unlink()


START_TOGETHER = """
import sys
from pathlib import Path
from test_sender import champion, servable
from vgg_search.tracking.sender import MlflowTracker
folder = Path(sys.argv[1])
tracker = MlflowTracker(folder, sys.argv[2], "vgg-search", "s", servable)
tracker.run("champion", folder.name, {}, {})
tracker.artifact("champion", folder / "outbox.db")
tracker.register("champion", folder.name, champion(folder / "champion", val_accuracy=0.9))
tracker.start()
sys.exit(tracker.close(120) or tracker.refused)
"""


@pytest.mark.slow
def test_two_searches_make_a_fresh_database_together_and_in_silence(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    folders = [tmp_path / "runs" / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    children = [in_process(START_TOGETHER, str(folder), uri) for folder in folders]
    for child in children:
        assert child.communicate(timeout=150) == ("", "")
        assert child.returncode == 0
    assert runs(uri).keys() == {"a", "b"}


CONNECT = """
import sys
from vgg_search.tracking.mlflow_adapter import connected
connected(sys.argv[1]).search_experiments()
"""


def test_kill_9_while_a_fresh_database_is_made_leaves_none_that_is_half_made(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with in_process(CONNECT, uri) as child:
        until = time.monotonic() + 100
        while not any(f.stat().st_size >= 200_000 for f in tmp_path.glob("*mlflow.db")):
            assert time.monotonic() < until
            time.sleep(0.001)
        child.kill()
    assert connected(uri).search_experiments()


def test_a_sender_waits_while_another_process_sends(make):
    first, second = make(), make()
    first.run("study", "s1", {}, {})
    first.start()
    first.flush(120)
    second.start()
    while second.error is None:
        time.sleep(0.05)
    assert second.error == "another process is sending"
    first.tag("study", state="x")
    assert second.close(60) == 0  # the first one sent it


def test_a_run_is_opened_again(make, uri):
    tracker = make()
    tracker.run("study", "s1", {"state": "running"}, {"num_trials": 3, "seed": 0})
    tracker.run("trial/0", "0 net", {}, {}, parent="study")
    tracker.end("study", "KILLED")
    assert tracker.open_runs == ["trial/0"]
    tracker.end("trial/0", "KILLED")
    send(tracker)
    assert {run.info.status for run in runs(uri).values()} == {"KILLED"}
    run_id = tracker.results("study")["run_id"]

    resumed = make()
    resumed.run("study", "s1", {"state": "running"}, {"num_trials": 9, "seed": 0, "new": 1})
    send(resumed)
    run = runs(uri)["s1"]
    assert (run.info.run_id, run.info.status) == (run_id, "RUNNING")
    assert run.data.params == {"num_trials": "3", "seed": "0", "new": "1"}
    assert run.data.tags["now.num_trials"] == "9"
    assert resumed.refused == 0
    assert resumed.open_runs == ["study"]


def test_a_repeated_step_is_dropped(make, uri):
    tracker = make()
    tracker.run("trial/0", "0 net", {}, {})
    for step, value in ((1, 0.1), (2, 0.2), (1, 0.7), (2, 0.8), (3, 0.3)):
        tracker.log("trial/0", {"val_accuracy": value}, step)
    tracker.log("trial/0", {"best_val_accuracy": 0.3}, 3)
    send(tracker)
    run = runs(uri)["0 net"]
    assert points(uri, run, "val_accuracy") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert points(uri, run, "best_val_accuracy") == [(3, 0.3)]


def test_what_is_not_finite_is_tagged(make, uri):
    tracker = make()
    tracker.run("trial/0", "0 net", {}, {})
    row = {"val_loss": math.nan, "train_loss": np.float32("inf"), "lr": np.float32(0.5)}
    tracker.log("trial/0", row, 3)
    send(tracker)
    run = runs(uri)["0 net"]
    assert run.data.metrics == {"lr": 0.5}
    assert run.data.tags["non_finite"] == "train_loss, val_loss at step 3"


def check_refusals(make: Callable[..., MlflowTracker], uri: str) -> None:
    tracker = make("refusals", to=uri)
    tracker.run("trial/0", "refused", {}, {"lr": 1})
    send(tracker)
    stranger = MlflowClient(uri)
    stranger.log_param(runs(uri)["refused"].info.run_id, "dropout", "0.5")
    again = make("refusals", to=uri)
    params = {"depth": 2, "dropout": 0.1, "width": 8}
    again.run("trial/0", "refused", {"state": "x", "error": "a NUL\0 in it"}, params)
    again.log("trial/0", {"a(b)": 1.0, "val_accuracy": 0.5}, 1)
    again.end("trial/0", "FINISHED")
    send(again)
    assert again.refused == 2
    (param, text), (metric, _) = refusals(again)
    assert metric.body == [["metric", "a(b)", 1.0, 1]]
    assert param.body == [["param", "dropout", "0.1", None]]
    assert "Changing param values is not allowed" in text
    run = runs(uri)["refused"]
    assert run.data.params == {"lr": "1", "depth": "2", "dropout": "0.5", "width": "8"}
    assert run.data.metrics == {"val_accuracy": 0.5}
    assert (run.data.tags["state"], run.info.status) == ("x", "FINISHED")
    assert run.data.tags["error"] == "a NUL in it"


def test_what_is_refused_is_set_aside_and_the_rest_goes_on(make, uri):
    check_refusals(make, uri)


def files(uri: str, run: Run) -> set[str]:
    client, todo, found = MlflowClient(uri), [""], set()
    while todo:
        for entry in client.list_artifacts(run.info.run_id, todo.pop() or None):
            (todo.append if entry.is_dir else found.add)(entry.path)
    return found


def check_artifacts(make: Callable[..., MlflowTracker], uri: str) -> None:
    tracker = make("artifacts", to=uri)
    tracker.run("trial/0", "files", {}, {})
    best = tracker.folder / "best"
    best.mkdir()
    (best / "model.pt").write_bytes(b"weights")
    (tracker.folder / "report.html").write_text("report")
    tracker.artifact("trial/0", tracker.folder / "report.html")
    tracker.artifact("trial/0", best, "kept")
    tracker.artifact("trial/0", best, "sent_then_deleted")
    tracker.artifact("trial/0", best / "model.pt", "best")
    tracker.artifact("trial/0", best / "model.pt", "best-too")
    tracker.delete_artifact("trial/0", "best")  # still in the outbox: never sent
    send(tracker)
    run = runs(uri)["files"]
    assert files(uri, run) == {
        "report.html",
        "kept/model.pt",
        "sent_then_deleted/model.pt",
        "best-too/model.pt",
    }
    again = make("artifacts", to=uri)
    again.delete_artifact("trial/0", "sent_then_deleted")
    again.delete_artifact("trial/0", "never_there")
    again.artifact("trial/0", again.folder / "gone.txt")
    again.tag("trial/0", state="x")
    send(again)
    assert files(uri, run) == {"report.html", "kept/model.pt", "best-too/model.pt"}
    assert [row.kind for row, _ in refusals(again)] == ["artifact"]
    assert runs(uri)["files"].data.tags["state"] == "x"


def test_artifacts_are_sent_and_taken_back(make, uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_artifacts(make, uri)
    # Beside the database, where `mlflow ui` started in that folder finds both.
    assert [path.name for path in (tmp_path / "mlruns").iterdir()] == [EXPERIMENT]


def test_a_row_that_is_taken_back_while_it_is_sent_is_not_refused(make, uri):
    tracker = make("taken back", to=uri)
    tracker.run("trial/0", "files", {}, {})
    tracker.artifact("trial/0", tracker.folder / "gone.txt")
    row = tracker.rows()[-1]  # as the sender has it
    assert tracker.refuse(row, "no such file")
    tracker.delete_artifact("trial/0", "gone.txt")
    assert not tracker.refuse(row, "no such file")


def champion(folder: Path, **facts: Any) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    metrics = {"val_accuracy": facts.pop("val_accuracy"), "test_accuracy": 0.8}
    card = {"study": "s1", "dataset": "sample", "resolution": 28, "commit": None}
    (folder / "model.json").write_text(json.dumps(card | facts | {"metrics": metrics}))
    return folder


def check_champion(make: Callable[..., MlflowTracker], uri: str, target: Path) -> None:
    tracker = make("champions", to=uri)
    offers: list[tuple[str, dict[str, Any], bool, str]] = [
        ("first", {"val_accuracy": 0.90}, True, "@champion is now version 1: no other model"),
        (
            "worse",
            {"val_accuracy": 0.89},
            False,
            "stays at version 1, not version 2: .*0.89 <= 0.9",
        ),
        ("equal", {"val_accuracy": 0.90}, False, "stays at version 1, not version 3: .*0.9 <= 0.9"),
        ("larger", {"val_accuracy": 0.95, "resolution": 32}, False, "resolution 32 cannot be"),
        ("other", {"val_accuracy": 0.95, "dataset": "fashion-mnist"}, False, "dataset fashion-mn"),
        ("better", {"val_accuracy": 0.91}, True, "@champion is now version 6: .*0.91 > 0.9"),
    ]
    for name, facts, _, _ in offers:
        tracker.run(name, name, {"kind": "champion"}, {})
        tracker.register(name, "net", champion(tracker.folder / name, **facts))
        tracker.end(name, "FINISHED")
    again = "INSERT INTO rows (time, run, kind, body) SELECT time, run, kind, body FROM rows"
    on_file(tracker, again)  # a replay registers nothing twice
    send(tracker)
    assert tracker.refused == 0
    client = MlflowClient(uri)
    assert len(client.search_model_versions("name = 'net'")) == len(offers)
    for number, (name, facts, moved, text) in enumerate(offers, 1):
        result = tracker.results(name)
        assert (result["version"], result["model_uri"]) == (str(number), f"models:/net/{number}")
        assert client.get_run(result["run_id"]).data.tags["alias_text"] == result["alias_text"]
        assert result["alias_moved"] is moved
        assert re.search(text, result["alias_text"])
        tags = client.get_model_version("net", str(number)).tags
        assert tags["val_accuracy"] == str(facts["val_accuracy"])
        assert tags["test_accuracy"] == "0.8"
        assert "commit" not in tags
    assert str(client.get_model_version_by_alias("net", "champion").version) == "6"

    for model in ("models:/net@champion", "models:/net/6"):
        folder = fetch_champion(model, uri, target)
        assert {path.name for path in folder.iterdir()} == {"model.safetensors", "model.json"}
        assert json.loads((folder / "model.json").read_text())["metrics"]["val_accuracy"] == 0.91
    for model in ("models:/net@nobody", "models:/net/99", "models:/nothing/1"):
        with pytest.raises(ValueError, match=f"no model {model} in the tracker: "):
            fetch_champion(model, uri, target)


def test_the_alias_names_the_best_comparable_champion(make, uri, tmp_path):
    check_champion(make, uri, tmp_path / "fetched")
    model = mlflow_model(uri, "models:/net@champion")
    assert model.predict(np.zeros((5, 1, 28, 28), np.uint8)).shape == (5, 10)
    (inputs,) = model.metadata.signature.inputs
    assert (inputs.type, inputs.shape) == (np.dtype("uint8"), (-1, 1, 28, 28))


def mlflow_model(uri: str, model: str) -> Any:
    mlflow.set_tracking_uri(uri)
    try:
        return mlflow.pyfunc.load_model(model)
    finally:
        mlflow.set_tracking_uri(None)


def test_a_champion_that_cannot_be_exported_is_refused(make, uri):
    def broken(folder: Path) -> Any:
        raise ValueError(f"{folder.name} is broken")

    tracker = make()
    tracker.servable = broken
    tracker.run("champion", "champion", {}, {})
    tracker.register("champion", "net", champion(tracker.folder / "champion", val_accuracy=0.9))
    tracker.end("champion", "FINISHED")
    send(tracker)
    refused = [(row.kind, text) for row, text in refusals(tracker)]
    assert refused == [("register", "champion is broken")]
    assert tracker.results("champion").keys() == {"run_id"}
    assert runs(uri)["champion"].info.status == "FINISHED"


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(
        ValueError, match=r"must be models:/NAME@ALIAS or models:/NAME/VERSION, got 'models:/net'"
    ):
        fetch_champion("models:/net", "http://127.0.0.1:9", tmp_path)
    with pytest.raises(ValueError, match=r"no model models:/net/1: there is no database .*none.db"):
        fetch_champion("models:/net/1", f"sqlite:///{tmp_path / 'none.db'}", tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConnectionError, match=r"the tracker does not answer: .*Connection refused"):
        fetch_champion("models:/net/1", "http://127.0.0.1:9", tmp_path)


def test_mlflow_keeps_the_variables_that_the_user_has_set(uri, monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    own = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "600", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    connected(uri)
    assert {name: os.environ.get(name) for name in ENVIRONMENT} == ENVIRONMENT | own


def test_the_default_tracker_is_the_database_of_this_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert address(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker")
    assert address(None) == "http://tracker"


def check_outage(
    make: Callable[..., MlflowTracker], uri: str, stop: Callable, start: Callable
) -> None:
    """`stop` and `start` take the tracker away and give it back, both at once."""
    tracker = make(to=uri)
    tracker.run("study", "s1", {"kind": "study"}, {"num_trials": 40})
    tracker.start()
    assert tracker.flush(120) == 0
    stop()
    put_study(tracker, trials=40, epochs=5)
    while tracker.error is None:
        time.sleep(0.05)
    start()
    put = tracker.unsent
    while tracker.unsent > put // 2:
        time.sleep(0.01)
    stop()  # in the middle of sending
    start()
    assert tracker.close(120) == 0, tracker.error
    assert tracker.refused == 0
    check_study(uri, trials=40, epochs=5)


@pytest.mark.slow
def test_a_server_that_dies_for_a_while(make, mlflow_server):
    mlflow_server.start()
    check_outage(make, mlflow_server.uri, mlflow_server.kill, mlflow_server.start)


@pytest.mark.slow
def test_artifacts_and_champion_over_http(make, mlflow_server, tmp_path):
    mlflow_server.start()
    check_artifacts(make, mlflow_server.uri)
    check_champion(make, mlflow_server.uri, tmp_path / "fetched")


@pytest.mark.slow
def test_postgresql(make, postgres, tmp_path, monkeypatch):
    """Without a server between: all that SQLite is asked to do, and an outage."""
    monkeypatch.chdir(tmp_path)  # MLflow puts artifacts beside who makes the experiment
    uri = postgres.database("direct")
    check_outage(make, uri, postgres.stop, postgres.start)
    check_refusals(make, uri)
    check_artifacts(make, uri)
    check_champion(make, uri, tmp_path / "fetched")


@pytest.mark.slow
def test_a_server_on_postgresql(make, postgres, tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    server = MlflowServer(folder, postgres.database("served"))
    server.start()
    try:
        # The server stays; what it stands on goes.
        check_outage(make, server.uri, postgres.stop, postgres.start)
        check_refusals(make, server.uri)
        check_artifacts(make, server.uri)
        check_champion(make, server.uri, tmp_path / "fetched")
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("sqlite:///mlflow.db", "mlflow ui"),
        ("sqlite:////tmp/x y.db", "mlflow ui --backend-store-uri sqlite:////tmp/x%20y.db"),
        ("http://me:secret@host:5000", "http://***@host:5000"),
        ("postgresql://me:s@host/db", "mlflow ui --backend-store-uri postgresql://***@host/db"),
    ],
)
def test_how_its_runs_are_viewed(
    address: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert MlflowTracker(tmp_path, address, "e", "s", servable).viewed_by == shown
