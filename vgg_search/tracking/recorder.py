"""What a study's events are to the tracker. It puts, and never waits."""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from vgg_search.data.splits import Splits
from vgg_search.records import BEST_METRIC, METRIC, UNTRAINED, EpochRow, metrics_of
from vgg_search.space.arch import describe
from vgg_search.space.candidate import Candidate
from vgg_search.storage.addresses import masked
from vgg_search.storage.checksums import read_cards
from vgg_search.storage.folder import CONFIG, RESULTS, champion_folder
from vgg_search.study.record import candidate_of, rows_by_epoch
from vgg_search.study.segment import Event
from vgg_search.study.study import Study
from vgg_search.tracking.tracker import Status, Tracker

log = logging.getLogger("vgg_search")

PARENT, REFINEMENT = "study", "refinement"  # keys of runs
REGISTERED = "vgg-search"  # the registered model
CHAMPION_METRICS = (METRIC, "test_accuracy", "test_loss", "test_accuracy_mean", "test_accuracy_std")
STATUS: dict[str, Status] = {"failed": "FAILED", "interrupted": "KILLED"}


def run_key(number: int) -> str:
    """The key of a trial's run."""
    return f"trial/{number}"


def champion_key(trial: int, epochs: int) -> str:
    """Another best trial's champion is another run, and so is one of another length."""
    return f"champion/{trial}-{epochs}"


def key_of(card: dict[str, Any]) -> str:
    """The key of the run of the model with this card."""
    refined = "parent_model" in card
    return REFINEMENT if refined else champion_key(card["trial"], card["epochs"])


def start_run(
    tracker: Tracker,
    key: str,
    title: str,
    candidate: Candidate,
    tags: dict[str, Any],
    params: dict[str, Any],
    parent: str | None = None,
) -> None:
    """Opens the run of one network's training: of a trial, a champion or a refinement."""
    tags = {"kind": key.partition("/")[0], "state": "running", **tags}
    params = candidate.params() | candidate.block_params() | params
    tracker.run(key, f"{title} {describe(candidate.arch)}", tags, params, parent)


def log_row(tracker: Tracker, key: str, row: Mapping[str, Any]) -> None:
    """One epoch of a training."""
    tracker.log(key, metrics_of(row), row["epoch"])


def end_run(tracker: Tracker, key: str, state: str, **tags: Any) -> None:
    """Closes a run, in a state of `records` or "completed"."""
    tracker.tag(key, state=state, **tags)
    tracker.end(key, STATUS.get(state, "FINISHED"))


def register_champion(
    tracker: Tracker, key: str, scores: Mapping[str, Any], epochs: int, folder: Path
) -> None:
    """The scores of a champion or a refinement, its version, and the end of its run."""
    tracker.log(key, {name: x for name, x in scores.items() if x is not None}, epochs)
    tracker.register(key, REGISTERED, folder)
    end_run(tracker, key, "completed")


