"""A training as a task, with its checkpoints: the last to go on from, the best to keep."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError

from vgg_search.data.splits import Splits
from vgg_search.errors import last_line
from vgg_search.models.files import save_model
from vgg_search.records import METRIC
from vgg_search.storage.folder import BEST, LAST, trial_folder
from vgg_search.storage.place import Place, StorageError
from vgg_search.study.segment import Segment
from vgg_search.training.device import context_lost, out_of_memory
from vgg_search.training.model import build
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident, Training

log = logging.getLogger("vgg_search")
Row = dict[str, Any]
OUTAGE_SECONDS = 300.0  # of the storage, which a training that has to go on waits out
ATTEMPTS = 10  # in which a worker does, that is to say between them that it is well
LONGEST_PAUSE = 15.0  # between two attempts


@dataclass(frozen=True)
class TrainingCheckpoints:
    """Which checkpoints of a training are kept, in `folder` of `place`. Raises StorageError."""

    place: Place
    folder: str
    until: int
    """The epoch after which there is one in any case."""
    every: int = 1
    segment: Segment | None = None
    """Of a trial, whose best epoch is kept too if it may be among the best of the study."""

    @classmethod
    def of_trial(cls, place: Place, segment: Segment, every: int) -> "TrainingCheckpoints":
        return cls(place, trial_folder(segment.number), segment.until, every, segment)

    def resume(self, training: Training, attempts: int = 1) -> None:
        """Go on from the last checkpoint, if there is one of this training. An outage is waited out
        in one of so many `attempts`.

        A number alone names no training: a driver that goes on from a copy of the record proposes
        the trials that the copy lacks anew, and the sampler may answer otherwise. A file that does
        not say what it is of is of another version, and is not trusted either.
        """
        state = self._read(training.lr.device, OUTAGE_SECONDS / attempts)
        if state and state.get("of") == identity(training):
            training.load_state_dict(state)

    def _read(self, device: torch.device, patience: float) -> dict[str, Any] | None:
        """The last checkpoint. An outage is no worker's, and no trial's fault."""
        until, pause = time.monotonic() + patience, 0.5
        while True:
            try:
                with self.place.reading(f"{self.folder}/{LAST}") as file:
                    return load_checkpoint(file, device) if file else None
            except StorageError:
                if time.monotonic() + pause > until:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def train(self, training: Training) -> Iterator[Row]:
        """Train until `until`: a row an epoch, after those that were not reported."""
        for row in self.unreported_rows(training):  # `yield from` a list could not be sent anything
            yield row
        for row in training.run(self.until):
            self.save(row, training)
            yield row

    def unreported_rows(self, training: Training) -> list[Row]:
        """Rows that a crash kept from the record: from the checkpoint, not trained again."""
        known = self.segment.known if self.segment else 0
        unreported = [row for row in training.rows if row["epoch"] > known]
        ended = training.epoch >= self.until or training.diverged
        return unreported or (training.rows[-1:] if ended else [])

    def save(self, row: Row, training: Training) -> None:
        """To be called after each epoch, before more is trained.

        A trial goes on without a checkpoint that the storage does not take: what is lost is time,
        if another worker has to go on from an older one. Of anything else it is the result.
        """
        epoch, segment = row["epoch"], self.segment
        try:
            if segment and epoch == training.best_epoch and row[METRIC] >= segment.keep_above:
                card = {"trial": segment.number, "epoch": epoch, METRIC: row[METRIC]}
                with self.place.writing(f"{self.folder}/{BEST}") as folder, _as_os_errors():
                    save_model(folder, training.measured, training.data.info, card)
            if epoch == self.until or epoch % self.every == 0:
                state = training.state_dict() | {"of": identity(training)}
                with self.place.writing(self.folder) as folder, _as_os_errors():
                    save_checkpoint(folder / LAST, state)
        except StorageError:
            if segment is None:
                raise


@dataclass(frozen=True)
class TrainingTask:
    """A training, and where its checkpoints are."""

    network: dict[str, Any]
    """What `model.build` builds it from."""
    recipe: Recipe
    seed: int
    threads: int
    checkpoints: TrainingCheckpoints
    whole: bool = False
    """Train on validation too, and have none."""

    def data(self, splits: Splits, device: torch.device | str) -> Resident:
        """What it trains on."""
        return Resident.load(splits, device, self.whole)

    def training(self, data: Resident, attempts: int = 1) -> Training:
        """In one process, where its checkpoint ends; `attempts` as of `resume`."""
        training = Training(build(self.network, self.seed), data, self.recipe, self.seed)
        self.checkpoints.resume(training, attempts)
        return training


# `ddp.train_distributed` of so many processes: a task and a reference to its Splits -> rows
DistributedTraining = Callable[[TrainingTask, Any], Iterator[Row]]


def identity(training: Training) -> dict[str, Any]:
    """What makes two trainings on the same images the same, in plain values."""
    recipe = training.recipe.model_dump()
    return {"network": training.network.options(), "recipe": recipe, "seed": training.seed}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    finally:  # half of one would only fill a full disk
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The state in a checkpoint, of which no code is run; None of one that is damaged: the training
    then begins anew, and what is in the record already is not reported again."""
    with path.open("rb") as file:  # torch's own takes one that cannot be read for a damaged one
        try:
            with ZipFile(file) as archive:  # torch itself checks no sums
                if damaged := archive.testzip():
                    raise BadZipFile(f"{damaged} is not as it was written")
            file.seek(0)
            state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
        except (BadZipFile, EOFError, RuntimeError, ValueError) as error:
            if context_lost(error) or out_of_memory(error):  # of the GPU that it is read to
                raise
            log.warning(
                "checkpoint %s is damaged, its training begins anew: %s", path, last_line(error)
            )
            return None
    return state


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """What torch and safetensors make of a disk that takes no more, as what it is."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error
    except RuntimeError as error:
        if "inline_container" not in str(error):  # torch's writer of files
            raise
        text = str(error).splitlines()[0]
        raise OSError(f"a checkpoint was not written whole: {text}") from error
