"""Addresses of trackers and buckets: which there can be, and how they and commands are shown,
without secrets and ready to be pasted."""

import re
import shlex
from pathlib import Path
from urllib.parse import quote

from vgg_search.storage.folder import RUNS, expanded, is_remote

MLFLOW = "vgg_search.tracking.sender:MlflowTracker"
TRACKERS = dict.fromkeys(  # the class of each kind of address, a subclass of `Tracker`
    ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "file", "databricks"), MLFLOW
)
_SERVER = (r"//([^/@\s]*@)?(\[[0-9a-fA-F:.]+\]|[^/@:\s]+)(:\d+)?(/\S*)?$", "://HOST:PORT")
FORMS = {  # what follows a scheme, and how it is said
    "http": _SERVER,
    "https": _SERVER,
    "sqlite": (r"///(?!:memory:)[^?]+(\?.*)?$", ":///FILE, FILE a path"),
}

# A name, its password, which may hold a / (only after a host do digits and a / follow the colon),
# and the @ that ends it; a driver's database may be given it by a parameter instead
_PASSWORD = r"(?<=://)([^/:@\s]*):(?!\d+(?:[/?#\s]|$))[^@\s]*@"
_PARAMETER = r"([?&])(?:password|passwd|pwd)=[^&\s'\"]*"


def check_tracker(value: str | None) -> str | None:
    """The address of a tracker. Raises ValueError if none has such a kind of address."""
    scheme, colon, rest = (value or "").partition(":")
    kind = _kind(scheme)
    if colon and kind not in TRACKERS:
        raise ValueError(f"be a path or an address that begins with {', '.join(TRACKERS)}")
    if kind in FORMS and not re.match(FORMS[kind][0], rest):
        raise ValueError(f"be {scheme}{FORMS[kind][1]}")
    port = re.search(r":(\d+)(?:/|$)", rest.rpartition("@")[2])
    if FORMS.get(kind) == _SERVER and port and not 0 < int(port[1]) < 2**16:
        raise ValueError("have a PORT of 1 to 65535")
    return value


def tracker_at(value: str) -> str:
    """The class of trackers at an address; MLflow's at a path."""
    return TRACKERS.get(_kind(value.partition(":")[0]), MLFLOW)


def _kind(scheme: str) -> str:
    return scheme.split("+")[0]  # what follows names a driver


def check_storage(value: str) -> str:
    """A folder, or a bucket's address. Raises ValueError for one with secrets: it is shown."""
    if is_remote(value) and re.search(r"://[^/]*@|\?", value):
        raise ValueError("have no credentials or parameters: the environment has them")
    if value.startswith("file:"):
        raise ValueError("be a path or an address of a bucket")
    return expanded(value)


def masked(text: str) -> str:
    """The text without what addresses in it hold before an @, a name and a password, or as a
    password among their parameters."""
    text = re.sub(rf"{_PASSWORD}|(?<=://)[^/@\s]+@", "***@", text)
    return re.sub(_PARAMETER, r"\1password=***", text, flags=re.I)


def without_password(uri: str) -> str:
    """The address without its password."""
    bare = re.sub(_PARAMETER + "&?", r"\1", re.sub(_PASSWORD, r"\1@", uri), flags=re.I)
    return bare if bare == uri else bare.rstrip("?&")


def sqlite_address(file: Path) -> str:
    """The address of a database in a file: SQLAlchemy would take %2F in it for / and ? for the end
    of its name."""
    return f"sqlite:///{quote(str(file))}"


def resume_command(study: str, storage_path: str) -> str:
    """How to go on with a study."""
    return _with_storage(f"python -m vgg_search.run --resume {study}", storage_path)


def command(line: str, storage_path: str) -> str:
    """Another command, with what it needs to find run folders: of a study that has a bucket they
    are in the default place, beside the driver."""
    return line if is_remote(storage_path) else _with_storage(line, storage_path)


def _with_storage(line: str, storage_path: str) -> str:
    return line if storage_path == RUNS else f"{line} --storage-path {shlex.quote(storage_path)}"
