"""What lies in an outbox before anybody sends it: rows, their order, what a reopening keeps."""

import json
import math
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from vgg_search.storage.folder import FolderLock
from vgg_search.tracking.outbox import Outbox, OutboxError, Row, open_database, sending

URI = "http://127.0.0.1:9"


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return opened(tmp_path)


def opened(folder: Path, uri: str = URI, experiment: str = "e", study: str = "s") -> Outbox:
    return Outbox(folder, uri, experiment, study)


def contents(outbox: Outbox) -> list[tuple[str, str, Any]]:
    """(run, kind, body) of each row."""
    return [(row.run, row.kind, row.body) for row in outbox.rows()]


def sent(outbox: Outbox, run_id: str) -> None:
    """Everything is with the tracker, which called each run so, as a sender leaves it."""
    outbox.done(row.id for row in outbox.rows())
    with closing(open_database(outbox.folder / "outbox.db")) as file, file:
        file.execute("UPDATE runs SET run_id = ?", (run_id,))


def test_a_run_is_a_row_and_what_it_is_made_with_another(outbox: Outbox) -> None:
    outbox.run("study", "s", {"kind": "study", "seed": 3}, {"num_trials": 5})
    outbox.run("trial/0", "0 net", {}, {}, parent="study")
    assert contents(outbox) == [
        ("study", "run", {"name": "s"}),
        (
            "study",
            "batch",
            [
                ["param", "num_trials", "5", None],
                ["tag", "kind", "study", None],
                ["tag", "seed", "3", None],
            ],
        ),
        ("trial/0", "run", {"name": "0 net"}),
    ]
    assert outbox.open_runs == ["study", "trial/0"]


