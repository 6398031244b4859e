"""Workers that answer as workers do and train nothing: for the benches of the driver."""

import math
import os
import random
import time
from typing import Any

import ray
from ray import tune

from vgg_search.records import METRIC
from vgg_search.study.segment import Segment

END_SECONDS = 0.05  # as a worker's, until it says again that its segment has ended


def answer(segment: Segment, epoch: int, worker: str, seconds: float = 0.01) -> dict[str, Any]:
    """The row that a worker would report."""
    luck = random.Random(segment.seed * 1000 + epoch).gauss(0, 0.005)
    best = 0.92 - 0.05 * abs(math.log10(segment.candidate.lr) + 1)
    value = min(1.0, max(0.0, best - 0.1 / epoch + luck))
    return {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "train_accuracy": value,
        "val_loss": 1 / epoch,
        METRIC: value,
        "lr": segment.candidate.lr,
        "epoch_seconds": seconds,
        "images_per_second": 10_000.0,
        "peak_memory_mib": 400.0,
        "worker": worker,
        "ended": time.time(),
    }


class AnsweringWorker(tune.Trainable):
    """Says what a worker says, without torch: a process that starts in a second."""

    def setup(self, config: dict[str, Any], **unused: Any) -> None:
        self.worker, self.introduced = f"node:{os.getpid()}", False
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.segment = new_config.get("segment")  # none in an empty run
        self.epoch, self.end = self.segment.known if self.segment else 0, {}
        return True

    def get_auto_filled_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}

    def step(self) -> dict[str, Any]:
        result: dict[str, Any] = {"worker": self.worker}
        if not self.introduced:
            self.introduced = True
            return result | {"actor": ray.get_runtime_context().current_actor}
        if self.end or self.segment is None:
            time.sleep(END_SECONDS if self.end else 0)
            return result | self.end
        self.epoch += 1
        if self.epoch >= self.segment.until:
            self.end = {"end": "reached"}
        return result | {"rows": [answer(self.segment, self.epoch, self.worker)]} | self.end
