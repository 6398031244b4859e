"""A worker: trains segments of trials, one after another, on data that stays where it is.

Glue only: segment -> network -> `train` -> rows. Ray keeps the process (with torch imported, the
data, and the last network) for the next segment. Errors that training would meet again are a
result, not an exception: Ray then retries nothing, and only a dead worker looks like one.
"""

import os
import platform
import time
import traceback
from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray import tune

from vgg_search.config import Config
from vgg_search.data.splits import Splits
from vgg_search.engine.checkpoints import Keeper, Task, Together
from vgg_search.records import METRIC, diverged
from vgg_search.storage.place import Place, StorageError
from vgg_search.study.segment import Segment
from vgg_search.training.device import (
    out_of_memory,
    peak_memory_mib,
    pick_device,
    prepare_process,
)
from vgg_search.training.model import build
from vgg_search.training.recipe import Recipe, recipe_of
from vgg_search.training.train import Resident, Training


class TrialWorker(tune.Trainable):
    """One slot of the search. `setup` gets what `run_search` gives it with the config; `together`
    trains by several processes, where a trial has them."""

    def setup(  # type: ignore[override]
        self,
        config: dict[str, Any],
        splits: Splits,
        experiment: Config,
        place: Place,
        together: Together | None = None,
    ) -> None:
        self.experiment, self.place, self.together = experiment, place, together
        self.device = pick_device()
        self.threads = max(1, int(experiment.cpus_per_trial))
        prepare_process(self.threads)
        if together:
            self.shared = ray.put(splits)
        else:
            self.data = Resident.load(splits, self.device)
        self.worker = f"{platform.node()}:{os.getpid()}"
        self.training: Training | None = None
        self.number = -1  # of the trial that `training` is of
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.segment: Segment = new_config["segment"]
        self.nodes: dict[str, str] = new_config.get("nodes", {})
        self.rows = self._rows(self.segment)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch: {"row", "end", "error", "done"}; `end` says how the segment ended."""
        result: dict[str, Any] = {"number": self.segment.number}
        row: dict[str, Any] | None = None
        try:
            row = next(self.rows)
        except StorageError:  # not the trial's: another worker may reach it
            raise
        except Exception as error:  # the trial's own: it would happen again
            end = "oom" if out_of_memory(error) else "failed"
            text = "".join(traceback.format_exception(error))
        if row is None:  # the error is gone by now, and with it its hold on the network
            self._forget()
            return result | {"end": end, "error": text, "done": True}
        memory = peak_memory_mib(self.device)
        row = row | {"worker": self.worker, "peak_memory_mib": memory, "ended": time.time()}
        result |= {"row": row, METRIC: row[METRIC]}
        if self.training:
            result["plan"] = str(self.training.plan)
        if diverged(row):
            return result | {"end": "diverged", "done": True}
        if row["epoch"] >= self.segment.until:
            return result | {"end": "reached", "done": True}
        return result

    def _rows(self, segment: Segment) -> Iterator[dict[str, Any]]:
        keeper = Keeper.of_trial(self.place, segment, self.experiment.checkpoint_every)
        if self.together:  # this process only listens
            task = Task(*self._asked_for(segment), segment.seed, self.threads, keeper)
            yield from self.together(task, self.shared, selector=self.nodes)
            return
        yield from keeper.rows(self._training(segment, keeper))

    def _asked_for(self, segment: Segment) -> tuple[dict[str, Any], Recipe]:
        """What a segment's network is built from, and its recipe."""
        candidate, experiment = segment.candidate, self.experiment
        recipe = recipe_of(experiment, candidate, experiment.max_epochs)
        return candidate.network(experiment.resolution), recipe

    def _training(self, segment: Segment, keeper: Keeper) -> Training:
        if self.training and (self.number, self.training.epoch) == (segment.number, segment.known):
            return self.training
        self._forget()
        network, recipe = self._asked_for(segment)
        training = Training(build(network, segment.seed), self.data, recipe, segment.seed)
        keeper.resume(training)
        self.training, self.number = training, segment.number
        return training

    def _forget(self) -> None:
        """Free the last network before the next is built, or both are in memory at once."""
        self.training = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)  # what is told is of one trial
