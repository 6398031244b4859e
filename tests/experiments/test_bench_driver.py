"""The driver's bench, at a tiny size: that it drives the real driver to the end of a search."""

from argparse import Namespace
from pathlib import Path

import bench_driver
import pytest
from virtual_search import NAME, VirtualSearch, experiment, opened

from vgg_search.study.record import read_trials, rows_of


def test_a_virtual_search_ends_and_charges_what_workers_wait(tmp_path: Path) -> None:
    config = experiment(tmp_path, 12)
    with opened(config, tracked=True, sending=False) as session:
        driver = VirtualSearch(session, 4, 10.0, (0.5, 1.0))
        driver.run()
        assert session.study.finished
        assert session.tracker.unsent > 12
    trials = read_trials(tmp_path / NAME)
    assert driver.rows == sum(len(rows_of(trial)) for trial in trials)
    assert driver.waited >= 0.5 * (driver.rows - 2 * len(driver.begun))
    assert driver.trained > 0
    assert driver.now > driver.busy + 0.5 * driver.rows


def test_proposals_and_memory_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_driver, "PROPOSALS", 1)
    options = Namespace(folder=tmp_path / "p", trials=10, workers=4, traced=False)
    times = bench_driver.proposals(options)["ms_a_proposal"]
    assert {name: list(of) for name, of in times.items()} == {name: [10] for name in times}
    options.folder = tmp_path / "m"
    told = bench_driver.memory(options)
    assert told["proposals"] >= 10
    assert set(told["kib_a_trial"]) == {"all", "plain_optuna", "parts_of_ours"}
