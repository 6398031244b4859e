"""The end of a search: its summary, tables and report, and what MLflow has yet to get of them."""

import logging
import time
from typing import Any

from vgg_search.data.splits import Splits
from vgg_search.report.page import make_report, warnings_of
from vgg_search.signals import Signals
from vgg_search.storage.addresses import command
from vgg_search.study.study import Study
from vgg_search.study.tables import summarise, write_summary, write_tables
from vgg_search.tracking.recorder import ANSWERS, Recorder, champion_key

SEND_SECONDS = 60.0  # to wait at the end for a tracker that answers
STOPPED_SECONDS = 3.0  # the same after a signal, which is to end all within 10 s
LOOK_SECONDS = 0.5  # between two looks for a signal
log = logging.getLogger("vgg_search")


def conclude(
    study: Study,
    splits: Splits,
    recorder: Recorder,
    champion: dict[str, Any] | None,
    slots: int,
    signals: Signals,
    began: float,
) -> dict[str, Any]:
    """Write summary, tables and report, send what is left, and return the summary."""
    folder, tracker, stopped = study.folder, recorder.tracker, bool(signals)
    trials = study.optuna.get_trials(deepcopy=False)
    lacking = champion is None and study.config.champion_epochs > 0
    failed = not stopped and (study.ranking.incumbent is None or lacking)
    state = "interrupted" if stopped else "failed" if failed else "completed"
    _send(recorder, signals)
    summary = {
        "study": folder.name,
        "state": state,
        "dataset": splits.name,
        "train_images": len(splits.train_images),
        "val_images": len(splits.val_images),
        **summarise(trials, slots, study.budget.clock),
        "champion": _in_short(champion, recorder) if champion else None,
        "refused": tracker.refused,
        "wall_seconds": round(time.monotonic() - began, 3),
        **recorder.facts,
        "seed": study.config.seed,
    }
    write_tables(folder, trials)
    write_summary(folder, summary)
    warnings: list[str] = []
    try:
        make_report(folder, pages=not signals, hurry=bool(signals))
        warnings = warnings_of(folder)
    except Exception as error:  # whatever it is, the study is whole, and its runs are to be closed
        log.error("no report: %s", " ".join(str(error).split()) or type(error).__name__)
        log.info("where it failed", exc_info=True)
    recorder.finish(state)
    _send(recorder, signals)
    unsent = tracker.close(STOPPED_SECONDS if signals else 0.0)
    if unsent:
        log.warning(
            "%d rows have not reached MLflow (%s); they are kept: %s",
            unsent,
            tracker.error,
            command(f"vgg-search sync {folder.name}", study.config.storage_path),
        )
    return summary | {"unsent": unsent, "refused": tracker.refused, "warnings": warnings}


def _send(recorder: Recorder, signals: Signals) -> None:
    """Wait until MLflow has all, no longer than it can be waited for, or until a signal."""
    tracker = recorder.tracker
    answers = bool(tracker.results("study"))
    until = time.monotonic() + (SEND_SECONDS if answers else SEND_SECONDS / 4)
    while not signals and time.monotonic() < until and tracker.flush(LOOK_SECONDS):
        pass


def _in_short(card: dict[str, Any], recorder: Recorder) -> dict[str, Any]:
    """The champion in the summary: its card's main numbers, and what MLflow says of it by now."""
    metrics = card["metrics"]
    answer = recorder.tracker.results(champion_key(card["trial"], card["epochs"]))
    return {
        "val_accuracy": metrics["val_accuracy"],
        "test_accuracy": metrics["test_accuracy"],
        "test_accuracy_mean": metrics.get("test_accuracy_mean"),
        "test_accuracy_std": metrics.get("test_accuracy_std"),
        "num_params": card["num_params"],
        **{name: answer.get(name) for name in ANSWERS},
    }


def exit_code(summary: dict[str, Any], signals: list[int]) -> int:
    """0 done, 1 the work failed or MLflow was not reached, 128 + the signal that stopped it."""
    if signals:
        return 128 + signals[0]
    return int(summary["state"] != "completed" or summary["unsent"] > 0)
