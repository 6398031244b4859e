"""A study as tables and as a summary, read out of its journal."""

import csv
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from vgg_search.errors import last_line
from vgg_search.objectives import COSTS
from vgg_search.records import BEST_METRIC, COUNTED, EPOCH_COLUMNS, METRIC, UNTRAINED
from vgg_search.space.arch import as_arch
from vgg_search.storage.folder import EPOCHS_TABLE, SUMMARY, TRIALS_TABLE, replacing
from vgg_search.study.ranking import Ranking
from vgg_search.study.record import candidate_of, rows_of

# What is written of a proposal last: `status` may read a record that is being written.
WHOLE = "flops_per_image"


def state_of(trial: FrozenTrial) -> str:
    """A trial's state in our words; one that no driver works on now is interrupted.

    So is one that waits at a rung, which its driver's storage shows as pruned there.
    """
    told = trial.user_attrs.get("state") if trial.state.is_finished() else None
    return told or "interrupted"


def trained(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that a worker was asked to train."""
    return [
        trial
        for trial in trials
        if WHOLE in trial.user_attrs and trial.user_attrs.get("state") not in UNTRAINED
    ]


def trial_rows(trials: Iterable[FrozenTrial]) -> list[dict[str, Any]]:
    """One row a proposal, as in trials.csv."""
    table = []
    for trial in trials:
        attrs, rows = trial.user_attrs, rows_of(trial)
        if WHOLE not in attrs:
            continue
        candidate = candidate_of(attrs)
        scored = [row for row in rows if row[METRIC] is not None]
        best = max(scored, key=lambda row: row[METRIC]) if scored else None
        last: Mapping[str, Any] = rows[-1] if rows else {}
        table.append(
            {
                "number": trial.number,
                "state": state_of(trial),
                **candidate.params(),
                "num_params": attrs["num_params"],
                "flops_per_image": attrs["flops_per_image"],
                "epochs": len(rows),
                METRIC: scored[-1][METRIC] if scored else None,
                BEST_METRIC: best[METRIC] if best else None,
                "best_epoch": best["epoch"] if best else None,
                "seconds": round(sum(row["epoch_seconds"] for row in rows), 3),
                "started": rows[0]["time"] - rows[0]["epoch_seconds"] if rows else None,
                "ended": last.get("time"),
                "worker": last.get("worker"),
                "error": last_line(attrs["error"]) if attrs.get("error") else None,
            }
        )
    return table


def epoch_rows(trials: Iterable[FrozenTrial]) -> list[dict[str, Any]]:
    """One row an epoch, as in epochs.csv."""
    return [
        {"number": trial.number} | {key: row.get(key) for key in EPOCH_COLUMNS[1:]}
        for trial in trained(trials)
        for row in rows_of(trial)
    ]


def write_csv(path: Path, rows: list[dict[str, Any]], columns: Iterable[str]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def startup_seconds(trials: Iterable[FrozenTrial]) -> list[float]:
    """What each trial cost its worker before and between its epochs, first trial of a worker apart.

    On each worker's own clock: the time from the end of the trial before to the end of this one,
    less what training and validation took.
    """
    by_worker: dict[str, list[tuple[float, float, int]]] = {}
    for trial in trained(trials):
        for row in rows_of(trial):
            entry = (row["ended"], row["epoch_seconds"], trial.number)
            by_worker.setdefault(row["worker"], []).append(entry)
    gaps: Counter[int] = Counter()
    known = set()
    for entries in by_worker.values():
        entries.sort()
        for (before, _, _), (ended, seconds, number) in pairwise(entries):
            gaps[number] += max(0.0, ended - before - seconds)  # type: ignore[assignment]
            known.add(number)
        known -= {entries[0][2]}
    return [gaps[number] for number in sorted(known)]


def outcome(trials: list[FrozenTrial]) -> dict[str, Any]:
    """What a search has come to: trials by state, epochs, the best and the baseline."""
    ours = trained(trials)
    states = Counter(state_of(trial) for trial in trials if WHOLE in trial.user_attrs)
    completed = [trial for trial in ours if trial.state is TrialState.COMPLETE]
    best = max(completed, key=lambda trial: trial.values[0], default=None)
    baseline = next(iter(trial_rows(t for t in ours if t.user_attrs.get("baseline"))), None)
    return {
        "num_trials": len(ours),
        "trials": {state: states.get(state, 0) for state in COUNTED},
        "duplicates": states.get("duplicate", 0),
        "epochs_trained": sum(len(rows_of(trial)) for trial in ours),
        "best_val_accuracy": best.values[0] if best else None,
        "best_trial": best.number if best else None,
        "best_arch": [list(block) for block in as_arch(best.user_attrs["arch"])] if best else None,
        "best_lr": best.user_attrs["candidate"]["lr"] if best else None,
        "baseline_val_accuracy": baseline[METRIC] if baseline else None,
        "baseline_epochs": baseline["epochs"] if baseline else None,
    }


def summarise(trials: list[FrozenTrial], slots: int, search_seconds: float) -> dict[str, Any]:
    """The search's part of summary.json: the outcome, and what it took."""
    rows = [row for trial in trained(trials) for row in rows_of(trial)]
    busy = sum(row["epoch_seconds"] for row in rows)
    startups = startup_seconds(trials)
    return outcome(trials) | {
        "search_seconds": round(search_seconds, 3),
        "startup_seconds_per_trial": round(statistics.median(startups), 4) if startups else None,
        "slot_busy_fraction": round(busy / (slots * search_seconds), 4) if search_seconds else None,
        "images_per_second": round(statistics.median(r["images_per_second"] for r in rows), 1)
        if rows
        else None,
    }


def front_rows(trials: list[FrozenTrial], ranking: Ranking) -> list[dict[str, Any]]:
    """The front of several objectives, the most accurate network first, and which is the knee."""
    columns = ("number", "arch", "lr", METRIC, *COSTS)
    numbers, knee = ranking.front, ranking.knee
    return [
        {name: row[name] for name in columns} | {"knee": row["number"] == knee}
        for row in trial_rows(trials[n] for n in numbers)
    ]


def none_completed(trials: Iterable[FrozenTrial]) -> str | None:
    """Why no trial was completed, with the first error; None if one was."""
    table = [row for row in trial_rows(trials) if row["state"] not in UNTRAINED]
    states = Counter(row["state"] for row in table)
    if states["completed"]:
        return None
    counts = ", ".join(f"{n} {state}" for state, n in states.items()) or "none was trained"
    first = next((f"; trial {r['number']}: {r['error']}" for r in table if r["error"]), "")
    return f"no trial was completed ({counts}{first})"


def write_tables(folder: Path, trials: list[FrozenTrial]) -> None:
    """trials.csv and epochs.csv."""
    table = trial_rows(trials)
    write_csv(folder / TRIALS_TABLE, table, table[0] if table else ["number"])
    write_csv(folder / EPOCHS_TABLE, epoch_rows(trials), EPOCH_COLUMNS)


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """summary.json, whole or not at all: the next session reads it."""
    with replacing(folder / SUMMARY) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
