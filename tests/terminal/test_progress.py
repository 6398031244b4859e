"""What the terminal shows: lines where it is piped, a table where it is not, and the last words."""

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_workers import SPACE, Fault, Workers, experiment, opened
from rich.console import Console

from vgg_search.config import Config
from vgg_search.study.study import Study
from vgg_search.terminal.formats import duration
from vgg_search.terminal.progress import Progress, closing

WIDE = {"arch": ((2, 16), (2, 32), (2, 32)), "lr": 0.5}


def trials(*lrs: float) -> list[dict[str, Any]]:
    return [WIDE | {"lr": lr} for lr in lrs]


@contextmanager
def shown(folder: Path, config: Config, quiet: bool = False) -> Iterator[tuple[Study, Progress]]:
    """A study and its progress, which has not yet taken the terminal."""
    folder.mkdir(exist_ok=True)
    study = Study(folder, config)
    progress = Progress(study, quiet)
    study.listeners.append(progress)
    try:
        study.open()
        yield study, progress
    finally:
        study.release()


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=40, highlight=False)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def table_lines(progress: Progress, width: int) -> list[str]:
    """The table as it stands, without colours."""
    plain = Console(file=io.StringIO(), width=width, color_system=None)
    plain.print(progress._table())
    return [line.rstrip() for line in written(plain).splitlines()]


