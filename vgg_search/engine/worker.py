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
from ray import tune
from ray.actor import ActorHandle

from vgg_search.config import Config
from vgg_search.data.splits import Splits
from vgg_search.engine.checkpoints import (
    ATTEMPTS,
    DistributedTraining,
    TrainingCheckpoints,
    TrainingTask,
)
from vgg_search.records import diverged
from vgg_search.storage.place import Place, StorageError
from vgg_search.study.segment import Segment
from vgg_search.training.device import (
    context_lost,
    free_memory,
    out_of_memory,
    peak_memory_mib,
    pick_device,
    prepare_process,
)
from vgg_search.training.graphs import Graphs
from vgg_search.training.recipe import recipe_of
from vgg_search.training.train import Resident, Training

END_SECONDS = 0.05  # until a worker says again that its segment has ended


class SpoiledProcessError(RuntimeError):
    """What ended an earlier trial spoils others in this process; one in its place does not."""


class TrialWorker(tune.Trainable):
    """One slot of the search. `setup` gets what `run_search` gives it with the config: whether
    trials train on a GPU; where a trial has several processes, `distributed` trains by them."""

    def setup(  # type: ignore[override]
        self,
        config: dict[str, Any],
        splits: Splits,
        experiment: Config,
        place: Place,
        gpu: bool = False,
        distributed: DistributedTraining | None = None,
    ) -> None:
        self.experiment, self.place, self.distributed = experiment, place, distributed
        self.device = pick_device(gpu and not distributed)
        self.threads = max(1, int(experiment.cpus_per_trial))
        prepare_process(self.threads)
        if distributed:
            self.splits_ref = ray.put(splits)
        else:
            self.data = Resident.load(splits, self.device)
        self.worker = f"{platform.node()}:{os.getpid()}"
        self.introduced = False  # to the driver
        self.training: Training | None = None
        self.number = -1  # of the trial that `training` is of
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.segment: Segment = new_config["segment"]
        self.rows = self._train_rows(self.segment)
        self.end: dict[str, Any] | None = None
        return True

    def step(self) -> dict[str, Any]:
        """A result for the driver, {"worker": name} and

        - once in a process {"actor": its handle}
        - for each epoch {"rows": [row], "plan"}; in a list, for Ray flattens dictionaries
        - with or after the last one {"end": "reached", "diverged", "failed" or "oom"}, and "error"
          with the latter two. Called again, it says its end again: the driver ends the segment.
        """
        result: dict[str, Any] = {"worker": self.worker}
        if not self.introduced:
            self.introduced = True
            return result | {"actor": own_handle()}
        if self.end:
            time.sleep(END_SECONDS)
            return result | self.end
        row = self._next_row()
        if not row:
            return result | (self.end or {})
        if self.training:
            result["plan"] = str(self.training.plan)
        if diverged(row):
            self.end = {"end": "diverged"}
        elif row["epoch"] >= self.segment.until:
            self.end = {"end": "reached"}
        return result | {"rows": [row]} | (self.end or {})

    def get_auto_filled_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Nothing: of each number that Ray adds to a result, the driver would keep extremes and
        averages until the search ends, and each result would bring its config back."""
        return {}

    def _next_row(self) -> dict[str, Any] | None:
        """The next epoch's, empty while the storage is away; None after an error of the trial's
        own, which is then in `end`. Raises what another worker may not meet: StorageError,
        SpoiledProcessError, the loss of the GPU."""
        try:
            row = next(self.rows)
        except (StorageError, SpoiledProcessError):
            raise
        except Exception as error:  # it would happen again
            if context_lost(error):
                raise
            end = "oom" if out_of_memory(error) else "failed"
            self.end = {"end": end, "error": "".join(traceback.format_exception(error))}
        if self.end:  # the error is gone by now, and with it its hold on the network
            self._free_training()
            return None
        if not row:
            return row
        memory = {"peak_memory_mib": peak_memory_mib(self.device)}  # a rank's row has its own
        return memory | row | {"worker": self.worker, "ended": time.time()}

    def _train_rows(self, segment: Segment) -> Iterator[dict[str, Any]]:
        task = self._task(segment)
        if self.distributed:  # this process only listens
            yield from self.distributed(task, self.splits_ref)
            return
        for attempt in range(1, ATTEMPTS + 1):
            try:
                training = self._resume(segment, task)
                break
            except StorageError:
                if attempt == ATTEMPTS:
                    raise
            yield {}  # a worker that says nothing for a minute is taken for a stopped one
        yield from task.checkpoints.train(training)

    def _task(self, segment: Segment) -> TrainingTask:
        candidate, experiment = segment.candidate, self.experiment
        return TrainingTask(
            experiment.search_space.network(candidate),
            recipe_of(experiment, candidate, experiment.max_epochs),
            segment.seed,
            self.threads,
            TrainingCheckpoints.of_trial(self.place, segment, experiment.checkpoint_every),
        )

    def _resume(self, segment: Segment, task: TrainingTask) -> Training:
        """The training as this process has it, else from its last checkpoint, else new."""
        if self.training and (self.number, self.training.epoch) == (segment.number, segment.known):
            return self.training
        if Graphs.spoiled:
            raise SpoiledProcessError("a capture of a CUDA graph broke off in this process")
        self._free_training()
        self.training, self.number = task.training(self.data, ATTEMPTS), segment.number
        return self.training

    def _free_training(self) -> None:
        """Free the last network before the next is built, or both are in memory at once."""
        self.training = None
        free_memory(self.device)  # the peak that is reported is of one trial


def own_handle() -> ActorHandle | None:
    """Of the actor that this process is; None where it is none."""
    if not ray.is_initialized():  # to ask for its context would start a cluster
        return None
    context = ray.get_runtime_context()
    return context.current_actor if context.get_actor_id() else None
