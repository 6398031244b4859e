"""What people look at: MLflow, fed from the outbox by one thread.

The sender takes the oldest rows, groups them by run, sends each group, and only then deletes it;
so an outage loses nothing, and neither does kill -9. What is sent again adds nothing: runs are
found again by a tag, points have fixed timestamps. What the tracker refuses for good is set
aside. One call to a dead server takes MLflow's client 246 s with its own retries (measured),
hence the settings below. Only this module and `registry` import MLflow, which takes seconds.
"""

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_search.tracking.outbox import Outbox, Row, Status, chunks, line, permanent
from vgg_search.tracking.registry import FOLDER, Servable, register

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

KEY_TAG = "vgg_search.key"
ROUND_SECONDS, LONGEST_PAUSE, HURRY_SECONDS = 1.0, 15.0, 0.1
ROWS = 1000  # of a round
LIMITS = {"metric": 800, "param": 100, "tag": 100}  # of a call; MLflow takes 1,000 items in all
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the outbox retries
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

__all__ = ["Status", "Tracker", "default_uri", "fetch_champion", "sync", "version_of"]

log = logging.getLogger(__name__)


def default_uri() -> str:
    """MLFLOW_TRACKING_URI, else the database that `mlflow ui` opens in this folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


class Tracker(Outbox):
    """An outbox with its sender, which sends nothing before `start`."""

    def __init__(
        self, folder: Path, tracking_uri: str, experiment: str, study: str, servable: Servable
    ) -> None:
        database = _database(tracking_uri)  # in full: `sync` may run in another folder
        uri = f"sqlite:///{database}" if database else tracking_uri
        super().__init__(folder, uri, experiment, study)
        self.servable = servable
        self.error: str | None = None  # why the last attempt to send failed
        self._stop, self._hurry = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._client: Any = None
        self._experiment_id = ""
        self._created: str | None = None  # a run that needs not be opened again

    def start(self, after: float = 0.0) -> None:
        """Starts the sender, which imports MLflow, in `after` s. Import torch and Ray first: two
        threads that import the same packages can each get the other's half-made modules."""
        os.environ.update(ENVIRONMENT)
        self._thread = threading.Thread(target=self._send_for_ever, args=(after,), daemon=True)
        self._thread.start()

    def flush(self, timeout: float) -> int:
        """Waits until all is sent, at most `timeout` s; returns the number of rows unsent."""
        until = time.monotonic() + timeout
        self._hurry.set()
        while (unsent := self.unsent) and time.monotonic() < until:
            time.sleep(0.02)
        self._hurry.clear()
        return unsent

    def close(self, timeout: float) -> int:
        """Flushes and ends the sender. Returns the number of rows unsent."""
        unsent = self.flush(timeout)
        self._stop.set()
        self._hurry.set()
        if self._thread:
            self._thread.join(2)  # a call that hangs may be left behind: its rows stay
        return unsent

    def _send_for_ever(self, after: float) -> None:
        pause = ROUND_SECONDS
        self._hurry.wait(after)
        with (self.folder / "outbox.lock").open("w") as lock:
            while not self._stop.is_set():
                try:
                    # Two senders (a search, and `sync` beside it) would make runs twice.
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._connect()
                    while self._send_oldest():
                        pass
                    pause, self.error = ROUND_SECONDS, None
                except BlockingIOError:
                    self.error = "another process is sending"
                except Exception as error:  # whatever it is, this thread goes on: rows are kept
                    if self.error is None:
                        log.warning("tracker: nothing sent for now, all is kept: %s", line(error))
                    pause, self.error = min(2 * pause, LONGEST_PAUSE), line(error)
                if self._hurry.wait(pause):
                    self._stop.wait(HURRY_SECONDS)

    def _connect(self) -> None:
        if self._client is None:
            client = _connected(self.uri)
            found, database = client.get_experiment_by_name(self.experiment), _database(self.uri)
            # Artifacts beside a local database, wherever this runs and `mlflow ui` is started.
            place = (database.parent / "mlruns" / self.experiment).as_uri() if database else None
            if found:
                self._experiment_id = found.experiment_id
            else:
                self._experiment_id = client.create_experiment(self.experiment, place)
                client.set_experiment_tag(self._experiment_id, *_trials_view())
            self._client = client

    def _send_oldest(self) -> bool:
        """One round; True if there may be more. Only within a run does order matter, so that
        rows of trials side by side go in one call a trial."""
        rows = self._oldest(ROWS)
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(row.run, []).append(row)
        for group in groups.values():
            if self._stop.is_set():
                return False
            for chunk in chunks(group, LIMITS):
                self._try(chunk)
            self._write("DELETE FROM rows WHERE id = ?", [(row.id,) for row in group])
        return len(rows) == ROWS

    def _try(self, chunk: list[Row]) -> None:
        """Sends the chunk, except what is refused for good, which is found by halving."""
        try:
            self._send(chunk)
        except Exception as error:
            # At the end of the process, helper threads cannot start: no fault of the row.
            ending = self._stop.is_set() or not threading.main_thread().is_alive()
            if ending or not permanent(error):
                raise
            if len(chunk) > 1:
                parts = [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
            elif chunk[0].kind == "batch" and (half := len(chunk[0].body) // 2):
                body = chunk[0].body
                parts = [[chunk[0]._replace(body=part)] for part in (body[:half], body[half:])]
            else:
                if self._refuse(chunk[0], line(error)):
                    log.warning("tracker: refused %s: %s", chunk[0].run, line(error))
                return
            for part in parts:
                self._try(part)

    def _send(self, chunk: list[Row]) -> None:
        """Sends rows of a "batch" kind, or one of another."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        client, row = self._client, chunk[0]
        body, run_id = row.body, self._run_id(row.run)
        if row.kind == "batch":
            items = [(row.time, *item) for row in chunk for item in row.body]
            client.log_batch(
                run_id,
                [Metric(n, v, time, step) for time, sort, n, v, step in items if sort == "metric"],
                [Param(*pair) for pair in {i[2:4]: 0 for i in items if i[1] == "param"}],
                [RunTag(*pair) for pair in {i[2]: i[3] for i in items if i[1] == "tag"}.items()],
                synchronous=True,
            )
        elif row.kind == "run":
            if run_id != self._created:
                client.update_run(run_id, "RUNNING", body["name"])
            self._created = None
        elif row.kind == "end":
            client.set_terminated(run_id, body["status"], row.time)
        elif row.kind == "artifact":
            path = self.folder / body["path"]
            send = client.log_artifacts if path.is_dir() else client.log_artifact
            send(run_id, str(path), body["artifact_path"])
        elif row.kind == "delete":
            uri = client.get_run(run_id).info.artifact_uri
            get_artifact_repository(uri, self.uri).delete_artifacts(body["artifact_path"])
        elif row.kind == "dataset":
            context = InputTag("mlflow.data.context", body.pop("context"))
            client.log_inputs(
                run_id, [DatasetInput(Dataset(source_type="local", **body), [context])]
            )
        else:
            folder = self.folder / body["folder"]
            result = register(client, run_id, self.servable, body["name"], folder, body["alias"])
            self._write("REPLACE INTO results VALUES (?, ?)", [(row.run, json.dumps(result))])
            log.info("%s", result["alias_text"])

    def _run_id(self, key: str) -> str:
        """The run of this key: known, found by its tag, or created."""
        ((name, parent, start, run_id),) = self._ask(
            "SELECT name, parent, time, run_id FROM runs WHERE key = ?", key
        )
        if not run_id:
            tags = {KEY_TAG: f"{self.id}/{key}"}
            query = f"tags.`{KEY_TAG}` = '{tags[KEY_TAG]}'"
            found = self._client.search_runs([self._experiment_id], query, max_results=1)
            if parent:
                tags["mlflow.parentRunId"] = self._run_id(parent)
            if found:
                run_id = found[0].info.run_id
            else:
                made = self._client.create_run(self._experiment_id, start, tags, name)
                run_id = self._created = made.info.run_id
            self._write("UPDATE runs SET run_id = ? WHERE key = ?", [(run_id, key)])
        return str(run_id)


def _trials_view() -> tuple[str, str]:
    """Name and value of the tag by which the experiment's page offers, under "Views", a table
    with the columns that trials are compared by, as many as fit beside their names."""
    columns = ["metrics.`val_accuracy`", "metrics.`best_val_accuracy`"]
    columns += ["params.`lr`", "params.`num_params`", "tags.`state`"]
    state = {"orderByKey": "attributes.start_time", "orderByAsc": True, "searchFilter": ""}
    state |= {"startTime": "ALL", "lifecycleFilter": "Active", "datasetsFilter": []}
    state |= {"modelVersionFilter": "All Runs", "selectedColumns": columns}
    now = time.time_ns() // 1_000_000
    view = {"name": "Trials", "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    return "mlflow.sharedViewState.trials", json.dumps(view)


def sync(folder: Path, servable: Servable, timeout: float) -> dict[str, Any]:
    """Sends what a run folder's outbox still holds: {"unsent", "refused", "error"}. Beside a
    live search it waits for the search's own sender. Raises ValueError without an outbox."""
    tracker = Tracker(folder, **Outbox.stored(folder), servable=servable)
    tracker.start()
    unsent = tracker.close(timeout)
    return {"unsent": unsent, "refused": tracker.refused, "error": tracker.error}


def version_of(model_uri: str, tracking_uri: str | None) -> "ModelVersion":
    """The version that models:/NAME@ALIAS or models:/NAME/VERSION means. Raises ValueError if
    there is no such model, ConnectionError if the tracker does not answer."""
    name, at, alias = model_uri.removeprefix("models:/").partition("@")
    name, _, number = (name, "", "") if at else name.partition("/")
    if not model_uri.startswith("models:/") or not name or not (alias or number):
        rule = "model must be models:/NAME@ALIAS or models:/NAME/VERSION"
        raise ValueError(f"{rule}, got {model_uri!r}")
    with _asked(model_uri, tracking_uri or default_uri()) as client:
        if at:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, number)


def fetch_champion(model_uri: str, tracking_uri: str | None, target: Path) -> Path:
    """Downloads that version's model.safetensors and model.json into a folder under `target`.
    Raises as `version_of` does."""
    version = version_of(model_uri, tracking_uri)
    with _asked(model_uri, tracking_uri or default_uri()) as client:
        return Path(client.download_artifacts(version.run_id or "", FOLDER, str(target)))


@contextmanager
def _asked(model_uri: str, tracking_uri: str) -> Iterator["MlflowClient"]:
    """A client, whose errors are about a model."""
    database = _database(tracking_uri)
    if database and not database.exists():  # MLflow would make one
        raise ValueError(f"no model {model_uri}: there is no database {database}")
    os.environ.update(ENVIRONMENT)
    try:
        yield _connected(tracking_uri)
    except Exception as error:
        if permanent(error):
            raise ValueError(f"no model {model_uri} in the tracker: {line(error)}") from None
        raise ConnectionError(f"the tracker does not answer: {line(error)}") from None


def _connected(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    database = _database(uri)
    if database is None:
        return MlflowClient(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(database.parent, os.O_RDONLY)
    try:
        # Processes that make a fresh database at the same time break it for each other.
        fcntl.flock(folder, fcntl.LOCK_EX)
        return MlflowClient(uri)
    finally:
        os.close(folder)


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None
