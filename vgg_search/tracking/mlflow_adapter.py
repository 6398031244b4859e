"""MLflow's client, and all that is done with it that its documentation does not promise, each with
the reason. Checked against MLflow 3.17: look here first when a later one behaves otherwise.
"""

import fcntl
import json
import logging
import os
import re
import shlex
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from vgg_search.errors import causes
from vgg_search.storage.addresses import masked, sqlite_address
from vgg_search.storage.folder import expanded, plain_name, replacing

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Of 4xx: rights, load, a lock, and what a proxy in front does not let through
CURABLE = (401, 402, 403, 405, 407, 408, 413, 421, 423, 425, 429, 451, 499)
# Documented. One call to a dead server takes MLflow's client 246 s with its own retries (measured).
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the outbox retries
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

POOL = "MLFLOW_SQLALCHEMYSTORE_POOLCLASS"
FileId = tuple[int, int] | None  # device and inode


def address(tracking_uri: str | None) -> str:
    """An address, by default MLFLOW_TRACKING_URI, else the database that `mlflow ui` opens in this
    folder. A file or folder is named in full: who reads it may run elsewhere."""
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if file := database(uri):
        return sqlite_address(file) + "".join(uri.partition("?")[1:])
    if is_file_store(uri) and not uri.startswith("file:"):
        return str(Path(expanded(uri)).resolve())
    return uri


def database(uri: str) -> Path | None:
    """The file of an SQLite address, in which SQLAlchemy takes %2F for / and ? for the end."""
    parts = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(expanded(unquote(parts[1]))).resolve() if parts else None


def file_id(uri: str) -> FileId:
    """Which file a database's address means now; None of one that is not there, or in no file.
    MLflow holds its file open, and writes to one that is removed (SQLAlchemy's pool)."""
    try:
        stat = os.stat(database(uri) or "")
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def is_file_store(uri: str) -> bool:
    """Whether MLflow takes the address for a folder."""
    return uri.startswith("file:") or (":" not in uri and uri != "databricks")


def file_stores_allowed() -> bool:
    return os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1")


def local_folder(location: str) -> Path | None:
    """The folder of a place for artifacts; None if that is none of this machine."""
    if location.startswith("file:"):
        return Path(unquote(urlsplit(location).path))
    return None if ":" in location or not location else Path(location)


def artifacts_beside(file: Path, experiment: str) -> str:
    """Where artifacts go with a local database: beside it, wherever this and `mlflow ui` run."""
    return (file.parent / "mlruns" / plain_name(experiment, "experiment")).as_uri()


def newest_schema() -> set[str]:
    """The version of a database that the installed MLflow reads; found without importing it."""
    spec = find_spec("mlflow")
    folder = Path(str(spec and spec.origin)).parent / "store" / "db_migrations" / "versions"
    text = "\n".join(file.read_text() for file in folder.glob("*.py"))
    before = set(re.findall(r"^down_revision.*?[\"'](\w+)[\"']", text, re.M))
    return set(re.findall(r"^revision.*?[\"'](\w+)[\"']", text, re.M)) - before


def deleted_experiment(uri: str, name: str, number: str) -> str:
    """What is wrong with it, and the cure."""
    restore = f"mlflow experiments restore --experiment-id {number}"
    where = f"MLFLOW_TRACKING_URI={shlex.quote(masked(uri))}"
    return f"experiment {name!r} is deleted; `{where} {restore}`, or --experiment NAME"


def deleted_run(uri: str, run_id: str) -> str:
    """What is wrong with it, and the cure."""
    where = f"MLFLOW_TRACKING_URI={shlex.quote(masked(uri))}"
    return f"its run is deleted; `{where} mlflow runs restore --run-id {run_id}`"


def run_of(client: "MlflowClient", run_id: str) -> "Run | None":
    """The run, deleted or not; None if MLflow knows nothing of it."""
    try:
        return client.get_run(run_id)
    except Exception as error:
        if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def connected(uri: str) -> "MlflowClient":
    """A client that says nothing on the terminal. A database that is not there is made, by one
    process at a time: those that make a fresh one together break it for each other. It is made
    aside: MLflow cannot open one whose making was killed (measured: it stays half migrated)."""
    for name, text in ENVIRONMENT.items():
        os.environ.setdefault(name, text)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    file = database(uri)
    if file is None:
        return MlflowClient(uri)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not file.exists():
            _make(file)
        return MlflowClient(uri)
    finally:
        os.close(folder)


