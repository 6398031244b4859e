"""Workers without networks: rows by a formula, checkpoints in a dict, faults on demand.

They do what `trial.TrialWorker` does with a segment, one epoch a turn, so that a study can be
driven in milliseconds. A trial's val_accuracy is its lr * epoch / (epoch + 1): the better lr wins
at every epoch, and what a study decides can be worked out by hand.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vgg_search.config import Config
from vgg_search.space.candidate import Candidate
from vgg_search.study.record import rows_of
from vgg_search.study.segment import Listener, Segment
from vgg_search.study.study import FINISHED, Study

SPACE: dict[str, Any] = {
    "num_blocks": [1, 3],
    "num_convs": [1, 2],
    "out_channels": [8, 16, 32],
    "hidden_features": 32,
    "num_hidden": 1,
    "dropout": 0.0,
    "lr": {"low": 0.01, "high": 1.0, "log": False},
}


def experiment(**fields: Any) -> Config:
    """Rungs at epochs 1, 2 and 4, one in two goes on; no baseline unless asked for."""
    given = {"max_epochs": 4, "reduction_factor": 2, "sampler": "random", "baseline": None}
    given |= {"scheduler": "asha"}
    return Config(**given | {"space": SPACE, "time_budget": None} | fields)


def value_at(lr: float, epoch: int) -> float:
    return lr * epoch / (epoch + 1)


def row_at(candidate: Candidate, epoch: int, diverged: bool = False) -> dict[str, Any]:
    loss = math.nan if diverged else 1 / epoch
    return {
        "epoch": epoch,
        "train_loss": loss,
        "train_accuracy": 0.5,
        "val_loss": loss,
        # A network of NaNs answers class 0 to everything: its accuracy is finite
        "val_accuracy": 0.1 if diverged else value_at(candidate.lr, epoch),
        "lr": candidate.lr,
        "epoch_seconds": 2.0,
        "images_per_second": 100.0,
        "worker": "node:1",
        "peak_memory_mib": 10.0,
        "ended": 0.0,
    }


def write_checkpoint(folder: Path, number: int) -> None:
    """What a worker has written into the run folder by the time that an epoch is told."""
    trial = folder / "trials" / str(number)
    (trial / "best").mkdir(parents=True, exist_ok=True)
    (trial / "best" / "model.json").write_text("{}")
    (trial / "last.pt").write_text("")
    (trial / "last.123.tmp").write_text("")  # of a worker that was killed


@dataclass
class Fault:
    """What goes wrong with a trial when it is about to train `epoch`."""

    kind: str  # diverged, failed, oom (unless alone on the device), died
    epoch: int = 1
    times: int = 1_000


@dataclass
class Workers:
    slots: int = 1
    folder: Path | None = None  # of the study, for checkpoints' files
    faults: dict[int, Fault] = field(default_factory=dict)
    disk: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # checkpoints' rows
    trained: Counter[tuple[int, int]] = field(default_factory=Counter)
    segments: list[Segment] = field(default_factory=list)
    together: list[set[int]] = field(default_factory=list)  # trials on the workers, a turn

    def run(self, study: Study, turns: int | None = None) -> bool:
        """Work until the study has finished (True) or for so many turns (False: a kill)."""
        busy: dict[int, Iterator[tuple[str, Any]]] = {}
        while turns is None or turns > 0:
            turns = turns and turns - 1
            answer: Any = None
            while len(busy) < self.slots and isinstance(answer := study.propose(), Segment):
                self.segments.append(answer)
                busy[answer.number] = self._steps(answer)
            if not busy:
                if answer == FINISHED:
                    return True
                raise AssertionError("nothing runs and nothing is proposed")
            self.together.append(set(busy))
            for number in list(busy):
                what, value = next(busy[number])
                if what != "end":
                    study.report(number, value)
                if what != "row":
                    del busy[number]
                    study.segment_ended(number, *(value if what == "end" else ()))
        return False

    def _steps(self, segment: Segment) -> Iterator[tuple[str, Any]]:
        number, rows = segment.number, self.disk.setdefault(segment.number, [])
        fault = self.faults.get(number)
        known = [row for row in rows if row["epoch"] > segment.known]
        for row in known or (rows[-1:] if len(rows) >= segment.until else []):
            if math.isnan(row["train_loss"]):
                yield "row", row
                yield "end", ("diverged",)
            yield "last" if row["epoch"] == segment.until else "row", row
        for epoch in range(len(rows) + 1, segment.until + 1):
            hit = fault and fault.epoch == epoch and fault.times > 0
            if fault and hit and not (fault.kind == "oom" and segment.alone):
                fault.times -= 1
                if fault.kind != "diverged":
                    yield "end", (fault.kind, f"Traceback: ...\nRuntimeError: {fault.kind}")
                rows.append(row_at(segment.candidate, epoch, diverged=True))
                yield "row", rows[-1]
                yield "end", ("diverged",)
            self.trained[number, epoch] += 1
            rows.append(row_at(segment.candidate, epoch))
            if self.folder:
                write_checkpoint(self.folder, number)
            yield "last" if epoch == segment.until else "row", rows[-1]


@contextmanager
def opened(folder: Path, config: Config, listeners: Iterable[Listener] = ()) -> Iterator[Study]:
    """A study at work, whose driver is gone without a word at the end."""
    folder.mkdir(exist_ok=True)
    study = Study(folder, config, listeners)
    try:
        study.open()
        yield study
    finally:
        study.release()


def search(folder: Path, config: Config, workers: Workers) -> Study:
    """A whole search; the study is closed and released, and can still be looked at."""
    with opened(folder, config) as study:
        assert workers.run(study)
        study.close()
    return study


def record(study: Study) -> dict[int, dict[str, Any]]:
    """All of a study's record but times, by number."""
    told = {}
    for trial in study.optuna.get_trials(deepcopy=False):
        attrs = {k: v for k, v in trial.user_attrs.items() if not k.startswith("epoch_")}
        rows = [{k: v for k, v in row.items() if k != "time"} for row in rows_of(trial)]
        told[trial.number] = {
            "state": trial.state.name,
            "params": trial.params,
            "objectives": trial.values,
            "values": trial.intermediate_values,
            "constraints": trial.constraints,
            "attrs": attrs,
            "rows": rows,
        }
    return told
