"""A driver killed after any line of its record, or any put into its outbox: what the tracker is to
get in the end is the same."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_workers import SPACE, Workers, experiment

from vgg_search.config import Config
from vgg_search.data.splits import Splits
from vgg_search.records import BEST_METRIC
from vgg_search.session import Session
from vgg_search.study.journal_file import JournalFile
from vgg_search.study.record import read_trials
from vgg_search.study.study import Study
from vgg_search.tracking.outbox import Outbox
from vgg_search.tracking.recorder import PARENT, run_key

FACTS = {"versions": {"torch": "2"}, "commit": "abc", "host": "here"}
TWICE = [{"arch": ((1, 8), (2, 16)), "lr": 0.5}] * 2  # the second is a duplicate


def searched(
    folder: Path, config: Config, splits: Splits, workers: Workers
) -> tuple[set[Any], set[str]]:
    """A search to its end; what its outbox has of each run: its state, its metrics by step, and its
    checkpoint; and the checkpoints' files. Of the study's own metric the last point: the order in
    which trials end is not that without a kill."""
    outbox = Outbox(folder, "sqlite:///none.db", "e", "s")
    study = Study(folder, config)
    session = Session(study, splits, outbox, FACTS)
    session.open()
    workers.run(study)
    study.close()
    session.recorder.finish("completed")
    study.release()
    assert outbox.open_runs == []
    items = [(row.run, *item) for row in outbox.rows() if row.kind == "batch" for item in row.body]
    points = {(run, name, step) for run, sort, name, _, step in items if sort == "metric"}
    last = max(step for run, _, step in points if run == PARENT)
    points -= {(PARENT, BEST_METRIC, step) for step in range(last)}
    tags = {(run, name): value for run, sort, name, value, _ in items if sort == "tag"}
    states = {(run, state) for (run, name), state in tags.items() if name == "state"}
    sent = {(row.run, row.body["target"]) for row in outbox.rows() if row.kind == "artifact"}
    files = {str(path.relative_to(folder)) for path in (folder / "trials").rglob("*")}
    return points | states | sent, files


@pytest.mark.parametrize(
    ("scheduler", "untrained"),
    [("asha", {"duplicate", "infeasible"}), ("asha-promote", {"infeasible"})],
)
def test_a_driver_killed_anywhere_leaves_no_run_open_and_none_of_what_was_not_trained(
    in_memory: Path,
    splits: Splits,
    monkeypatch: pytest.MonkeyPatch,
    scheduler: str,
    untrained: set[str],
) -> None:
    space = SPACE | {"max_params": 12_000}
    config = experiment(num_trials=4, scheduler=scheduler, space=space, enqueue=TWICE, top_k=2)
    folder, killed = in_memory / "whole" / "s", list[tuple[Path, dict[int, Any]]]()
    folder.mkdir(parents=True)
    workers, writing = Workers(folder=folder), True

    def also_copied(write: Any) -> Any:
        def written(self: Any, *args: Any) -> None:
            write(self, *args)
            if writing:
                here = in_memory / str(len(killed)) / "s"
                shutil.copytree(folder, here)
                killed.append((here, copy.deepcopy(workers.disk)))

        return written

    monkeypatch.setattr(JournalFile, "append_logs", also_copied(JournalFile.append_logs))
    monkeypatch.setattr(Outbox, "_put", also_copied(Outbox._put))
    expected = searched(folder, config, splits, workers)
    writing = False
    states = [trial.user_attrs["state"] for trial in read_trials(folder)]
    assert untrained <= set(states)
    trained = {n for n, state in enumerate(states) if state in ("completed", "pruned")}
    assert {run for run, *_ in expected[0]} == {PARENT, *map(run_key, trained)}
    for here, disk in killed:
        assert searched(here, config, splits, Workers(folder=here, disk=disk)) == expected, here
