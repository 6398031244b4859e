"""A study on one screen, running or not, read from its folder."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from vgg_search.records import METRIC
from vgg_search.storage.folder import in_use
from vgg_search.study.record import read_outlines, rows_of
from vgg_search.study.tables import outcome, state_of, trial_rows
from vgg_search.terminal.formats import accuracy, duration

MOST_LIVE = 12  # to show
TOLD = ("num_trials", "epochs_trained", "best_trial", "best_val_accuracy", "baseline_val_accuracy")


def status(folder: Path, sending: tuple[int, int, Sequence[str]] = (0, 0, ())) -> dict[str, Any]:
    """The state of the study in `folder`, with the rows that its tracker has yet to get, those that
    it refused, and reasons. Raises StudyError if there is none."""
    trials = read_outlines(folder)
    clock = max((row["time"] for trial in trials for row in rows_of(trial)), default=0.0)
    running = in_use(folder)
    found = outcome(trials)
    live = trial_rows(trial for trial in trials if state_of(trial) == "interrupted")
    if running:
        live = [row | {"state": doing(trials[row["number"]])} for row in live]
    counts = found["trials"] | {"interrupted": 0} | Counter(row["state"] for row in live)
    unsent, refused, refusals = sending
    return {
        "study": folder.name,
        "running": running,
        **{name: found[name] for name in TOLD},
        "trials": {state: count for state, count in counts.items() if count},
        "seconds": round(clock, 1),
        "unsent": unsent,
        "refused": refused,
        "refusals": list(refusals),
        "live": [
            {key: row[key] for key in ("number", "state", "arch", "epochs", METRIC)}
            for row in sorted(live, key=lambda row: (row["state"], row["number"]))
        ],
    }


def doing(trial: FrozenTrial) -> str:
    """What a trial does that a driver works on: it waits where it was to be trained until."""
    rows = rows_of(trial)
    return "waiting" if rows and rows[-1]["epoch"] == trial.user_attrs.get("until") else "running"


def show(state: dict[str, Any]) -> str:
    """The state as text, at most a screen of it."""
    word = "running" if state["running"] else "not running"
    lines = [
        f"study {state['study']}: {word}, {state['num_trials']} trials, "
        f"{state['epochs_trained']} epochs, {duration(state['seconds'])} of search",
        "  " + ", ".join(f"{n} {name}" for name, n in state["trials"].items()),
        f"  best {accuracy(state['best_val_accuracy'])}"
        + (f" (trial {state['best_trial']})" if state["best_trial"] is not None else "")
        + f", baseline {accuracy(state['baseline_val_accuracy'])}",
        f"  MLflow: {state['unsent']} rows to send, {state['refused']} refused",
    ]
    lines += [f"    {text}" for text in state["refusals"]]
    for row in state["live"][:MOST_LIVE]:
        word = "waiting at epoch" if row["state"] == "waiting" else "epoch"
        value = f"{word} {row['epochs']} {accuracy(row[METRIC])}"
        lines.append(f"  trial {row['number']} {row['arch']}: {value}")
    if (more := len(state["live"]) - MOST_LIVE) > 0:
        lines.append(f"  and {more} more")
    return "\n".join(lines)
