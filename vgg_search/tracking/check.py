"""Whether MLflow can take a study.

What can be seen without MLflow is looked at without it, in milliseconds; MLflow, which takes
seconds to import, is asked in a process of its own, while Ray starts, and only where the look
leaves a doubt.
"""

import json
import shlex
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import quote

from vgg_search.storage.addresses import masked
from vgg_search.tracking import mlflow_adapter
from vgg_search.tracking.tracker import TrackerError

LOOK_SECONDS = 5.0  # for a server to answer
ASK_SECONDS = 20.0  # for MLflow to be imported and to answer; longer, and the tracker is away
NOT_MLFLOW = ValueError, LookupError, TypeError, AttributeError  # no JSON, or of another shape


def check_mlflow(uri: str, experiment: str) -> None:
    """Raises TrackerError if MLflow there cannot take a study, and not if it is away."""
    if not look(uri, experiment):
        _ask_elsewhere(uri, experiment)


def look(uri: str, experiment: str) -> bool:
    """Whether all that can be seen without MLflow is well, or the tracker is away; False leaves it
    to MLflow. Raises TrackerError."""
    if mlflow_adapter.is_file_store(uri):
        if mlflow_adapter.file_stores_allowed():
            return False
        raise refusal(
            uri,
            "MLflow keeps no new records in folders; sqlite:///mlflow.db is a database in a file, "
            "`mlflow migrate-filestore` takes an old folder over, MLFLOW_ALLOW_FILE_STORE=true "
            "allows one",
        )
    if file := mlflow_adapter.database(uri):
        return _look_at_database(file, uri, experiment)
    return uri.startswith("http") and _look_at_server(uri, experiment)


def _look_at_database(file: Path, uri: str, experiment: str) -> bool:
    if not file.parent.is_dir():
        raise refusal(uri, f"there is no folder {file.parent}; make it, or --tracking-uri")
    try:
        with TemporaryFile(dir=file.parent):
            pass
        if not file.exists():
            check_artifacts(uri, mlflow_adapter.artifacts_beside(file, experiment), experiment)
            return True
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=1)) as db:
            return _look_at_tables(db, uri, experiment)
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):  # another search is writing
            return True
        raise refusal(uri, f"{error}; --tracking-uri names another") from None
    except OSError as error:
        raise refusal(uri, f"{file.parent} cannot be written to: {error.strerror}") from None


def _look_at_tables(db: sqlite3.Connection, uri: str, experiment: str) -> bool:
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    if not tables:
        return True
    if not tables >= {"experiments", "runs", "alembic_version"}:
        raise refusal(uri, "the database is not MLflow's; --tracking-uri names another")
    db.execute("BEGIN IMMEDIATE").close()
    query = "SELECT experiment_id, lifecycle_stage, artifact_location FROM experiments WHERE name=?"
    for number, stage, location in db.execute(query, (experiment,)):
        check_experiment(uri, experiment, str(number), stage, location)
    versions = {version for (version,) in db.execute("SELECT version_num FROM alembic_version")}
    return versions == mlflow_adapter.newest_schema()


def _look_at_server(uri: str, experiment: str) -> bool:
    place = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name"
    try:
        with urllib.request.urlopen(
            f"{place}?experiment_name={quote(experiment, safe='')}", timeout=LOOK_SECONDS
        ) as answer:
            found: dict[str, Any] = json.load(answer)["experiment"]
        names = ("experiment_id", "lifecycle_stage", "artifact_location")
        facts = [str(found.get(name, "")) for name in names]
    except urllib.error.HTTPError as error:
        text = ""
        with suppress(OSError, HTTPException):  # an answer that was cut
            text = error.read().decode(errors="replace")
        return error.code >= 500 or '"RESOURCE_DOES_NOT_EXIST"' in text
    except (OSError, HTTPException, *NOT_MLFLOW) as error:
        reason = getattr(error, "reason", error)  # of urllib, what went wrong below it
        return isinstance(reason, ConnectionError | TimeoutError)
    check_experiment(uri, experiment, *facts)
    return True


def check_experiment(uri: str, name: str, number: str, stage: str, location: str) -> None:
    """Raises TrackerError if an experiment cannot take runs or keep their files."""
    if stage == "deleted":
        raise refusal(uri, mlflow_adapter.deleted_experiment(uri, name, number))
    check_artifacts(uri, location, name)


def check_artifacts(uri: str, location: str, experiment: str) -> None:
    """Raises TrackerError if the files of an experiment are to lie in a folder that is not there,
    as that of a project that was moved, or cannot be written to."""
    folder = mlflow_adapter.local_folder(location)
    if folder is None:
        return
    holder = folder.parent.parent  # of MLflow's "mlruns", which is made when a file comes
    try:
        if not (folder.exists() or holder.is_dir()):
            raise FileNotFoundError(None, "there is no such folder")
        with TemporaryFile(dir=next(p for p in (folder, *folder.parents) if p.exists())):
            pass
    except OSError as error:
        reason = f"experiment {experiment!r} keeps its files in {folder}: {error.strerror}"
        cure = "mend that, or --experiment NAME begins another, beside its database"
        raise refusal(uri, f"{reason}; {cure}") from None


def refusal(uri: str, reason: str) -> TrackerError:
    return TrackerError(f"MLflow at {shlex.quote(masked(uri))} cannot take the study: {reason}")


def _ask_elsewhere(uri: str, experiment: str) -> None:
    """Asks MLflow in another process: two threads that import the same packages, as it and Ray do,
    can each get the other's half-made modules. Raises TrackerError."""
    with suppress(subprocess.TimeoutExpired):
        answer = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps([uri, experiment]),  # no argument: it may be secret
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=ASK_SECONDS,
        ).stdout.strip()
        if answer:
            raise TrackerError(answer)


def ask(uri: str, experiment: str) -> None:
    """Asks MLflow itself. Raises TrackerError if it refuses, and not if it is away."""
    try:
        client = mlflow_adapter.connected(uri)
        found = client.get_experiment_by_name(experiment)
    except Exception as error:
        if mlflow_adapter.hopeless(error):
            raise refusal(uri, mlflow_adapter.in_a_line(error)) from None
        return
    if found:
        place = found.artifact_location
        check_experiment(uri, experiment, found.experiment_id, found.lifecycle_stage, place)


if __name__ == "__main__":
    try:
        ask(*json.load(sys.stdin))
    except TrackerError as error:
        print(error)
