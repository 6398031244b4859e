"""What the tracker is to get, in a local SQLite file first, so that the search never waits.

To put a row takes 0.1 ms; it stays until the tracker has it, through kill -9 of the driver (WAL;
synchronous = NORMAL gives up only power failures, after which the record has it), and is kept aside
then: a tracker that loses its database, or another one, can have all of it. Its timestamp is fixed
when it is put: a point sent twice with the same step and timestamp is one point to MLflow.
"""

import json
import logging
import math
import os
import re
import sqlite3
import threading
import time
import uuid
import weakref
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from vgg_search.errors import InputError
from vgg_search.storage.addresses import sqlite_address, without_password
from vgg_search.storage.folder import OUTBOX, in_use
from vgg_search.tracking.mlflow_adapter import address, database
from vgg_search.tracking.tracker import Status, Tracker

CHECKSUM = "checksum"  # a function and a column of each table


def _table(name: str, columns: str, key: str = "") -> str:
    """A table whose rows have checksums, which SQLite writes with them."""
    names = ", ".join(column.split()[0] for column in columns.split(", "))
    checksum = f"{CHECKSUM} INT AS ({CHECKSUM}({names})) STORED"
    return f"CREATE TABLE IF NOT EXISTS {name} ({columns}, {checksum}{key});"


TABLES = (
    "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;"
    + _table("meta", "name TEXT PRIMARY KEY, value TEXT")
    + _table(
        "runs",
        "key TEXT PRIMARY KEY, name TEXT, parent TEXT REFERENCES runs, time INT, params TEXT, "
        "open INT, run_id TEXT",
    )
    + _table(
        "rows",
        "id INTEGER PRIMARY KEY AUTOINCREMENT, time INT, run TEXT REFERENCES runs, kind TEXT, "
        "body TEXT",
    )
    + "CREATE INDEX IF NOT EXISTS rows_of_a_run ON rows (run);"
    + _table("sent", "id INTEGER PRIMARY KEY, time INT, run TEXT, kind TEXT, body TEXT")
    + "CREATE INDEX IF NOT EXISTS sent_of_a_run ON sent (run);"
    + _table(
        "refused",
        "id INT, time INT, run TEXT, kind TEXT, body TEXT, error TEXT",
        ", PRIMARY KEY (id, body)",
    )
    + _table("steps", "run TEXT, names TEXT, step INT", ", PRIMARY KEY (run, names)")
    + _table("results", "key TEXT PRIMARY KEY, body TEXT")
)
COLUMNS = "id, time, run, kind, body"  # of rows, and of those that were sent
EMPTY = "is of no study"
STORED = ("tracking_uri", "experiment", "study")  # of meta, what an outbox is made with
FILES = ("artifact", "delete", "register")  # kinds of rows about files, which go another way
ADDRESSES = ("MLFLOW_TRACKING_URI", "VGG_SEARCH_TRACKING_URI")  # in the environment


log = logging.getLogger("vgg_search")


class OutboxError(InputError):
    """An outbox that is not as it was written."""

    def __init__(self, file: Path, fault: str) -> None:
        super().__init__(
            f"{file} {fault}: restore it from a copy, or remove it and --resume the study, which "
            "puts all of its record anew, as new runs"
        )


class Row(NamedTuple):
    """One thing to send. Of kind "batch", body is a list of (sort, name, value, step or None)."""

    id: int
    time: int  # of the put, ms
    run: str
    kind: str
    body: Any


class Lane(NamedTuple):
    """Rows that wait for each other: of one run, its record or its files."""

    run: str
    files: bool


