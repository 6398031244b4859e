"""Files of ours that say whether they are as they were written."""

import hashlib
import json
from pathlib import Path
from typing import Any

from vgg_search.errors import InputError
from vgg_search.storage.folder import CARD, WEIGHTS, champion_folder

LINE = "# checksum "  # how a line of a text begins: the first, which stays where the text is cut
KEY = "checksums"  # of a card
RESTORE = "restore it (MLflow has a copy of a champion)"


def with_checksum(text: str) -> str:
    """A text of lines, after a comment that has its checksum."""
    return f"{LINE}{_sha256(text.encode())}\n{text}"


def check_text(path: Path) -> None:
    """Raises InputError if a text is not as `with_checksum` made it, or is nothing but comments;
    one without a checksum is not checked otherwise."""
    content = path.read_bytes()
    before, line, rest = content.partition(LINE.encode())
    checksum, _, after = rest.partition(b"\n")
    is_text = any(not line.startswith(b"#") for line in content.splitlines())
    if not is_text or (line and checksum != _sha256(before + after).encode()):
        raise InputError(
            f"{path} is not as it was written: restore it (MLflow has a copy), or, if it is meant "
            f"so, remove the line that begins with '{LINE.strip()}'"
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


def read_card(folder: Path, cure: str) -> dict[str, Any]:
    """The card of the model in a folder. Raises InputError if it or the weights beside it are not
    as they were written."""
    try:
        card = dict(json.loads((folder / CARD).read_text("utf-8")))
        changed = check_card(card, folder)
    except (TypeError, ValueError):
        changed = CARD
    if changed:
        raise InputError(f"{folder / changed} is not as it was written: {RESTORE}, or {cure}")
    return card


def read_cards(folder: Path) -> list[dict[str, Any]]:
    """The cards of the champions that a run folder holds, by place. Raises InputError."""
    cards: list[dict[str, Any]] = []
    while ((place := champion_folder(folder, len(cards) + 1)) / CARD).exists():
        cure = f"remove {place} and --resume {folder.name}, which trains it anew"
        cards.append(read_card(place, cure))
    return cards


def _checksums(card: dict[str, Any], folder: Path) -> dict[str, str]:
    text = json.dumps(card, sort_keys=True)
    return {CARD: _sha256(text.encode()), WEIGHTS: of_file(folder / WEIGHTS)}


def of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
