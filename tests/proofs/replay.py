"""Derive every decision of a study again from its journal alone; nothing is trained.

    python tests/proofs/replay.py runs/NAME

The journal is walked in the order in which it was written. What came from outside (epochs' rows,
failures, a worker that asked for work) is told to a fresh study in a temporary folder. What the
study made of it must come out again: each proposal to the last digit, how far each trial was let
train (`until`), and how it ended. Exit code 0 and counts if all agree, 1 and one line at the first
difference, 2 if there is nothing to replay. `config.yaml` must lie beside the journal.

A worker that died and was replaced leaves no trace in a journal, and needs none: its segment comes
before everything else.
"""

import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Private, and its numbers are in every journal: no release can change them
from optuna.storages.journal._storage import JournalOperation as Op
from optuna.trial import FrozenTrial, TrialState

from vgg_search.cli.arguments import read_yaml
from vgg_search.config import Config
from vgg_search.records import METRIC, UNTRAINED, diverged
from vgg_search.space.candidate import Candidate
from vgg_search.study.record import EPOCH_KEY, read_trials
from vgg_search.study.segment import Segment
from vgg_search.study.study import CONVERGES, NUM_TRIALS, Study

CREATED = (Op.CREATE_TRIAL, Op.SET_TRIAL_STATE_VALUES)


class DifferenceError(Exception):
    """The record says one thing and the replay another: one line that names the trial."""


class Replay:
    """A study that is told what the lines of a journal say, and asked whether it agrees."""

    def __init__(self, study: Study, recorded: Sequence[FrozenTrial]) -> None:
        self.study, self.recorded = study, recorded
        self.untils: dict[int, int] = {}  # in the record so far
        self.errors: dict[int, str] = {}
        self.counts: Counter[str] = Counter()
        study.open()

    def trial(self, number: int) -> FrozenTrial | None:
        """A trial of the replay, once it is more than queued."""
        trials = self.study.optuna.get_trials(deepcopy=False)
        trial = trials[number] if number < len(trials) else None
        return None if trial and trial.state is TrialState.WAITING else trial

    def attrs(self, number: int) -> dict[str, Any]:
        trial = self.trial(number)
        return trial.user_attrs if trial else {}

    def apply(self, line: dict[str, Any], created: int) -> None:
        """One line of the record, before which it had `created` trials. Raises DifferenceError."""
        op, number = line["op_code"], line.get("trial_id", created)
        if op == Op.SET_STUDY_USER_ATTR and {NUM_TRIALS, CONVERGES} & line["user_attr"].keys():
            # The fields of an experiment that decide something and that a resume may change
            self.study.config = self.study.config.model_copy(update=line["user_attr"])
            self.study.prune_unpromotable()
        elif op in CREATED and line.get("state", TrialState.RUNNING) == TrialState.RUNNING:
            if self.trial(number) is None:
                self.propose(number)
            self.same(number, ("param", "range"))
            self.counts["proposals"] += 1
        elif op == Op.SET_TRIAL_USER_ATTR:
            [(key, value)] = line["user_attr"].items()
            if key.startswith(EPOCH_KEY):
                self.epoch(number, value)
            elif key == "until":
                self.until(number, value)
            elif key == "error":
                self.errors[number] = value
            elif key == "state":
                self.ended(number, value)

    def same(self, number: int, kinds: str | tuple[str, ...]) -> None:
        """Compare what is known of a trial by now."""
        compare(self.recorded[number], self.study.optuna.get_trials(deepcopy=False)[number], kinds)

    def propose(self, number: int) -> None:
        """A worker asked for work and the record shows that trial `number` was touched."""
        while True:
            proposal = self.study.propose()
            segment = proposal if isinstance(proposal, Segment) else None
            if segment and segment.number == number:
                return
            if self.attrs(number).get("state") in UNTRAINED:
                return
            if segment is None:
                raise DifferenceError(
                    f"trial {number}: in the record it goes on, in the replay nothing"
                )
            # Work that was queued already, and left no line when it was taken up
            if self.untils.get(segment.number) != segment.until:
                raise DifferenceError(
                    f"trial {number}: in the record it goes on, in the replay trial "
                    f"{segment.number} does, until epoch {segment.until}"
                )

    def epoch(self, number: int, row: dict[str, Any]) -> None:
        """A row came from a worker; the last of a segment ends it."""
        if number not in self.study.running:
            self.propose(number)
        row = {key: math.nan if value is None else value for key, value in row.items()}
        segment = self.study.running[number]
        self.study.report(number, row)
        self.same(number, f"{METRIC} at {row['epoch']},")
        self.counts["epochs"] += 1
        if diverged(row):
            self.study.segment_ended(number, "diverged")
        elif row["epoch"] == segment.until:
            self.study.segment_ended(number)

    def until(self, number: int, epoch: int) -> None:
        """The record lets a trial train on: it begins, goes on at its rung, or is promoted."""
        if number in self.study.scheduler.waiting:
            self.propose(number)
        attrs = self.attrs(number)
        if attrs.get("until") != epoch or "state" in attrs:
            raise DifferenceError(
                f"trial {number}: in the record it trains until epoch {epoch}, "
                f"in the replay {attrs.get('state') or attrs.get('until')}"
            )
        self.untils[number] = epoch
        self.counts["until"] += 1

    def ended(self, number: int, state: str) -> None:
        """The record says how a trial ended."""
        if state == "failed" and "state" not in self.attrs(number):
            if number not in self.study.running:
                self.propose(number)
            self.study.segment_ended(number, "failed", self.errors.get(number))
        elif state == "pruned" and number in self.study.scheduler.waiting:
            self.study.close()
        attrs = self.attrs(number)
        if attrs.get("state") != state:
            goes_on = f"goes on until epoch {attrs.get('until')}"
            raise DifferenceError(
                f"trial {number}: in the record it ends as {state}, "
                f"in the replay it {attrs.get('state') or goes_on}"
            )
        self.counts[state] += 1