def _make(file: Path) -> None:
    """An empty database. MLflow keeps what it has opened by its address, half migrated if its disk
    was full: without a pool (documented) it opens the next try's anew."""
    from mlflow import MlflowClient

    before = os.environ.get(POOL)
    os.environ[POOL] = "NullPool"
    try:
        with replacing(file) as new:
            MlflowClient(sqlite_address(new)).search_experiments()
    finally:
        os.environ.pop(POOL)
        os.environ.update({} if before is None else {POOL: before})


def delete_artifacts(client: "MlflowClient", uri: str, run_id: str, artifact_path: str) -> None:
    """Removes a file or folder from a run's artifacts: the client can add them, and no more."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    place = client.get_run(run_id).info.artifact_uri
    get_artifact_repository(place, uri).delete_artifacts(artifact_path)


def trials_view() -> tuple[str, str]:
    """Name and value of the tag by which the experiment's page offers, under "Views", a table
    with the columns that trials are compared by, as many as fit beside their names. The page
    itself writes such tags; there is no call for it."""
    columns = ["metrics.`val_accuracy`", "metrics.`best_val_accuracy`"]
    columns += ["params.`lr`", "params.`num_params`", "tags.`state`"]
    state = {"orderByKey": "attributes.start_time", "orderByAsc": True, "searchFilter": ""}
    state |= {"startTime": "ALL", "lifecycleFilter": "Active", "datasetsFilter": []}
    state |= {"modelVersionFilter": "All Runs", "selectedColumns": columns}
    now = time.time_ns() // 1_000_000
    view = {"name": "Trials", "createdAt": now, "updatedAt": now, "state": json.dumps(state)}
    return "mlflow.sharedViewState.trials", json.dumps(view)


def permanent(error: Exception) -> bool:
    """True for what will not succeed later: a 4xx answer, except about rights and load; a file
    that is gone; an error in a model. A failing server, database, network or disk is not.

    MLflow does not tell the two apart: to it, a database's connection that was cut is a bad
    request, and so is the answer of a proxy in front of a server that is away.
    """
    answer = getattr(error, "response", None)  # of requests, which artifacts go through
    if hasattr(error, "get_http_status_code"):  # MLflow's
        code = getattr(error, "error_code", None)
        away = code == "ENDPOINT_NOT_FOUND" or "InterfaceError" in str(error)
        status = 0 if away else error.get_http_status_code()
    elif answer is not None:
        status = getattr(answer, "status_code", 0)
    elif isinstance(error, OSError):
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    else:
        return isinstance(error, (ValueError, TypeError, LookupError, AttributeError, RuntimeError))
    return status == 501 or (400 <= status < 500 and status not in CURABLE)


def hopeless(error: Exception) -> bool:
    """True for what, before a study, no waiting cures: what is `permanent`, rights, a driver, a
    schema or Databricks' credentials that are missing."""
    text = " ".join(str(e) for e in causes(error))
    if "OperationalError" in text or "InterfaceError" in text:
        return bool(re.search(r"authentication failed|does not exist|no pg_hba|denied", text))
    answer = getattr(error, "get_http_status_code", None)
    denied = answer is not None and answer() in (401, 403)
    lacks = re.search("db upgrade|credential configuration failed", text)
    return bool(denied or permanent(error) or isinstance(error, ImportError) or lacks)


def in_a_line(error: BaseException) -> str:
    """The error without credentials; of a network's or disk's error, its origin. MLflow explains
    itself after a blank line: that is left out, and what it says how to go on is not."""
    origin = error
    while before := origin.__cause__ or (not origin.__suppress_context__ and origin.__context__):
        origin = before
    text = str(origin if isinstance(origin, OSError) else error) or type(error).__name__
    return masked(" ".join(text.partition("\n\n")[0].split()))[:800]
