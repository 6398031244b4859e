"""A training as a task, with its checkpoints: the last to go on from, the best to keep."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vgg_search.data import Splits
from vgg_search.journal import METRIC
from vgg_search.model import build
from vgg_search.reuse import save_model
from vgg_search.segment import Segment
from vgg_search.storage import BEST, CHECKPOINT, Place, StorageError, trial_folder
from vgg_search.train import Recipe, Resident, Training

Row = dict[str, Any]


@dataclass(frozen=True)
class Keeper:
    """Which checkpoints of a training are kept, in `folder` of `place`. Raises StorageError."""

    place: Place
    folder: str
    until: int
    """The epoch after which there is one in any case."""
    every: int = 1
    segment: Segment | None = None
    """Of a trial, whose best epoch is kept too if it may be among the best of the study."""

    @classmethod
    def of_trial(cls, place: Place, segment: Segment, every: int) -> "Keeper":
        return cls(place, trial_folder(segment.number), segment.until, every, segment)

    def resume(self, training: Training) -> None:
        """Go on from the last checkpoint, if there is one."""
        with self.place.reading(f"{self.folder}/{CHECKPOINT}") as file:
            if file:
                device = training.lr.device
                training.load_state_dict(torch.load(file, map_location=device, weights_only=True))

    def rows(self, training: Training) -> Iterator[Row]:
        """Train until `until`: a row an epoch, with those before that were not told."""
        yield from self.untold(training)
        for row in training.run(self.until):
            self.after(row, training)
            yield row

    def untold(self, training: Training) -> list[Row]:
        """Rows that a crash kept from the record: told from the checkpoint, not trained again."""
        known = self.segment.known if self.segment else 0
        after = [row for row in training.rows if row["epoch"] > known]
        return after or (training.rows[-1:] if training.epoch >= self.until else [])

    def after(self, row: Row, training: Training) -> None:
        """To be called after each epoch, before more is trained.

        A trial goes on without a checkpoint that the storage does not take: what is lost is time,
        if another worker has to go on from an older one. Of anything else it is the result.
        """
        epoch, segment = row["epoch"], self.segment
        try:
            if segment and epoch == training.best_epoch and row[METRIC] >= segment.keep_above:
                card = {"trial": segment.number, "epoch": epoch, METRIC: row[METRIC]}
                with self.place.writing(f"{self.folder}/{BEST}") as folder:
                    save_model(folder, training.measured, card)
            if epoch == self.until or epoch % self.every == 0:
                with self.place.writing(self.folder) as folder:
                    save_checkpoint(folder / CHECKPOINT, training.state_dict())
        except StorageError:
            if segment is None:
                raise


@dataclass(frozen=True)
class Task:
    """A training, and where its checkpoints are."""

    network: dict[str, Any]
    """What `model.build` builds it from."""
    recipe: Recipe
    seed: int
    threads: int
    keeper: Keeper
    whole: bool = False
    """Train on validation too, and have none."""

    def training(self, splits: Splits, device: torch.device | str) -> Training:
        """In one process, where its checkpoint ends."""
        data = Resident.load(splits, device, self.whole)
        training = Training(build(self.network, self.seed), data, self.recipe, self.seed)
        self.keeper.resume(training)
        return training


# `distributed.train_together`, told how many and where: a task and a reference to its data -> rows
Together = Callable[..., Iterator[Row]]  # of a Task and a reference to Splits


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