def contents(trial: FrozenTrial) -> dict[str, Any]:
    """All that a record says of a trial but when it was; flat, so that one key can be named."""
    facts: dict[str, Any] = {"Optuna's state": trial.state.name, "values": trial.values}
    facts |= {f"param {name}": value for name, value in trial.params.items()}
    facts |= {f"range of {name}": value for name, value in trial.distributions.items()}
    facts |= {f"{METRIC} at {epoch},": value for epoch, value in trial.intermediate_values.items()}
    facts |= {f"attribute {name}": value for name, value in trial.system_attrs.items()}
    for name, value in trial.user_attrs.items():
        timeless = name.startswith(EPOCH_KEY)
        facts[name] = {k: v for k, v in value.items() if k != "time"} if timeless else value
    if "candidate" in facts:  # older records lack dimensions that came later: they have the default
        facts["candidate"] = Candidate.from_dict(facts["candidate"]).to_dict()
    return json.loads(json.dumps(facts, default=repr))


def compare(old: FrozenTrial, new: FrozenTrial, kinds: str | tuple[str, ...] = "") -> None:
    """Raises DifferenceError where the two are not the same; a record that was cut says less."""
    before, after = contents(old), contents(new)
    if not old.state.is_finished():
        after = {key: value for key, value in after.items() if key in before}
        after["Optuna's state"] = before["Optuna's state"]
    for key in before | after:
        if key.startswith(kinds) and before.get(key) != after.get(key):
            raise DifferenceError(
                f"trial {old.number}: {key} is {before.get(key)!r} in the record, "
                f"{after.get(key)!r} in the replay"
            )


def replay(folder: Path) -> Counter[str]:
    """Counts of what agrees. Raises DifferenceError, or StudyError if there is no study."""
    recorded = read_trials(folder)
    config = Config(**read_yaml(folder / "config.yaml"))
    with (folder / "study.journal").open("rb") as file:
        lines = [json.loads(line) for line in file if line.endswith(b"\n")]
    facts: dict[str, Any] = {}  # as they were at first
    for line in lines:
        if line["op_code"] == Op.SET_STUDY_USER_ATTR:
            facts = line["user_attr"] | facts
    budget = {NUM_TRIALS: facts.pop(NUM_TRIALS, config.num_trials), CONVERGES: False}
    facts.pop(CONVERGES, None)
    memory = Path("/dev/shm")  # where there is one: no disk is to be waited for
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        study = Study(Path(scratch), config.model_copy(update=budget), facts=facts)
        try:
            again, created = Replay(study, recorded), 0
            for line in lines:
                again.apply(line, created)
                created += line["op_code"] == Op.CREATE_TRIAL
            replayed = study.optuna.get_trials(deepcopy=False)
            for old, new in zip(recorded, replayed, strict=False):
                compare(old, new)
            cut = any(trial.state is TrialState.RUNNING for trial in recorded)
            if len(recorded) < len(replayed) and not cut:
                raise DifferenceError(f"trial {len(recorded)}: only in the replay")
        finally:
            study.release()
    return again.counts


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1:
        print("usage: python tests/proofs/replay.py runs/NAME", file=sys.stderr)
        return 2
    try:
        counts = replay(Path(argv[0]).resolve())
    except DifferenceError as difference:
        print(f"replay: {difference}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{count} {what}" for what, count in counts.items()), "agree")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
