"""The budget of a search: what limits it, and what it has used up."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from vgg_search.config import Config
from vgg_search.records import EpochRow


@dataclass
class Budget:
    """What a search has used up, over all its sessions."""

    config: Config
    worker_seconds: float = 0.0  # of training and validation
    epochs: int = 0
    # What a trial occupies: a share of a GPU or several; on a CPU, a place for each process
    devices: float = field(init=False)
    _before: float = 0.0  # seconds of the sessions before this one
    _started: float | None = None

    def __post_init__(self) -> None:
        gpus = self.config.gpus_per_trial
        share = 1.0 if gpus == "auto" or not gpus else gpus
        self.devices = share * self.config.workers_per_trial

    def restore(self, rows: Iterable[EpochRow]) -> None:
        """Count the epochs of an earlier session."""
        for row in rows:
            self.spend(row["epoch_seconds"])
            self._before = max(self._before, row["time"])

    @property
    def device_seconds(self) -> float:
        return self.worker_seconds * self.devices

    def spend(self, seconds: float) -> None:
        """Count an epoch that took so long."""
        self.worker_seconds += seconds
        self.epochs += 1

    def start(self) -> None:
        """The search's time runs from here; after a resume it goes on where the record ends."""
        self._started = time.monotonic()

    def stop(self) -> None:
        """The search is over: what the champion takes is not search time."""
        self._before, self._started = self.clock, None

    @property
    def clock(self) -> float:
        """Seconds of search so far."""
        return self._before + (0.0 if self._started is None else time.monotonic() - self._started)

    @property
    def used_up(self) -> bool:
        seconds, hours = self.config.time_budget, self.config.gpu_hours
        return (seconds is not None and self.clock >= seconds) or (
            hours is not None and self.device_seconds >= 3600 * hours
        )

    def outlook(
        self,
        epochs_a_trial: float,
        pace: float,
        device_pace: float,
        resting: int = 0,
        under_way: int = 0,
    ) -> tuple[float, float]:
        """(trials in all, seconds still to go) when the first of the budgets is used up.

        `pace` and `device_pace`: seconds of search and of a device that an epoch takes. `resting`
        trials train no more; those that do have `under_way` epochs.
        """
        seconds, hours = self.config.time_budget, self.config.gpu_hours
        left = [epochs_a_trial * (self.config.num_trials - resting) - under_way]
        if seconds is not None:
            left.append((seconds - self.clock) / pace)
        if hours is not None:
            left.append((3600 * hours - self.device_seconds) / device_pace)
        epochs = max(0.0, min(left))
        return resting + (under_way + epochs) / epochs_a_trial, epochs * pace
