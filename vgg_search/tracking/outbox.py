"""Where the search leaves what the tracker shall get: a local SQLite file, so that it never waits.

Putting is one small transaction (0.1 ms); a row stays until the tracker has it, through kill -9
of the driver (WAL; synchronous = NORMAL gives up only power failures). Timestamps are fixed when
a row is put: a point that is sent twice with the same step and timestamp is one point to MLflow.
"""

import json
import math
import os
import sqlite3
import threading
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vgg_search.storage.addresses import masked, without_password
from vgg_search.storage.folder import CHAMPION, OUTBOX

Status = Literal["FINISHED", "FAILED", "KILLED"]

TABLES = """
PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS runs (
    key TEXT PRIMARY KEY, name TEXT, parent TEXT REFERENCES runs, time INT, params TEXT, open INT,
    run_id TEXT);
CREATE TABLE IF NOT EXISTS rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time INT, run TEXT REFERENCES runs, kind TEXT, body TEXT);
CREATE TABLE IF NOT EXISTS refused (
    id INT, time INT, run TEXT, kind TEXT, body TEXT, error TEXT, PRIMARY KEY (id, body));
CREATE TABLE IF NOT EXISTS steps (run TEXT, names TEXT, step INT, PRIMARY KEY (run, names));
CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, body TEXT);
"""
ADDRESSES = ("MLFLOW_TRACKING_URI", "VGG_SEARCH_TRACKING_URI")  # in the environment


class Row(NamedTuple):
    """One thing to send. Of kind "batch", body is a list of (sort, name, value, step or None)."""

    id: int
    time: int  # of the put, ms
    run: str
    kind: str
    body: Any