class Recorder:
    """A listener of the study that writes to the tracker."""

    def __init__(
        self, tracker: Tracker, study: Study, splits: Splits, facts: dict[str, Any]
    ) -> None:
        """`facts` (versions, commit, host) become tags of the parent."""
        self.tracker, self.study, self.config = tracker, study, study.config
        self.dataset, self.digest, self.facts = splits.name, splits.digest, facts
        self.champion = ""  # key of the run of the one that is being trained
        trials = [t for t in study.optuna.get_trials(deepcopy=False) if t.state.is_finished()]
        states = Counter(trial.user_attrs.get("state") for trial in trials)
        self.untrained = {state: states[state] for state in UNTRAINED}

    def start(self) -> None:
        """Opens the parent, the study's own run, and what else an outbox lacks that was lost."""
        config = self.config.model_dump(mode="json")
        config["tracking_uri"] = masked(config["tracking_uri"] or "") or None
        versions = ", ".join(f"{name} {text}" for name, text in self.facts["versions"].items())
        tags = {"kind": "study", "dataset": self.dataset, "state": "running", **self.facts}
        tags |= {
            "versions": versions,
            "source": "python -m vgg_search.run",
            "description": f"A search of {self.config.num_trials} VGG-style networks on "
            f"{self.dataset}, ranked by `{METRIC}`. The trials are child runs; `report.html` is "
            "among the artifacts.",
        }
        known = self.tracker.keys
        self.tracker.run(PARENT, self.study.folder.name, tags, config)
        self._describe_data(PARENT)
        self.tracker.artifact(PARENT, self.study.folder / CONFIG)
        if self.tracker.keys:
            self._open_recorded(known)
        for trial in self._open_trials():  # before the study is opened, which may end some
            for row in rows_by_epoch(trial).values():
                log_row(self.tracker, run_key(trial.number), row)

    def _open_recorded(self, known: list[str]) -> None:
        """Opens the runs of what is recorded and not `known`: of an outbox that is new although the
        study is not, or that a power failure has put back; what is in them is put then."""
        trials = self.study.optuna.get_trials(deepcopy=False)
        # What has no "until" was being proposed, and may yet turn out to need no training
        begun = [trial for trial in trials if "until" in trial.user_attrs]
        trained = [trial for trial in begun if run_key(trial.number) not in known]
        for trial in trained:
            self._start(trial.number, trial.user_attrs)
        for card in read_cards(self.study.folder):
            if key_of(card) not in known and card["trial"] < len(trials):
                self.champion_started(trials[card["trial"]], card["epochs"])
        if trained and not known:
            text = "tracker: the outbox has no run; %d trials of the record are put anew"
            log.warning(text, len(trained))

    def _describe_data(self, key: str) -> None:
        profile = self.config.model_dump(include={"val_images", "train_images"})
        self.tracker.dataset(key, self.dataset, self.digest, profile)

    def __call__(self, event: Event) -> None:
        number, key = event.number, run_key(event.number)
        if event.kind == "started":
            self._start(number, event.attrs)
        elif event.row:
            log_row(self.tracker, key, event.row)
        elif event.kind in ("waiting", "retried"):
            self.tracker.tag(key, state=event.kind)
        elif event.kind == "promoted":
            self.tracker.tag(key, state="running")
        elif event.kind == "skipped":
            self.untrained[event.attrs["state"]] += 1
            self.tracker.tag(PARENT, **{f"{k}_proposals": n for k, n in self.untrained.items()})
        elif event.kind == "ended":
            self._end(number, event.attrs)

    def _start(self, number: int, attrs: dict[str, Any]) -> None:
        tags = {"trial_number": number, "dataset": self.dataset, "seed": attrs["seed"]}
        tags |= {"baseline": bool(attrs.get("baseline"))}
        costs = {name: attrs[name] for name in ("num_params", "flops_per_image")}
        candidate = candidate_of(attrs)
        start_run(self.tracker, run_key(number), str(number), candidate, tags, costs, PARENT)

    def _log_best(self, number: int) -> None:
        rows = self.study.rows(number)
        if rows:
            best = max(rows, key=lambda row: row[METRIC] if row[METRIC] == row[METRIC] else -1.0)
            last = {"peak_memory_mib": max(row["peak_memory_mib"] for row in rows)}
            last |= {BEST_METRIC: best[METRIC], "best_epoch": best["epoch"]}
            self.tracker.log(run_key(number), last, rows[-1]["epoch"])

    def _end(self, number: int, attrs: dict[str, Any]) -> None:
        self._log_best(number)
        ranking = self.study.ranking
        if ranking.incumbent:
            self.tracker.log(PARENT, {BEST_METRIC: ranking.incumbent[0]}, len(ranking.best))
        error = {"error": attrs["error"][-4000:]} if "error" in attrs else {}
        # At the end of all: of a run that is closed nothing is caught up with after a kill
        end_run(self.tracker, run_key(number), attrs["state"], **error)

    def catch_up(self) -> None:
        """Put what a killed driver had in the record and not yet in the outbox. Runs of trials that
        the outbox has and the record lacks stay open until these are proposed again, or the end."""
        for trial in self._open_trials():
            if trial.number not in self.study.unfinished:
                self._end(trial.number, trial.user_attrs)
        cards = read_cards(self.study.folder)
        champions = {key_of(card): card for card in cards}
        for key in self.tracker.open_runs:
            if key in champions:
                self.champion_ended(champions[key])
            elif key.startswith("champion/"):
                end_run(self.tracker, key, "interrupted")

    def _open_trials(self) -> list[FrozenTrial]:
        """Those of the record whose runs are open."""
        trials = self.study.optuna.get_trials(deepcopy=False)
        keys = set(self.tracker.open_runs)
        return [
            trial
            for trial in trials
            if trial.state is not TrialState.WAITING and run_key(trial.number) in keys
        ]

    def interrupt(self) -> None:
        """Close the runs of trials that a later `--resume` goes on with."""
        # MLflow shows KILLED as failed, which what only a budget cut short is not
        status: Status = "KILLED" if self.study.stopping else "FINISHED"
        for number in self.study.unfinished:
            self._log_best(number)
            self.tracker.tag(run_key(number), state="interrupted")
            self.tracker.end(run_key(number), status)

    def abandon(self) -> None:
        """Close what is open, of a session that an error ends; another may go on with it. The
        record is not asked: it may be what is gone."""
        trials = {run_key(number) for number in self.study.unfinished}
        for key in self.tracker.open_runs:
            if key in trials or key == self.champion:
                end_run(self.tracker, key, "interrupted")
        end_run(self.tracker, PARENT, "failed")

    def champion_started(self, best: FrozenTrial, epochs: int) -> None:
        """Opens the champion's own run."""
        self.champion, candidate = champion_key(best.number, epochs), candidate_of(best.user_attrs)
        tags = {"dataset": self.dataset, "trial_number": best.number}
        start_run(self.tracker, self.champion, "champion", candidate, tags, {}, PARENT)
        self._describe_data(self.champion)

    def champion_row(self, row: EpochRow) -> None:
        log_row(self.tracker, self.champion, row)

    def champion_lost(self, state: Literal["failed", "interrupted"]) -> None:
        """The champion's run ends without one."""
        end_run(self.tracker, self.champion, state)

    def champion_ended(self, card: dict[str, Any]) -> None:
        """The champion whose card this is lies in its folder."""
        folder = champion_folder(self.study.folder, card.get("place", 1))
        scores = {name: card["metrics"][name] for name in CHAMPION_METRICS}
        register_champion(self.tracker, key_of(card), scores, card["epochs"], folder)

    def finish(self, state: str) -> None:
        """Say who is on the front of several objectives, send the run folder's files and close the
        parent."""
        ranking = self.study.ranking
        front = {*ranking.front} if ranking.several else set()
        for number in ranking.completed if front else ():
            self.tracker.tag(run_key(number), on_front=number in front)
        # A power failure may have taken a trial out of the record whose number then was not trained
        for key in set(self.tracker.open_runs) - {PARENT}:
            end_run(self.tracker, key, "interrupted")
        for name in RESULTS:
            path = self.study.folder / name
            if path.exists():
                self.tracker.artifact(PARENT, path, name if path.is_dir() else None)
        end_run(self.tracker, PARENT, state)
