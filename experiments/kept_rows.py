"""Rows of a table that grows, by each result: what is there is not measured again."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_rows(file: Path) -> list[dict[str, str]]:
    """None where there is no file yet."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def add_rows(file: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """All of a result's together, below a line of heads where the file is new."""
    new = not file.exists()
    with file.open("a", newline="") as lines:
        writer = csv.DictWriter(lines, columns)
        if new:
            writer.writeheader()
        writer.writerows(rows)
