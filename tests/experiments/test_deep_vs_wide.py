"""Depth against width: what is compared costs the same, and each cell is an experiment."""

from collections import defaultdict
from pathlib import Path

import pytest
from deep_vs_wide import COLUMNS, FLOPS, PARAMS, are_compared, cells, rows_of

from vgg_search.cli.arguments import load_config


def test_what_is_compared_costs_the_same() -> None:
    costs = defaultdict(list)
    for cell in cells():
        if cell.group != "kernels":
            by_flops = cell.group == "flops"
            costs[cell.group, cell.size, cell.batch_norm].append(cell.costs[by_flops])
    assert len(costs) == 2 * (len(PARAMS) + len(FLOPS)) + 1
    for values in costs.values():
        assert max(values) < 1.12 * min(values), "widths are whole numbers"


def test_kernels_see_the_same_at_the_same_width() -> None:
    pairs = [
        (shallow, deep)
        for shallow in cells()
        for deep in cells()
        if shallow.group == "kernels" and are_compared(shallow, deep)
    ]
    assert len(pairs) == 4
    for shallow, deep in pairs:
        assert [width for _, width in shallow.arch] == [width for _, width in deep.arch]
        assert shallow.kernel_size == 1 + deep.num_convs * (deep.kernel_size - 1)


def test_each_cell_is_an_experiment_of_one_network() -> None:
    for cell in cells():
        config, _ = load_config(cell.flags())
        space = config.search_space
        assert set(space.sampled()) == {"lr", "weight_decay"}
        params, arch = space.enqueued({})
        assert (arch, set(params)) == (None, {"lr", "weight_decay"})
        assert space.dims["kernel_size"].match(cell.kernel_size) is not None
        blocks = [space.dims[f"out_channels_{i}"].centre() for i in (1, 2, 3)]
        assert blocks == [width for _, width in cell.arch]


@pytest.mark.slow
def test_a_cell_is_searched_and_tested(tmp_path: Path) -> None:
    cell = next(cells())
    small = "--dataset sample --num-trials 2 --max-epochs 1 --train-images 1000 --val-images 500"
    small += " --champion-epochs 1 --champion-seeds 2"
    rows = rows_of(tmp_path, cell, *small.split())
    assert [row["seed"] for row in rows] == [0, 1]
    for row in rows:
        assert row.keys() == {*COLUMNS}
        assert 0.01 <= row["lr"] <= 0.6
        assert 0 < row["test_accuracy"] < 1
    log = (tmp_path / f"{cell.name}.log").read_text()
    assert rows_of(tmp_path, cell) == rows, "from what is there"
    assert (tmp_path / f"{cell.name}.log").read_text() == log