def test_piped_it_is_a_line_an_event(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = experiment(num_trials=2, enqueue=trials(0.5, 0.1))
    with shown(tmp_path / "s", config) as (study, progress), progress:
        Workers().run(study)
        progress.draw()  # of no effect
    out, err = capsys.readouterr()
    assert out == ""
    name = "2x16-2x32-2x32"
    assert err.splitlines() == [
        f"trial 0 {name}: started",
        f"trial 0 {name}: epoch 1 val_accuracy 0.2500",
        f"trial 0 {name}: epoch 2 val_accuracy 0.3333",
        f"trial 0 {name}: epoch 3 val_accuracy 0.3750",
        f"trial 0 {name}: epoch 4 val_accuracy 0.4000",
        f"trial 0 {name}: completed at 0.4000",
        f"trial 1 {name}: started",
        f"trial 1 {name}: epoch 1 val_accuracy 0.0500",
        f"trial 1 {name}: pruned at 0.0500",
    ]


def test_quiet_says_nothing_and_the_log_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vgg_search")
    config = experiment(num_trials=1, enqueue=trials(0.5))
    with shown(tmp_path / "s", config, quiet=True) as (study, progress), progress:
        Workers().run(study)
        progress.champion(0, 2, {"epoch": 1, "train_accuracy": 0.5})
    assert capsys.readouterr() == ("", "")
    lines = [record.getMessage() for record in caplog.records]
    assert "trial 0 2x16-2x32-2x32: completed at 0.4000" in lines
    assert lines[-1] == "champion, seed 0: epoch 1/2 train_accuracy 0.5000"


def test_failures_are_told_with_the_last_line_of_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = experiment(num_trials=3, enqueue=trials(0.5, 0.4, 0.3))
    faults = {0: Fault("failed"), 1: Fault("diverged", epoch=1), 2: Fault("died", times=1)}
    with shown(tmp_path / "s", config) as (study, progress), progress:
        Workers(faults=faults).run(study)
    err = capsys.readouterr().err
    assert "trial 0 2x16-2x32-2x32: failed (RuntimeError: failed)\n" in err
    assert "trial 1 2x16-2x32-2x32: diverged at 0.1000\n" in err
    assert "trial 2 2x16-2x32-2x32: retried\n" in err


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_has_a_line_a_trial(tmp_path: Path, width: int) -> None:
    space, lrs = SPACE | {"lr": [1e-5, 1]}, trials(0.5, 0.9, 3.2e-5, 0.7)
    config = experiment(num_trials=4, scheduler="asha-promote", enqueue=lrs, space=space)
    with shown(tmp_path / "s", config) as (study, progress):
        progress.console = terminal(width)
        with progress:
            Workers(slots=2).run(study, turns=5)
            progress._drawn = -1.0
            progress.draw()
            lines = table_lines(progress, width)
    assert lines[0].split() == ["trial", "arch", "lr", "epoch", "val_accuracy", "state"]
    # Those that train come first: what waits may be cut off at the bottom of the screen.
    assert [line.split() for line in lines[1:]] == [
        ["1", "2x16-2x32-2x32", "0.9", "3/4", "0.6750", "running"],
        ["0", "2x16-2x32-2x32", "0.5", "1/4", "0.2500", "waiting"],
        ["2", "2x16-2x32-2x32", "3.2e-05", "1/4", "0.0000", "waiting"],
        ["3", "2x16-2x32-2x32", "0.7", "2/4", "0.4667", "waiting"],
    ]
    assert all(len(line) <= width for line in lines)
    assert "s: 0 of 4 trials" in written(progress.console)


@pytest.mark.parametrize("width", [80, 200])
def test_a_long_arch_is_cut_and_not_folded(tmp_path: Path, width: int) -> None:
    arch = ((4, 512),) * 4
    config = experiment(
        num_trials=1,
        enqueue=[{"arch": arch, "lr": 0.5}],
        resolution=224,
        space={"num_blocks": [1, 7], "num_convs": [1, 4], "out_channels": [8, 512], "lr": [0.1, 1]},
    )
    with shown(tmp_path / "s", config) as (study, progress):
        Workers().run(study, turns=1)
        progress.rows[0]["arch"] = "-".join(["4x512"] * 12)
        lines = table_lines(progress, width)
    assert len(lines) == 2
    assert lines[1].split()[-1] == "running"
    assert ("…" in lines[1]) == (width == 80)


def headlines(progress: Progress) -> list[str]:
    return [line.plain for line in progress._headlines()]


def test_the_headline_counts_what_the_budget_counts(tmp_path: Path) -> None:
    config = experiment(num_trials=2, enqueue=trials(0.5, 0.5, 0.1))
    with shown(tmp_path / "s", config) as (study, progress):
        Workers().run(study)
        assert headlines(progress) == [
            "s: 2 of 2 trials · 0 open · 1 completed · 1 duplicate · 1 pruned",
            "best val_accuracy 0.4000 (trial 0) · 0s gone · about 2 trials, 0s left",
        ]


def test_a_resumed_study_is_counted_from_its_record(tmp_path: Path) -> None:
    with opened(tmp_path / "s", experiment(num_trials=2, enqueue=trials(0.5, 0.1))) as study:
        Workers().run(study)
    with shown(tmp_path / "s", experiment(num_trials=4)) as (_, progress):
        assert headlines(progress)[0] == "s: 2 of 4 trials · 0 open · 1 completed · 1 pruned"


def test_time_left_is_by_measured_epochs_and_whichever_budget_ends_first(tmp_path: Path) -> None:
    with shown(tmp_path / "a", experiment(num_trials=1)) as (_, progress):
        assert progress.left() == ""  # nothing is known
    lrs = trials(0.5, 0.9, 0.1, 0.7)  # epochs: 4, 4, 1, 2; each takes 2 s of a device
    config = experiment(num_trials=12, time_budget=90, gpu_hours=60 / 3600, enqueue=lrs)
    with shown(tmp_path / "b", config) as (study, progress):
        study.budget._before = 20.0
        assert progress.left() == "at most 1m10s left"
        Workers().run(study, turns=11)
        assert (study.trained, study.budget.epochs, study.unfinished) == (4, 11, [])
        # A trial is expected to train 2 epochs: (2 + 11) / (1 + 4) = 2.6 a trial. Eight more are
        # 20.8 epochs; the devices have 60 - 22 s, 19 epochs, and the search 70 s.
        study.budget._before = 22.0
        assert progress.left() == "about 11 trials, 38s left"
        study.budget._before = 44.0  # 4 s an epoch: 46 s are 11.5 epochs
        assert progress.left() == "about 8 trials, 46s left"
        study.budget._before = 100.0
        assert progress.left() == "about 4 trials, 0s left"
    with shown(tmp_path / "c", experiment(num_trials=5, enqueue=lrs)) as (study, progress):
        Workers().run(study, turns=3)
        assert study.unfinished == [0]
        study.budget._before = 12.0  # 5 trials of 2 epochs, less the three that 0 has
        assert progress.left() == "about 5 trials, 28s left"


def test_a_trial_that_waits_for_promotion_rests(tmp_path: Path) -> None:
    config = experiment(num_trials=3, scheduler="asha-promote", reduction_factor=3)
    with shown(tmp_path / "s", config) as (study, progress):
        Workers().run(study, turns=2)
        assert len(study.scheduler.waiting) == 2
        study.budget._before = 10.0
        # Expected are 1 + 2 / 3 + 1 / 9 epochs; (1.78 + 2) / 3 for the one to come, of 5 s
        assert progress.left() == "about 3 trials, 6s left"


def test_on_a_terminal_only_failures_are_printed_above_the_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vgg_search")
    config = experiment(num_trials=2, enqueue=trials(0.5, 0.4))
    with shown(tmp_path / "s", config) as (study, progress):
        progress.console = terminal(100)
        with progress:
            Workers(faults={0: Fault("failed")}).run(study)
            progress.champion(0, 5, {"epoch": 3, "train_accuracy": 0.5})
        assert progress.live is None
    screen = written(progress.console)
    assert "failed (RuntimeError: failed)" in screen
    assert "completed at" not in screen
    assert "champion, seed 0: epoch 3/5 train_accuracy 0.5000" in screen
    assert any("completed at" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (90, "1m30s"), (600, "10m00s"), (3600, "1h00m"), (90000, "25h00m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


SUMMARY: dict[str, Any] = {
    "study": "s",
    "state": "completed",
    "num_trials": 3,
    "trials": {"completed": 2, "pruned": 1, "failed": 0},
    "epochs_trained": 9,
    "search_seconds": 75.2,
    "best_trial": 2,
    "best_arch": [[1, 16], [2, 32]],
    "best_lr": 0.123456,
    "best_val_accuracy": 0.91234,
    "baseline_val_accuracy": None,
    "champion": {"test_accuracy": 0.9, "num_params": 12345, "model_uri": "models:/vgg-search/1"},
    "warnings": ["The budget is small."],
    "refused": 0,
}


def test_the_last_words(tmp_path: Path) -> None:
    text = closing(SUMMARY, Path("runs/s"), "mlflow ui")
    assert text.splitlines() == [
        "study s completed: 3 trials (2 completed, 1 pruned), 9 epochs in 1m15s",
        "best      trial 2, 1x16-2x32, lr 0.1235: val_accuracy 0.9123 (baseline -)",
        "champion  test_accuracy 0.9000, 12,345 parameters, registered as models:/vgg-search/1",
        "warning   The budget is small.",
        "report    runs/s/report.html",
        "compare   mlflow ui",
        "use       python -m vgg_search predict IMAGE.png",
    ]
    assert ", lr 3.2e-05: val_accuracy" in closing(SUMMARY | {"best_lr": 3.2e-5}, tmp_path, "x")


def test_the_last_words_of_a_study_that_was_stopped(tmp_path: Path) -> None:
    state = {"state": "interrupted", "best_trial": None, "champion": None}
    lines = closing(SUMMARY | state, tmp_path, "http://host:5000").splitlines()
    assert lines[2] == "go on     python -m vgg_search.run --resume s"
    assert lines[-1] == "compare   http://host:5000"
    assert not any(line.startswith(("best", "champion", "use")) for line in lines)
    refused = closing(SUMMARY | {"refused": 2}, tmp_path, "x")
    assert "MLflow refused 2 rows for good: vgg-search sync s tells which" in refused
    alias = SUMMARY["champion"] | {"alias_text": "a@b is now version 1: no other"}
    text = closing(SUMMARY | {"champion": alias}, tmp_path, "x")
    assert "\nalias     a@b is now version 1: no other\n" in text
    compared = {"baseline_val_accuracy": 0.8, "baseline_epochs": 1, "best_trial": 2}
    seeds = SUMMARY["champion"] | {"test_accuracy_mean": 0.8, "test_accuracy_std": 0.01}
    text = closing(SUMMARY | compared | {"champion": seeds}, tmp_path, "x")
    assert "(baseline 0.8000 after epoch 1)" in text
    assert "as models:/vgg-search/1; mean of its seeds 0.8000, spread 0.0100" in text
    why_not = {"none_completed": "no trial was completed (2 failed; trial 0: ValueError: x)"}
    lines = closing(SUMMARY | state | why_not, tmp_path, "x").splitlines()
    assert lines[-1] == f"failed    {why_not['none_completed']}"
    there = closing(SUMMARY | {"state": "interrupted", "refused": 2}, tmp_path, "x", "my runs")
    for line in ("run --resume s", "vgg-search sync s", "predict IMAGE.png"):
        assert f"{line} --storage-path 'my runs'" in there
    bucket = closing(SUMMARY | {"state": "interrupted"}, tmp_path, "x", "s3://b/c")
    assert "run --resume s --storage-path s3://b/c\n" in bucket
    assert bucket.endswith("predict IMAGE.png")  # its champion is beside the driver
    unregistered = SUMMARY["champion"] | {"model_uri": None}
    text = closing(SUMMARY | {"champion": unregistered}, tmp_path, "x")
    assert re.search(r"^champion .* parameters$", text, re.MULTILINE)