class Outbox(Tracker):
    """A tracker that keeps everything in `folder`/outbox.db, until somebody sends it."""

    def __init__(self, folder: Path, tracking_uri: str, experiment: str, study: str) -> None:
        """Opens the file or makes it; it holds no password, for it is copied."""
        self.folder = folder.resolve()
        self.uri, self.experiment, self.study = tracking_uri, experiment, study
        self._lock = threading.Lock()  # one connection: nobody sleeps in SQLite's busy handler
        self._db = open_database(self.folder / OUTBOX)
        weakref.finalize(self, self._db.close)
        self._db.executescript(TABLES)
        now = {"tracking_uri": without_password(tracking_uri)}
        now |= {"experiment": experiment, "study": study}
        with self._lock, self._db as db:
            before = dict(db.execute("SELECT name, value FROM meta"))
            there = before | {"tracking_uri": without_password(_address(before, self.folder))}
            # The study may have a new name: its run folder was renamed
            where = {name: text for name, text in now.items() if name != "study"}
            if before and any(there[name] != text for name, text in where.items()):
                _forget(db)  # another tracker knows none of our runs
                old, new = (f"{m['tracking_uri']} {m['experiment']}" for m in (there, now))
                log.warning("tracker: all goes to %s, no longer to %s", new, old)
            meta = {"id": uuid.uuid4().hex[:12]} | before | now | {"folder": str(self.folder)}
            db.executemany("REPLACE INTO meta VALUES (?, ?)", meta.items())
        # By its id its runs are found again: no power failure is to take that
        self._db.execute("PRAGMA wal_checkpoint")
        self.id: str = meta["id"]  # a new study of an old name does not write into the old runs

    @staticmethod
    def stored(folder: Path) -> dict[str, str]:
        """The last arguments of a folder's outbox; the password comes from the environment, where
        an address of the same tracker has one; {} of one that is empty. Raises ValueError."""
        if not (folder / OUTBOX).is_file():
            raise ValueError(f"no outbox in {folder}")
        with closing(open_database(folder / OUTBOX)) as db:
            if _is_empty(db):
                return {}
            meta = dict(db.execute("SELECT name, value FROM meta"))
        meta = {name: meta[name] for name in STORED} | {"tracking_uri": _address(meta, folder)}
        for name in ADDRESSES:
            if without_password(address := os.environ.get(name, "")) == meta["tracking_uri"]:
                meta["tracking_uri"] = address
        return meta

    def run(
        self,
        key: str,
        name: str,
        tags: Mapping[str, Any],
        params: Mapping[str, Any],
        parent: str | None = None,
    ) -> None:
        # MLflow never changes a param: another value (the budget of a resumed study) is a tag
        stored = self._query("SELECT params FROM runs WHERE key = ?", key)
        before = json.loads(stored[0][0]) if stored else {}
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
        statement = "UPDATE runs SET open = 0 WHERE key = ?"
        self._put(key, [("end", {"status": status})], statement, (key,))

    def artifact(self, key: str, path: Path, artifact_path: str | None = None) -> None:
        target = "/".join(filter(None, (artifact_path, None if path.is_dir() else path.name)))
        body = {"path": self._stored_path(path), "artifact_path": artifact_path, "target": target}
        self._put(key, [("artifact", body)])

    def delete_artifact(self, key: str, artifact_path: str) -> None:
        for table in ("rows", "sent"):
            statement = (
                f"DELETE FROM {table} WHERE run = ? AND kind = 'artifact'"
                " AND instr(json_extract(body, '$.target') || '/', ?) = 1"
            )
            self._write(statement, [(key, artifact_path + "/")])
        self._put(key, [("delete", {"artifact_path": artifact_path})])

    def dataset(self, key: str, name: str, digest: str, profile: Mapping[str, Any]) -> None:
        body = {"name": name, "digest": digest, "profile": json.dumps(profile)}
        self._put(key, [("dataset", body)])

    def register(self, key: str, name: str, folder: Path) -> None:
        self._put(key, [("register", {"name": name, "folder": self._stored_path(folder)})])

    @property
    def unsent(self) -> int:
        return int(self._query("SELECT count(*) FROM rows")[0][0])

    @property
    def refused(self) -> int:
        return int(self._query("SELECT count(*) FROM refused")[0][0])

    @property
    def keys(self) -> list[str]:
        return [key for (key,) in self._query("SELECT key FROM runs ORDER BY rowid")]

    @property
    def open_runs(self) -> list[str]:
        return [key for (key,) in self._query("SELECT key FROM runs WHERE open ORDER BY rowid")]

    def results(self, key: str) -> dict[str, Any]:
        run_id = self._query("SELECT run_id FROM runs WHERE key = ? AND run_id NOT NULL", key)
        body = self._query("SELECT body FROM results WHERE key = ?", key)
        results = json.loads(body[0][0]) if body else {}
        return {"run_id": run_id[0][0]} | results if run_id else {}

    @property
    def lanes(self) -> list[Lane]:
        """Where rows wait: the record of each run, that with the oldest row first, then files."""
        query = (
            f"SELECT run, kind IN {FILES} AS files FROM rows GROUP BY run, files"
            " ORDER BY files, min(id)"
        )
        return [Lane(run, bool(files)) for run, files in self._query(query)]

    def rows(self, count: int = -1, lane: Lane | None = None) -> list[Row]:
        """The oldest unsent rows, of one lane or of all; all without a count."""
        where = f"WHERE run = ? AND (kind IN {FILES}) = ?" if lane else ""
        query = f"SELECT {COLUMNS} FROM rows {where} ORDER BY id LIMIT ?"
        rows = self._query(query, *(lane or ()), count)
        return [Row(i, time, run, kind, json.loads(body)) for i, time, run, kind, body in rows]

    @property
    def refusals(self) -> list[str]:
        with self._lock:
            return _refusals(self._db)

    def done(self, ids: Iterable[int]) -> None:
        """The tracker has these rows."""
        rows = [(number,) for number in ids]
        with self._lock, self._db as db:
            db.executemany(f"REPLACE INTO sent SELECT {COLUMNS} FROM rows WHERE id = ?", rows)
            db.executemany("DELETE FROM rows WHERE id = ?", rows)

    def forget(self, key: str | None = None) -> None:
        """The tracker has this run no more, or none of them: all of it is to be sent anew."""
        with self._lock, self._db as db:
            _forget(db, key)

    def refuse(self, row: Row, error: str) -> bool:
        """Sets a row, or a part of it, aside; False if it was deleted meanwhile."""
        return self._write(
            "REPLACE INTO refused SELECT id, time, run, kind, ?, ? FROM rows WHERE id = ?",
            [(json.dumps(row.body), error, row.id)],
        )

    def _stored_path(self, path: Path) -> str:
        """Relative to the run folder where it can be: a folder that was moved can still be sent."""
        path = path.resolve()
        return str(path.relative_to(self.folder) if path.is_relative_to(self.folder) else path)

    def _write(self, statement: str, values: Sequence[Sequence[Any]]) -> bool:
        """Whether any row was written."""
        with self._lock, self._db as db:
            return db.executemany(statement, values).rowcount > 0

    def _query(self, query: str, *values: Any) -> list[Any]:
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
            db.executemany(  # a clock that was set back ends no run before its start
                "INSERT INTO rows (time, run, kind, body)"
                " VALUES (max(?1, (SELECT time FROM runs WHERE key = ?2)), ?2, ?3, ?4)",
                [(now, run, kind, json.dumps(body)) for kind, body in rows if body],
            )