def test_nothing_of_a_run_that_is_not_there_is_lost_in_silence(outbox: Outbox) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        outbox.tag("trial/7", kind="trial")


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_a_clock_that_jumps_ends_no_run_before_its_start(
    outbox: Outbox, jump: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.run("trial/0", "0 net", {}, {})
    now = time.time_ns() + jump * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: now)
    outbox.log("trial/0", {"val_accuracy": 0.5}, 1)
    outbox.end("trial/0", "FINISHED")
    with closing(open_database(outbox.folder / "outbox.db")) as file:
        ((began,),) = file.execute("SELECT time FROM runs")
    later = [row.time for row in outbox.rows()[1:]]
    assert later == [max(began, now // 10**6)] * 2


def test_rows_come_in_the_order_of_their_puts_with_the_time_of_the_put(outbox: Outbox) -> None:
    before = time.time()
    outbox.run("a", "a", {}, {})
    outbox.tag("a", state="running")
    outbox.end("a", "FINISHED")
    after = time.time()
    rows = outbox.rows()
    assert [row.kind for row in rows] == ["run", "batch", "end"]
    assert rows[-1].body == {"status": "FINISHED"}
    assert [row.id for row in rows] == sorted({row.id for row in rows})
    for row in rows:
        assert isinstance(row, Row)
        assert before - 0.01 <= row.time / 1000 <= after, "milliseconds since 1970"
    assert outbox.rows(2) == rows[:2]
    assert outbox.unsent == 3


def test_a_param_that_is_put_again_is_no_param_and_a_changed_one_is_a_tag(outbox: Outbox) -> None:
    outbox.run("study", "s", {}, {"num_trials": 3, "seed": 0})
    sent(outbox, "r1")
    outbox.run("study", "s", {"x": 1}, {"num_trials": 9, "seed": 0, "lr": 0.5})
    assert contents(outbox)[-1] == (
        "study",
        "batch",
        [
            ["param", "lr", "0.5", None],
            ["tag", "x", "1", None],
            ["tag", "now.num_trials", "9", None],
        ],
    )
    sent(outbox, "r1")
    outbox.run("study", "s", {}, {"num_trials": 3, "lr": 0.5})
    assert contents(outbox) == [("study", "run", {"name": "s"})], "what it was at first"


def test_an_ended_run_is_open_again_when_it_is_put_again(outbox: Outbox) -> None:
    outbox.run("a", "a", {}, {})
    outbox.run("b", "b", {}, {})
    outbox.end("a", "KILLED")
    assert outbox.open_runs == ["b"]
    outbox.run("a", "a", {}, {})
    assert outbox.open_runs == ["a", "b"]


def test_a_step_is_put_once_for_each_set_of_metrics(outbox: Outbox) -> None:
    outbox.run("a", "a", {}, {})
    outbox.log("a", {"loss": 1.5, "lr": 0.1}, 1)
    outbox.log("a", {"lr": 0.2, "loss": 7.0}, 1)
    outbox.log("a", {"best": 0.5}, 1)
    outbox.log("a", {"loss": 1.25, "lr": 0.1}, 3)
    outbox.log("a", {"loss": 7.0, "lr": 0.1}, 2)
    assert [body for _, kind, body in contents(outbox) if kind == "batch"] == [
        [["metric", "loss", 1.5, 1], ["metric", "lr", 0.1, 1]],
        [["metric", "best", 0.5, 1]],
        [["metric", "loss", 1.25, 3], ["metric", "lr", 0.1, 3]],
    ]


def test_metrics_that_are_not_finite_are_named_in_a_tag(outbox: Outbox) -> None:
    outbox.run("a", "a", {}, {})
    outbox.log("a", {"z": math.inf, "loss": 1.5, "b": math.nan}, 4)
    assert contents(outbox)[-1][2] == [
        ["metric", "loss", 1.5, 4],
        ["tag", "non_finite", "b, z at step 4", None],
    ]


def test_no_text_has_a_nul_and_nothing_is_no_row(outbox: Outbox) -> None:
    outbox.run("a", "a", {}, {})
    outbox.tag("a", error="half\0way", count=3)
    outbox.tag("a")
    assert [body for _, _, body in contents(outbox)] == [
        {"name": "a"},
        [["tag", "error", "halfway", None], ["tag", "count", "3", None]],
    ]


def test_files_of_the_run_folder_are_named_from_there(outbox: Outbox, tmp_path: Path) -> None:
    outbox.run("a", "a", {}, {})
    elsewhere = Path("/elsewhere/report.html")
    (tmp_path / "best").mkdir()
    outbox.artifact("a", tmp_path / "log.txt")
    outbox.artifact("a", tmp_path / "best", "kept")
    outbox.artifact("a", tmp_path / "best" / "model.pt", "kept")
    outbox.artifact("a", elsewhere)
    outbox.register("a", "vgg", tmp_path / "best")
    assert [body for _, kind, body in contents(outbox) if kind != "run"] == [
        {"path": "log.txt", "artifact_path": None, "target": "log.txt"},
        {"path": "best", "artifact_path": "kept", "target": "kept"},
        {"path": "best/model.pt", "artifact_path": "kept", "target": "kept/model.pt"},
        {"path": str(elsewhere), "artifact_path": None, "target": "report.html"},
        {"name": "vgg", "folder": "best"},
    ]


def test_a_relative_path_is_one_of_the_folder_where_it_was_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    outbox = opened(Path("runs"))
    outbox.run("a", "a", {}, {})
    outbox.artifact("a", Path("report.html"))
    outbox.artifact("a", Path("runs/log.txt"))
    monkeypatch.chdir("/")
    outbox.artifact("a", tmp_path / "elsewhere" / ".." / "runs" / "summary.json")
    paths = [body["path"] for _, kind, body in contents(outbox) if kind == "artifact"]
    assert paths == [str(tmp_path.resolve() / "report.html"), "log.txt", "summary.json"]
    assert outbox.unsent == 4


def test_a_deleted_artifact_that_was_not_sent_is_not_sent(outbox: Outbox, tmp_path: Path) -> None:
    for run in ("a", "b"):
        outbox.run(run, run, {}, {})
        outbox.artifact(run, tmp_path / "model.pt", "best")
    outbox.artifact("a", tmp_path / "model.pt", "best-too")
    outbox.artifact("a", tmp_path / "model.pt", "kept/best")
    outbox.delete_artifact("a", "best")
    rows = [(run, kind, body.get("target")) for run, kind, body in contents(outbox)]
    assert [row for row in rows if row[1] != "run"] == [
        ("b", "artifact", "best/model.pt"),
        ("a", "artifact", "best-too/model.pt"),
        ("a", "artifact", "kept/best/model.pt"),
        ("a", "delete", None),
    ]
    assert contents(outbox)[-1][2] == {"artifact_path": "best"}


def test_a_data_set_has_its_profile_as_json(outbox: Outbox) -> None:
    outbox.run("a", "a", {}, {})
    outbox.dataset("a", "sample", "0123", {"train_images": 300})
    body = contents(outbox)[-1][2]
    assert (body["name"], body["digest"]) == ("sample", "0123")
    assert json.loads(body["profile"]) == {"train_images": 300}


def test_what_is_refused_is_counted_and_shown_and_the_rest_stays(
    outbox: Outbox, tmp_path: Path
) -> None:
    assert sending(tmp_path) == (0, 0, [])
    outbox.run("a", "a", {"t": 1}, {})
    run, batch = outbox.rows()
    assert outbox.refuse(batch, "too long")
    assert outbox.refuse(batch, "too long")  # said again after a kill: one row
    assert (outbox.unsent, outbox.refused) == (2, 1)
    unsent, refused, (reason,) = sending(tmp_path)
    assert (unsent, refused) == (2, 1)
    assert reason.startswith("a: ")
    assert reason.endswith("too long")
    for number in range(4):
        assert outbox.refuse(run._replace(body={"name": f"{number}"}), "no")
    assert outbox.refused == 5
    assert len(sending(tmp_path)[2]) == 3
    assert not outbox.refuse(run._replace(id=batch.id + 1), "no such row")


def test_results_are_the_trackers_answers_of_runs_that_it_has(outbox: Outbox) -> None:
    outbox.run("a", "a", {}, {})
    with closing(open_database(outbox.folder / "outbox.db")) as file, file:
        file.execute("INSERT INTO results VALUES ('a', ?)", (json.dumps({"model_uri": "m:/1"}),))
    assert outbox.results("a") == {}, "of a run that it does not have"
    sent(outbox, "r1")
    assert outbox.results("a") == {"run_id": "r1", "model_uri": "m:/1"}
    assert outbox.results("b") == {}


def test_a_reopened_outbox_is_the_same_and_knows_its_runs(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.run("a", "a", {}, {"lr": 1})
    first.log("a", {"loss": 1.0}, 1)
    sent(first, "r1")
    again = opened(tmp_path)
    assert (again.id, again.results("a")) == (first.id, {"run_id": "r1"})
    again.run("a", "a", {}, {"lr": 1})
    again.log("a", {"loss": 1.0}, 1)
    assert contents(again) == [("a", "run", {"name": "a"})], "the param and the step are there"
    assert Outbox.stored(tmp_path) == {"tracking_uri": URI, "experiment": "e", "study": "s"}


@pytest.mark.parametrize("other", [{"uri": "http://127.0.0.1:10"}, {"experiment": "f"}])
def test_another_tracker_gets_all_anew(tmp_path: Path, other: dict[str, str]) -> None:
    first = opened(tmp_path)
    first.run("a", "a", {}, {"lr": 1})
    first.log("a", {"loss": 1.0}, 1)
    rows = first.rows()
    sent(first, "r1")
    assert contents(first) == []
    again = opened(tmp_path, **other)
    assert again.results("a") == {}
    assert again.rows() == rows
    again.run("a", "a", {}, {"lr": 2})
    assert contents(again)[-1] == ("a", "batch", [["tag", "now.lr", "2", None]])


def test_a_run_that_the_tracker_lost_is_sent_anew(outbox: Outbox, tmp_path: Path) -> None:
    for key in ("a", "b"):
        outbox.run(key, key, {"kind": "trial"}, {"lr": 1})
        for name in ("kept", "deleted"):
            outbox.artifact(key, tmp_path / name)
    rows = [row for row in outbox.rows() if row.run == "a"]
    sent(outbox, "r1")
    outbox.delete_artifact("a", "deleted")
    sent(outbox, "r1")
    outbox.forget("a")
    assert outbox.rows() == rows[:-1]
    assert (outbox.results("a"), outbox.results("b")) == ({}, {"run_id": "r1"})


def test_a_study_that_was_renamed_keeps_its_runs(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.run("a", "a", {}, {"lr": 1})
    sent(first, "r1")
    again = opened(tmp_path, study="t")
    assert (again.id, again.results("a")) == (first.id, {"run_id": "r1"})
    again.run("a", "a", {}, {"lr": 1})
    assert contents(again)[-1] == ("a", "run", {"name": "a"})


def test_outboxes_have_ids_of_their_own(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    ids = {opened(folder).id for folder in folders}
    assert len(ids) == 2
    assert all(len(name) == 12 for name in ids)


def closed(folder: Path) -> Path:
    """The file of an outbox with some rows."""
    outbox = opened(folder)
    outbox.run("a", "a", {"state": "running"}, {"lr": 0.1})
    outbox.log("a", {"x": 0.5}, 1)
    return folder / "outbox.db"


@pytest.mark.parametrize("bit", [1, 128])  # with the second it is no text
@pytest.mark.parametrize("text", [b"0.5", b"running", b"127.0.0.1", b'"lr": "0.1"'])
def test_a_changed_row_is_noticed_whoever_opens_the_outbox(
    text: bytes, bit: int, tmp_path: Path
) -> None:
    file = closed(tmp_path)
    assert Outbox.stored(tmp_path)["experiment"] == "e"
    content = bytearray(file.read_bytes())
    content[content.rindex(text) + len(text) - 2] ^= bit
    file.write_bytes(content)
    for opening in (opened, Outbox.stored, sending):
        with pytest.raises(OutboxError, match=r"outbox\.db is not as it was .*--resume the study"):
            opening(tmp_path)


@pytest.mark.parametrize("size", [3000, 9000])
def test_one_that_was_cut_is_named(tmp_path: Path, size: int) -> None:
    with closed(tmp_path).open("r+b") as file:
        file.truncate(size)
    for opening in (opened, Outbox.stored, sending):
        with pytest.raises(OutboxError, match=r"outbox\.db is not as it was written"):
            opening(tmp_path)


def test_an_empty_one_is_of_no_study(tmp_path: Path) -> None:
    """As of a driver that was killed as it made it, which can be gone on with."""
    (tmp_path / "outbox.db").touch()
    assert Outbox.stored(tmp_path) == {}
    with pytest.raises(OutboxError, match=r"outbox\.db is of no study: restore it"):
        sending(tmp_path)
    lock = FolderLock(tmp_path)
    assert sending(tmp_path) == (0, 0, ())
    lock.release()
    assert opened(tmp_path).unsent == 0


def test_one_of_an_older_version_has_no_checksums(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "outbox.db")) as file:
        file.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT)")
        values = {"id": "abc", "tracking_uri": URI, "experiment": "e", "study": "s"}
        file.executemany("INSERT INTO meta VALUES (?, ?)", values.items())
        file.commit()
    outbox = opened(tmp_path)
    outbox.run("a", "a", {}, {})
    assert (outbox.id, outbox.unsent) == ("abc", 1)
