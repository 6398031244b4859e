"""Which checkpoints stay on the disk, with a tracker that does nothing."""

from pathlib import Path

import pytest
from fake_workers import Workers, experiment, opened

from vgg_search.config import Config
from vgg_search.storage.mirror import Checkpoints
from vgg_search.study.segment import Event
from vgg_search.study.study import Study
from vgg_search.tracking.retention import Retention
from vgg_search.tracking.tracker import Tracker

LRS = (0.5, 0.9, 0.1, 0.7)
ENQUEUE = [{"arch": ((1, 8),), "lr": lr} for lr in LRS]


def config(num_trials: int) -> Config:
    return experiment(num_trials=num_trials, scheduler="none", top_k=2, enqueue=ENQUEUE)


def write_checkpoints(study: Study, number: int) -> None:
    folder = study.folder / "trials" / str(number)
    (folder / "best").mkdir(parents=True, exist_ok=True)
    (folder / "best" / "model.json").write_text("{}")
    (folder / "last.pt").write_text("")


def drive(study: Study, workers: Workers, killed_at_the_end_of: int | None = None) -> None:
    """As a session does it; a killed driver has recorded the end of that trial and no more."""
    retention = Retention(study, Checkpoints(study.folder), Tracker())

    def checkpoint(event: Event) -> None:
        if event.kind == "epoch":
            write_checkpoints(study, event.number)
        if (event.kind, event.number) == ("ended", killed_at_the_end_of):
            raise KeyboardInterrupt

    study.listeners += [checkpoint, retention]
    retention.start()
    study.open()
    retention.catch_up()
    workers.run(study)


def on_disk(folder: Path) -> dict[str, list[str]]:
    trials = sorted((folder / "trials").iterdir())
    return {trial.name: sorted(file.name for file in trial.iterdir()) for trial in trials}


def test_the_best_of_the_top_k_stay_whatever_the_tracker(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    study = Study(folder, config(4))
    drive(study, Workers())
    study.release()
    assert on_disk(folder) == {"1": ["best"], "3": ["best"]}


@pytest.mark.parametrize("number", range(4))
def test_what_a_killed_driver_left_is_put_right(tmp_path: Path, number: int) -> None:
    folder, workers = tmp_path / "s", Workers()
    folder.mkdir()
    study = Study(folder, config(4))
    with pytest.raises(KeyboardInterrupt):
        drive(study, workers, killed_at_the_end_of=number)
    study.release()
    assert on_disk(folder)[str(number)] == ["best", "last.pt"]
    study = Study(folder, config(4))
    drive(study, workers)
    study.release()
    assert on_disk(folder) == {"1": ["best"], "3": ["best"]}


def test_a_checkpoint_of_a_trial_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "s", config(2)) as study:
        Workers().run(study, turns=6)
        write_checkpoints(study, 1)
        assert study.unfinished == [1]
        retention = Retention(study, Checkpoints(study.folder), Tracker())
        retention.start()
        retention.catch_up()
        assert on_disk(study.folder) == {"1": ["best", "last.pt"]}