def open_database(file: Path, address: str = "") -> sqlite3.Connection:
    """The database of an outbox. Raises OutboxError if it is not as it was written."""
    db = sqlite3.connect(address or file, 30, check_same_thread=False, uri=bool(address))
    db.create_function(CHECKSUM, -1, _checksum, deterministic=True)
    try:
        ((fault,),) = db.execute("PRAGMA integrity_check(1)").fetchall()
        for name, made in db.execute("SELECT name, sql FROM sqlite_master").fetchall():
            if call := re.search(rf"{CHECKSUM}\([^)]*\)", made or ""):  # else of an older version
                query = f"SELECT 1 FROM {name} WHERE {CHECKSUM} IS NOT {call[0]} LIMIT 1"
                fault = f"in {name}" if db.execute(query).fetchall() else fault
    except sqlite3.DatabaseError as error:
        # What is no text makes the function fail; else it is locked, or its disk is full
        is_text = error.sqlite_errorcode != sqlite3.SQLITE_ERROR
        if isinstance(error, sqlite3.OperationalError) and is_text:
            db.close()
            raise
        fault = str(error)
    if fault != "ok":
        db.close()
        raise OutboxError(file, f"is not as it was written ({' '.join(fault.split())})")
    return db


def _forget(db: sqlite3.Connection, key: str | None = None) -> None:
    """As Outbox.forget says. What was to be deleted there is not there any more."""
    run, where = "(?1 IS NULL OR run = ?1)", "WHERE ?1 IS NULL OR key = ?1"
    for statement in (
        f"INSERT INTO rows SELECT {COLUMNS} FROM sent WHERE {run} AND kind != 'delete'",
        f"DELETE FROM sent WHERE {run}",
        f"UPDATE runs SET run_id = NULL {where}",
        f"DELETE FROM results {where}",
    ):
        db.execute(statement, (key,))


