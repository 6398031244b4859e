"""Which tracker a study has: the one place that chooses, and the one that sends what is left."""

import json
from pathlib import Path
from typing import Any

from vgg_search.storage.folder import SUMMARY, read_card
from vgg_search.study.tables import write_summary
from vgg_search.tracking.outbox import Outbox
from vgg_search.tracking.recorder import REFINEMENT, champion_key
from vgg_search.tracking.registry import Servable
from vgg_search.tracking.sender import MlflowTracker
from vgg_search.tracking.tracker import ANSWERS, Tracker


def connect(
    folder: Path, tracking_uri: str, experiment: str, study: str, servable: Servable
) -> Tracker:
    """The tracker of the study in `folder`. Nothing is sent before its `start`."""
    return MlflowTracker(folder, tracking_uri, experiment, study, servable)


def sync(folder: Path, servable: Servable, timeout: float) -> dict[str, Any]:
    """Sends what a run folder's outbox still holds, in at most `timeout` s, and completes its
    summary: {"unsent", "refused", "error"}. Beside a live search it waits for the search's own
    sender. Raises ValueError without an outbox."""
    tracker = connect(folder, **Outbox.stored(folder), servable=servable)
    tracker.start()
    unsent = tracker.close(timeout)
    _complete_summary(folder, tracker)
    return {"unsent": unsent, "refused": tracker.refused, "error": tracker.error}


def _complete_summary(folder: Path, tracker: Tracker) -> None:
    """Puts what the tracker has said of a champion since into summary.json."""
    file, card = folder / SUMMARY, read_card(folder)
    summary = json.loads(file.read_text()) if file.is_file() else {}
    if card and summary.get("champion"):
        refined = "parent_model" in card
        key = REFINEMENT if refined else champion_key(card["trial"], card["epochs"])
        answers = tracker.results(key)
        summary["champion"] |= {name: answers[name] for name in ANSWERS if name in answers}
        write_summary(folder, summary)
