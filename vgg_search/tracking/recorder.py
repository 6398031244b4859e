"""What a study's events become in MLflow, and which checkpoints stay. It puts, and never waits."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from vgg_search.data.splits import Splits
from vgg_search.records import BEST_METRIC, METRIC, UNTRAINED, EpochRow, metrics_of
from vgg_search.space.arch import describe
from vgg_search.storage.addresses import masked
from vgg_search.storage.folder import (
    BEST,
    CARD,
    CHAMPION,
    CONFIG,
    EPOCHS_TABLE,
    JOURNAL,
    PLOTS,
    REPORT,
    SUMMARY,
    TRIALS_TABLE,
)
from vgg_search.storage.mirror import Shelf
from vgg_search.study.record import candidate_of
from vgg_search.study.segment import Event
from vgg_search.study.study import Study
from vgg_search.tracking.sender import Status, Tracker

PARENT = "study"
REGISTERED = "vgg-search"
FILES = (REPORT, PLOTS, TRIALS_TABLE, EPOCHS_TABLE, SUMMARY, JOURNAL)
CHAMPION_METRICS = (
    "val_accuracy test_accuracy test_loss test_accuracy_mean test_accuracy_std"
).split()
ANSWERS = ("model_uri", "run_id", "alias_text")  # what MLflow says of a champion
STATUS: dict[str, Status] = {"failed": "FAILED", "interrupted": "KILLED"}


def run_key(number: int) -> str:
    return f"trial/{number}"


def champion_key(trial: int, epochs: int) -> str:
    """Another best trial's champion is another run, and so is one of another length."""
    return f"champion/{trial}-{epochs}"


def read_card(folder: Path) -> dict[str, Any] | None:
    """The card of the champion that a run folder holds; None if it has none."""
    file = folder / CHAMPION / CARD
    card: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
    return card