def _checksum(*values: Any) -> int:
    return zlib.crc32(repr(values).encode())


def _is_empty(db: sqlite3.Connection) -> bool:
    tables = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'meta'").fetchone()[0]
    return not tables or not db.execute("SELECT count(*) FROM meta").fetchone()[0]


def _address(meta: Mapping[str, str], folder: Path) -> str:
    """The tracker's address. A database in a file that went with its project, to wherever the run
    folder is now, is looked for beside it."""
    uri = meta.get("tracking_uri", "")
    file, before = database(uri), meta.get("folder")
    if file and before and not file.exists():
        moved = (folder / os.path.relpath(file, before)).resolve()
        return address(sqlite_address(moved)) if moved.exists() else uri
    return address(uri) if file else uri


def _refusals(db: sqlite3.Connection) -> list[str]:
    query = "SELECT run, kind, body, error FROM refused ORDER BY id, body"
    return [f"{run}: {_what(kind, body)}: {error}" for run, kind, body, error in db.execute(query)]


def _what(kind: str, body: str) -> str:
    """What a row holds, in words."""
    content = json.loads(body)
    if kind == "batch":
        return ", ".join(f"{sort} {name}" for sort, name, *_ in content)
    names = (content.get(field) for field in ("target", "artifact_path", "name"))
    return " ".join((kind, *filter(None, names)))


def sending(folder: Path) -> tuple[int, int, Sequence[str]]:
    """Of a run folder's outbox, which is only read: rows unsent, rows refused, and of the first
    three refused which and why."""
    file = folder / OUTBOX
    if not file.is_file():
        return 0, 0, ()
    # On a disk that is read-only SQLite could not make the file beside it that it reads with
    mode = "mode=ro" if os.access(folder, os.W_OK) else "mode=ro&immutable=1"
    with closing(open_database(file, f"{file.absolute().as_uri()}?{mode}")) as db:
        if _is_empty(db):
            if in_use(folder):  # its driver makes it
                return 0, 0, ()
            raise OutboxError(file, EMPTY)
        counts = "SELECT (SELECT count(*) FROM rows), (SELECT count(*) FROM refused)"
        unsent, refused = db.execute(counts).fetchone()
        return unsent, refused, _refusals(db)[:3]


def _items(sort: str, named: Mapping[str, Any], step: int | None = None) -> list[Any]:
    # PostgreSQL takes no NUL.
    texts = {n: v if sort == "metric" else str(v).replace("\0", "") for n, v in named.items()}
    return [(sort, name, value, step) for name, value in texts.items()]


def _now() -> int:
    return time.time_ns() // 1_000_000
