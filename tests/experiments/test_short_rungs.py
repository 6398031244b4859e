"""Searches whose first rung is a part of an epoch, on curves that are made up."""

import math
from pathlib import Path

import pytest
import short_rungs
from measures import append
from short_rungs import COLUMNS, CURVE, STEPS, Networks, race_rows, rank_rows


def test_an_early_rung_pays_where_it_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty networks, the better the higher their number, from the first third on; one is lost."""
    monkeypatch.setattr(short_rungs, "DRAWS", 4)
    rows = []
    for number in range(60):
        values = [0.5 + 0.005 * number + 0.01 * step for step in STEPS]
        rows.append({"network": number, "seconds": 10.0} | dict(zip(CURVE, values, strict=True)))
    rows[3] |= dict.fromkeys(CURVE[4:], math.nan)
    append(tmp_path / "curves.csv", COLUMNS, rows)
    world = Networks(tmp_path / "curves.csv")
    _, _, *ranks = rank_rows(world)
    assert len(ranks) == len(STEPS) - 1
    assert all(row.endswith("| 1.00 | 1.00 |") for row in ranks)
    _, _, late, early, gain = race_rows(world, 8)
    late_cells, early_cells = (row.split(" | ") for row in (late, early))
    assert int(early_cells[1]) > 1.5 * int(late_cells[1])  # networks that are looked at
    assert float(gain.split(" | ")[2].partition(" ")[0]) > 0  # after a quarter