class Recorder:
    """A listener of the study that writes to the tracker's outbox."""

    def __init__(
        self,
        tracker: Tracker,
        study: Study,
        splits: Splits,
        facts: dict[str, Any],
        shelf: Shelf | None = None,
    ) -> None:
        self.tracker, self.study, self.config = tracker, study, study.config
        self.shelf = shelf or Shelf(study.folder)
        self.dataset, self.digest = splits.name, splits.digest
        self.facts = facts  # versions, commit, host: tags of the parent
        self.champion = ""  # key of the one that is being trained
        record = [t for t in study.optuna.get_trials(deepcopy=False) if t.state.is_finished()]
        states = Counter(trial.user_attrs.get("state") for trial in record)
        self.untrained = {state: states[state] for state in UNTRAINED}
        # Of a trial whose run is open, MLflow may not have been sent the checkpoint
        left = set(tracker.open)
        sent = [t.number for t in record if run_key(t.number) not in left]
        self.kept = {number for number in sent if self.shelf.is_kept(number)}

    def start(self) -> None:
        config = self.config.model_dump(mode="json")
        config["tracking_uri"] = masked(config["tracking_uri"] or "") or None
        versions = ", ".join(f"{name} {text}" for name, text in self.facts["versions"].items())
        tags = {"kind": "study", "dataset": self.dataset, "state": "running", **self.facts}
        tags |= {
            "versions": versions,
            "mlflow.source.name": "python -m vgg_search.run",
            "mlflow.source.type": "LOCAL",
            "mlflow.note.content": f"A search of {self.config.num_trials} VGG-style networks on "
            f"{self.dataset}, ranked by `{METRIC}`. The trials are child runs; `report.html` is "
            "among the artifacts.",
        }
        self.tracker.run(PARENT, self.study.folder.name, tags, config)
        self._describe_data(PARENT)
        if config["tracking_uri"] == self.config.tracking_uri:  # it holds no password
            self.tracker.artifact(PARENT, self.study.folder / CONFIG)

    def _describe_data(self, key: str) -> None:
        self.tracker.dataset(
            key,
            self.dataset,
            self.digest,
            source={"dataset": self.dataset},
            context="training",
            profile={
                "val_images": self.config.val_images,
                "train_images": self.config.train_images,
            },
        )

    def __call__(self, event: Event) -> None:
        number, key = event.number, run_key(event.number)
        if event.kind == "started":
            self._start(number, event.attrs)
        elif event.row:
            self._log(number, event.row)
        elif event.kind in ("waiting", "retried"):
            self.tracker.tag(key, state=event.kind)
        elif event.kind == "promoted":
            self.tracker.tag(key, state="running")
        elif event.kind == "skipped":
            self.untrained[event.attrs["state"]] += 1
            self.tracker.tag(PARENT, **{f"{k}_proposals": n for k, n in self.untrained.items()})
        elif event.kind == "ended":
            self._end(number, event.attrs["state"], event.attrs.get("error"))

    def _start(self, number: int, attrs: dict[str, Any]) -> None:
        candidate = candidate_of(attrs)
        params = candidate.params() | candidate.block_params()
        params |= {name: attrs[name] for name in ("num_params", "flops_per_image")}
        tags = {
            "kind": "trial",
            "trial_number": number,
            "state": "running",
            "dataset": self.dataset,
            "seed": attrs["seed"],
            "baseline": bool(attrs.get("baseline")),
        }
        self.tracker.run(
            run_key(number), f"{number} {describe(candidate.arch)}", tags, params, parent=PARENT
        )

    def _log(self, number: int, row: EpochRow) -> None:
        self.tracker.log(run_key(number), metrics_of(row), row["epoch"])

    def _log_best(self, number: int) -> None:
        rows = self.study.rows(number)
        if rows:
            best = max(rows, key=lambda row: row[METRIC] if row[METRIC] == row[METRIC] else -1.0)
            last = {"peak_memory_mib": max(row["peak_memory_mib"] for row in rows)}
            last |= {BEST_METRIC: best[METRIC], "best_epoch": best["epoch"]}
            self.tracker.log(run_key(number), last, rows[-1]["epoch"])

    def _end(self, number: int, state: str, error: str | None) -> None:
        key = run_key(number)
        self._log_best(number)
        tags = {"state": state} | ({"error": error[-4000:]} if error else {})
        self.tracker.tag(key, **tags)
        self._keep(number)
        self.tracker.end(key, STATUS.get(state, "FINISHED"))
        if self.study.ranking.incumbent:
            self.tracker.log(
                PARENT,
                {BEST_METRIC: self.study.ranking.incumbent[0]},
                len(self.study.ranking.best),
            )

    def _keep(self, number: int) -> None:
        """Best checkpoints for the top K over the whole study, none for the rest."""
        top = set(self.study.ranking.top())
        for loser in (self.kept | {number}) - top:
            if loser in self.kept or self.shelf.is_kept(loser):
                self.tracker.delete_artifact(run_key(loser), BEST)
            self.shelf.drop(loser)
        for winner in top - self.kept:
            self.tracker.artifact(run_key(winner), self.shelf.keep(winner), BEST)
        self.kept = top

    def catch_up(self) -> None:
        """Put what a driver that was killed had in the record and not yet in the outbox.

        An outbox that was copied after the record knows of trials that the record lacks, or has
        not begun: their runs stay open until they are proposed again.
        """
        live, trials = self.study.unfinished, self.study.optuna.get_trials(deepcopy=False)
        begun = {trial.number: trial for trial in trials if trial.state is not TrialState.WAITING}
        card = read_card(self.study.folder)
        for key in self.tracker.open:
            kind, _, number = key.partition("/")
            if kind == "trial" and (trial := begun.get(int(number))):
                for row in self.study.rows(trial.number):
                    self._log(trial.number, row)
                if trial.number not in live:
                    attrs = trial.user_attrs
                    self._end(trial.number, attrs["state"], attrs.get("error"))
            elif card and key == champion_key(card["trial"], card["epochs"]):
                self.champion_ended(card, self.study.folder / CHAMPION)
            elif kind == "champion":
                self.champion = key
                self.champion_lost("interrupted")

    def interrupt(self) -> None:
        """Close the runs of trials that a later `--resume` goes on with."""
        for number in self.study.unfinished:
            self._log_best(number)
            self.tracker.tag(run_key(number), state="interrupted")
            self.tracker.end(run_key(number), "KILLED")

    def champion_started(self, best: FrozenTrial, epochs: int) -> None:
        """The champion's own run; its epochs are logged like a trial's."""
        self.champion, candidate = champion_key(best.number, epochs), candidate_of(best.user_attrs)
        tags = {"kind": "champion", "dataset": self.dataset, "trial_number": best.number}
        tags |= {"state": "running"}
        name = f"champion {describe(candidate.arch)}"
        self.tracker.run(self.champion, name, tags, candidate.params(), parent=PARENT)
        self._describe_data(self.champion)

    def champion_row(self, row: EpochRow) -> None:
        self.tracker.log(self.champion, metrics_of(row), row["epoch"])

    def champion_lost(self, state: Literal["failed", "interrupted"]) -> None:
        self.tracker.tag(self.champion, state=state)
        self.tracker.end(self.champion, STATUS[state])

    def champion_ended(self, card: dict[str, Any], folder: Path) -> None:
        key, metrics = champion_key(card["trial"], card["epochs"]), card["metrics"]
        told = {name: metrics[name] for name in CHAMPION_METRICS if metrics[name] is not None}
        self.tracker.log(key, told, card["epochs"])
        self.tracker.register(key, REGISTERED, folder)
        self.tracker.tag(key, state="completed")
        self.tracker.end(key, "FINISHED")

    def finish(self, state: str) -> None:
        """Send the run folder's files and close the parent."""
        for name in FILES:
            path = self.study.folder / name
            if path.exists():
                self.tracker.artifact(PARENT, path, name if path.is_dir() else None)
        self.tracker.tag(PARENT, state=state)
        self.tracker.end(PARENT, STATUS.get(state, "FINISHED"))
