"""Files of ours that say whether they are as they were written."""

import hashlib
import json
from pathlib import Path
from typing import Any

from vgg_search.errors import InputError
from vgg_search.storage.folder import CARD, WEIGHTS

LINE = "# checksum "  # the last line of a text
KEY = "checksums"  # of a card


def with_checksum(text: str) -> str:
    """A text of lines, and a comment that has its checksum."""
    return f"{text}{LINE}{_sha256(text.encode())}\n"


def check_text(path: Path) -> None:
    """Raises InputError if a text is not as `with_checksum` made it. One without is not checked."""
    text, _, checksum = path.read_bytes().rpartition(LINE.encode())
    if checksum and text and _sha256(text) != checksum.strip().decode(errors="replace"):
        raise InputError(
            f"{path} is not as it was written: restore it (MLflow has a copy), or, if it is meant "
            "so, remove its last line"
        )


def with_checksums(card: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A model's card that has the checksums of itself and of the weights beside it."""
    return card | {KEY: _checksums(card, folder)}


def check_card(card: dict[str, Any], folder: Path) -> str | None:
    """Takes the checksums off a card, and names the file that is not as it was written, if any."""
    if KEY not in card:  # of an older version
        return None
    written, now = card.pop(KEY), _checksums(card, folder)
    if not isinstance(written, dict):
        return CARD
    return next((name for name in now if written.get(name) != now[name]), None)


def _checksums(card: dict[str, Any], folder: Path) -> dict[str, str]:
    text = json.dumps(card, sort_keys=True)
    return {CARD: _sha256(text.encode()), WEIGHTS: of_file(folder / WEIGHTS)}


def of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
