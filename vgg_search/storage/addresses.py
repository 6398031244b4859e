"""Addresses and commands as they are shown: without secrets, and ready to be pasted."""

import re
import shlex
from pathlib import Path
from urllib.parse import quote

from vgg_search.storage.folder import RUNS, is_remote

# A name, its password, which may hold a / (only after a host do digits and a / follow the colon),
# and the @ that ends it; a driver's database may be given it by a parameter instead
_PASSWORD = r"(?<=://)([^/:@\s]*):(?!\d+(?:[/?#\s]|$))[^@\s]*@"
_PARAMETER = r"([?&])(?:password|passwd|pwd)=[^&\s'\"]*"


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
