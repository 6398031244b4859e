"""Commands as they are printed, to be pasted."""

import shlex

from vgg_search.storage.place import RUNS, is_remote


def resume(study: str, storage_path: str) -> str:
    """How to go on with a study."""
    return _there(f"python -m vgg_search.run --resume {study}", storage_path)


def command(line: str, storage_path: str) -> str:
    """Another command, with what it needs to find run folders: of a study that has a bucket they
    are in the default place, beside the driver."""
    return line if is_remote(storage_path) else _there(line, storage_path)


def _there(line: str, storage_path: str) -> str:
    return line if storage_path == RUNS else f"{line} --storage-path {shlex.quote(storage_path)}"