class Outbox:
    """The outbox of one study. Runs have keys that are unique in it: "study", "trial/7"."""

    def __init__(self, folder: Path, tracking_uri: str, experiment: str, study: str) -> None:
        """Opens `folder`/outbox.db, made if absent; it holds no password, for it is copied."""
        self.folder = folder.resolve()
        self.uri, self.experiment, self.study = tracking_uri, experiment, study
        self._lock = threading.Lock()  # one connection: nobody sleeps in SQLite's busy handler
        self._db = sqlite3.connect(self.folder / OUTBOX, timeout=30, check_same_thread=False)
        weakref.finalize(self, self._db.close)
        self._db.executescript(TABLES)
        given = {"tracking_uri": without_password(tracking_uri)}
        given |= {"experiment": experiment, "study": study}
        with self._lock, self._db as db:
            known = dict(db.execute("SELECT name, value FROM meta"))
            if known and any(without_password(known[k]) != v for k, v in given.items()):
                # Another tracker knows none of our runs: they are looked for there, or made anew.
                db.execute("UPDATE runs SET run_id = NULL, params = '{}'")
                db.execute("DELETE FROM results")
            meta = {"id": uuid.uuid4().hex[:12]} | known | given
            db.executemany("REPLACE INTO meta VALUES (?, ?)", meta.items())
        self.id: str = meta["id"]  # a new study of an old name does not write into the old runs

    @staticmethod
    def stored(folder: Path) -> dict[str, str]:
        """The arguments with which a folder's outbox was opened last; the tracker's password comes
        from the environment, where an address of the same tracker has one. Raises ValueError."""
        if not (folder / OUTBOX).is_file():
            raise ValueError(f"no outbox in {folder}")
        db = sqlite3.connect(folder / OUTBOX, timeout=30)
        meta = dict(db.execute("SELECT name, value FROM meta WHERE name != 'id'"))
        db.close()
        for name in ADDRESSES:
            if without_password(given := os.environ.get(name, "")) == meta["tracking_uri"]:
                meta["tracking_uri"] = given
        return meta

    def run(
        self,
        key: str,
        name: str,
        tags: Mapping[str, Any],
        params: Mapping[str, Any],
        parent: str | None = None,
    ) -> None:
        """Creates the run, or opens it again. `parent` is the key of a run put earlier.

        MLflow never changes a param: one that differs from the run's first (the budget of a
        resumed study) becomes a tag `now.<name>`.
        """
        before = json.loads(
            (self._ask("SELECT params FROM runs WHERE key = ?", key) or [["{}"]])[0][0]
        )
        texts = {param: str(value) for param, value in params.items()}
        changed = {f"now.{p}": texts[p] for p in texts if before.get(p, texts[p]) != texts[p]}
        new = {param: text for param, text in texts.items() if param not in before}
        items = _items("param", new) + _items("tag", {**tags, **changed})
        self._put(
            key,
            [("run", {"name": name}), ("batch", items)],
            "INSERT INTO runs VALUES (?, ?, ?, ?, ?, 1, NULL)"
            " ON CONFLICT DO UPDATE SET name = excluded.name, params = excluded.params, open = 1",
            (key, name, parent, _now(), json.dumps(new | before)),
        )

    def log(self, key: str, metrics: Mapping[str, float], step: int) -> None:
        """One row of metrics. Steps of the same metrics only grow: what a resumed or retried
        trial repeats is dropped. What is not finite is left out and tagged `non_finite`."""
        numbers = {name: float(value) for name, value in metrics.items()}
        odd = sorted(name for name, value in numbers.items() if not math.isfinite(value))
        items = [item for item in _items("metric", numbers, step) if item[1] not in odd]
        if odd:
            items += _items("tag", {"non_finite": f"{', '.join(odd)} at step {step}"})
        self._put(
            key,
            [("batch", items)],
            "INSERT INTO steps VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET step = excluded.step WHERE excluded.step > step",
            (key, ",".join(sorted(metrics)), step),
        )

    def tag(self, key: str, **tags: Any) -> None:
        self._put(key, [("batch", _items("tag", tags))])

    def end(self, key: str, status: Status) -> None:
        self._put(
            key, [("end", {"status": status})], "UPDATE runs SET open = 0 WHERE key = ?", (key,)
        )

    def artifact(self, key: str, path: Path, artifact_path: str | None = None) -> None:
        """A file, into the folder `artifact_path`, or a folder's content; read when it is sent."""
        target = "/".join(filter(None, (artifact_path, None if path.is_dir() else path.name)))
        body = {"path": self._short(path), "artifact_path": artifact_path, "target": target}
        self._put(key, [("artifact", body)])

    def delete_artifact(self, key: str, artifact_path: str) -> None:
        """Takes a file or folder back, from the outbox or from the tracker. To be called before
        the local file is removed."""
        with self._lock, self._db as db:
            db.execute(
                "DELETE FROM rows WHERE run = ? AND kind = 'artifact'"
                " AND instr(json_extract(body, '$.target') || '/', ?) = 1",
                (key, artifact_path + "/"),
            )
        self._put(key, [("delete", {"artifact_path": artifact_path})])

    def dataset(
        self,
        key: str,
        name: str,
        digest: str,
        source: Mapping[str, Any],
        context: str,
        profile: Mapping[str, Any],
    ) -> None:
        """The data a run has seen; `context` is "training", "validation" or "test"."""
        body = {"name": name, "digest": digest, "context": context}
        body |= {"source": json.dumps(source), "profile": json.dumps(profile)}
        self._put(key, [("dataset", body)])

    def register(self, key: str, name: str, folder: Path, alias: str = CHAMPION) -> None:
        """Makes a champion folder a version of the registered model `name`: its files as
        artifacts `champion` of the run, and a pt2 model. `results` tells the outcome."""
        body = {"name": name, "folder": self._short(folder), "alias": alias}
        self._put(key, [("register", body)])

    @property
    def unsent(self) -> int:
        return int(self._ask("SELECT count(*) FROM rows")[0][0])

    @property
    def refused(self) -> int:
        """Rows that the tracker will never take; the table `refused` has them, with reasons."""
        return int(self._ask("SELECT count(*) FROM refused")[0][0])

    @property
    def open(self) -> list[str]:
        """Keys of the runs that nobody has ended: after a crash, those it left RUNNING."""
        return [key for (key,) in self._ask("SELECT key FROM runs WHERE open ORDER BY rowid")]

    def results(self, key: str) -> dict[str, Any]:
        """What the tracker answered: run_id, and of a registered champion model_uri, version,
        alias_moved and alias_text (why). Empty until it is known."""
        made = self._ask("SELECT run_id FROM runs WHERE key = ? AND run_id NOT NULL", key)
        body = self._ask("SELECT body FROM results WHERE key = ?", key)
        return {"run_id": made[0][0]} | (json.loads(body[0][0]) if body else {}) if made else {}

    def _short(self, path: Path) -> str:
        """Relative to the run folder where it can be: a folder that was moved can still be sent."""
        path = path.resolve()
        return str(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path)

    def _oldest(self, count: int) -> list[Row]:
        rows = self._ask("SELECT id, time, run, kind, body FROM rows ORDER BY id LIMIT ?", count)
        return [Row(i, time, run, kind, json.loads(body)) for i, time, run, kind, body in rows]

    def _refuse(self, row: Row, error: str) -> bool:
        """Sets a row, or a part of it, aside; False for one that was taken back meanwhile."""
        return self._write(
            "REPLACE INTO refused SELECT id, time, run, kind, ?, ? FROM rows WHERE id = ?",
            [(json.dumps(row.body), error, row.id)],
        )

    def _write(self, statement: str, values: Sequence[Sequence[Any]]) -> bool:
        """Whether any row was written."""
        with self._lock, self._db as db:
            return db.executemany(statement, values).rowcount > 0

    def _ask(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def _put(
        self, run: str, rows: list[tuple[str, Any]], only_if: str = "", values: Sequence[Any] = ()
    ) -> None:
        """Inserts rows in one transaction with `only_if`, unless that changes nothing."""
        now = _now()
        with self._lock, self._db as db:
            if only_if and not db.execute(only_if, values).rowcount:
                return
            db.executemany(
                "INSERT INTO rows (time, run, kind, body) VALUES (?, ?, ?, ?)",
                [(now, run, kind, json.dumps(body)) for kind, body in rows if body],
            )


def chunks(rows: list[Row], limits: Mapping[str, int]) -> Iterator[list[Row]]:
    """Rows of one run, in the lists that go in one call: batches together, up to `limits` items
    of each sort, and anything else singly."""
    chunk: list[Row] = []
    room = Counter(limits)
    for row in rows:
        sizes = Counter(item[0] for item in row.body) if row.kind == "batch" else Counter()
        if chunk and (row.kind != "batch" or not sizes <= room):
            yield chunk
            chunk, room = [], Counter(limits)
        if row.kind == "batch":
            chunk.append(row)
            room -= sizes
        else:
            yield [row]
    if chunk:
        yield chunk


def permanent(error: Exception) -> bool:
    """True for what will not succeed later: a 4xx answer, except about rights and load; a file
    that is gone; an error in a model. A failing server, database, network or disk is not."""
    answer = getattr(error, "response", None)  # of requests, which artifacts go through
    if hasattr(error, "get_http_status_code"):  # MLflow's
        # A database's connection that was cut is a bad request to MLflow.
        code = getattr(error, "error_code", None)
        away = code == "ENDPOINT_NOT_FOUND" or "InterfaceError" in str(error)
        status = 0 if away else error.get_http_status_code()
    elif answer is not None:
        status = getattr(answer, "status_code", 0)
    elif isinstance(error, OSError):
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    else:
        return isinstance(error, (ValueError, TypeError, LookupError, AttributeError, RuntimeError))
    return status == 501 or (400 <= status < 500 and status not in (401, 403, 408, 429, 499))


def line(error: BaseException) -> str:
    """The error in a line, without credentials; of a network's or disk's error, its origin."""
    origin = error
    while origin.__context__:
        origin = origin.__context__
    text = str(origin if isinstance(origin, OSError) else error) or type(error).__name__
    return masked(" ".join(text.split()))[:300]


def _items(sort: str, named: Mapping[str, Any], step: int | None = None) -> list[Any]:
    # PostgreSQL takes no NUL.
    texts = {n: v if sort == "metric" else str(v).replace("\0", "") for n, v in named.items()}
    return [(sort, name, value, step) for name, value in texts.items()]


def _now() -> int:
    return time.time_ns() // 1_000_000
