"""MLflow's client, and all that is done with it that its documentation does not promise, each with
the reason. Checked against MLflow 3.17: look here first when a later one behaves otherwise.
"""

import fcntl
import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_search.storage.addresses import masked
from vgg_search.storage.folder import replacing

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Documented. One call to a dead server takes MLflow's client 246 s with its own retries (measured).
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the outbox retries
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def default_uri() -> str:
    """MLFLOW_TRACKING_URI, else the database that `mlflow ui` opens in this folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def database(uri: str) -> Path | None:
    """The file of an SQLite address."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def connected(uri: str) -> "MlflowClient":
    """A client that says nothing on the terminal. A database that is not there is made, by one
    process at a time: those that make a fresh one together break it for each other. It is made
    aside: MLflow cannot open one whose making was killed (measured: it stays half migrated)."""
    os.environ.update(ENVIRONMENT)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    file = database(uri)
    if file is None:
        return MlflowClient(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not file.exists():
            with replacing(file) as new:
                MlflowClient(f"sqlite:///{new}").search_experiments()
        return MlflowClient(uri)
    finally:
        os.close(folder)


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
    return status == 501 or (400 <= status < 500 and status not in (401, 403, 408, 429, 499))


def in_a_line(error: BaseException) -> str:
    """The error without credentials; of a network's or disk's error, its origin."""
    origin = error
    while origin.__context__:
        origin = origin.__context__
    text = str(origin if isinstance(origin, OSError) else error) or type(error).__name__
    return masked(" ".join(text.split()))[:300]
