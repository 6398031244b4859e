"""A search on a virtual clock: the driver is real, its workers only answer."""

import heapq
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from answering import answer

from vgg_search import session as sessions
from vgg_search.config import Config
from vgg_search.engine import search, silence
from vgg_search.models.files import servable
from vgg_search.provenance import provenance
from vgg_search.records import METRIC
from vgg_search.storage.folder import trial_folder
from vgg_search.study.segment import Segment
from vgg_search.study.study import Study
from vgg_search.tracking.choice import connect
from vgg_search.tracking.outbox import Outbox
from vgg_search.tracking.tracker import Tracker

NAME = "scale"


class Patience(silence.Silence):
    """Nobody is silent for too long by a clock that is not the search's."""

    def too_long(self) -> set[str]:
        return set()


def experiment(folder: Path, trials: int, **fields: Any) -> Config:
    """The default space and scheduler, no budget of time and no champion."""
    given: dict[str, Any] = {"name": NAME, "storage_path": str(folder), "num_trials": trials}
    given |= {"dataset": "sample", "time_budget": None, "champion_epochs": 0, "max_epochs": 9}
    return Config(**given | {"tracking_uri": f"sqlite:///{folder}/mlflow.db"} | fields)


@contextmanager
def opened(config: Config, tracked: bool, sending: bool = True) -> Iterator[sessions.Session]:
    """A session as a search has it, new or resumed; with an outbox, which is sent or only kept."""
    folder = Path(config.storage_path) / NAME
    folder.mkdir(parents=True, exist_ok=True)
    config, splits = sessions.load_data(config)
    sessions.write_config(folder, config)
    study = Study(folder, config)
    tracker = Tracker()
    if tracked:
        kind = partial(connect, servable=servable) if sending else Outbox
        uri = str(config.tracking_uri)
        tracker = kind(folder, tracking_uri=uri, experiment=config.experiment, study=NAME)
    session = sessions.Session(study, splits, tracker, provenance())
    try:
        session.open()
        study.budget.start()
        yield session
    finally:
        tracker.close(0.0)
        study.release()


class VirtualSearch:
    """The driver's calls as Tune makes them, one result a turn of its loop, without Ray.

    `now` is when the driver is free: each call moves it on by the CPU time of this thread (or by
    another `clock`), and each result and each segment by what Ray needs for it. Workers need no CPU
    here: an epoch takes `epoch_seconds`, half as much to half as much again by network, and the
    next begins when the driver has heard of the last.
    """

    def __init__(
        self,
        session: sessions.Session,
        workers: int,
        epoch_seconds: float,
        ray_seconds: tuple[float, float] = (0.0, 0.0),
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.study, self.folder = session.study, session.study.folder
        self.searcher = search.StudySearcher(self.study, lambda: workers)
        self.searcher.silence = Patience()
        self.stopper = search.StudyStopper(self.searcher)
        self.draw, self.clock = session.progress.draw, clock
        self.epoch_seconds, self.ray_seconds = epoch_seconds, ray_seconds
        self.idle = [(0.0, number) for number in range(workers)]  # since when, who
        self.events: list[tuple[float, int, int, str, Segment, int]] = []
        self.now = self.waited = self.trained = self.proposing = self.busy = 0.0
        self.rows = self.segments = 0
        self.begun: set[int] = set()  # workers whose first epoch is over: start-up is not counted
        self.order = count()

    def charged(self, call: Callable[..., Any], *args: Any) -> Any:
        began = self.clock()
        result = call(*args)
        seconds = self.clock() - began
        self.busy += seconds
        self.now += seconds
        return result

    def run(self, done: Callable[[], bool] = lambda: False) -> None:
        """Until then, or until the study has finished."""
        while not done():
            while self.idle and self._start(*self.idle[-1]):
                self.idle.pop()
            if not self.events:
                return
            ready, _, worker, trial_id, segment, epoch = heapq.heappop(self.events)
            self.now = max(self.now, ready) + self.ray_seconds[0]
            self._hear(ready, worker, trial_id, segment, epoch)
            self.charged(self.stopper.stop_all)
            self.charged(self.draw)

    def _start(self, since: float, worker: int) -> bool:
        trial_id, before = f"{next(self.order):x}", self.now
        self.now = max(self.now, since)
        config = self.charged(self.searcher.suggest, trial_id)
        self.proposing += self.now - before
        if self.searcher.fault:
            raise self.searcher.fault
        if not isinstance(config, dict):
            return False
        self.now += self.ray_seconds[1]
        self.segments += 1
        name, segment = f"node:{worker}", config["segment"]
        if name not in self.searcher.workers:
            self.charged(
                self.searcher.on_trial_result, trial_id, {"worker": name, "actor": object()}
            )
        self._train(since, worker, trial_id, segment, segment.known + 1)
        return True

    def _train(
        self, since: float, worker: int, trial_id: str, segment: Segment, epoch: int
    ) -> None:
        seconds = self.epoch_seconds * (0.5 + segment.seed % 1000 / 1000)
        if worker in self.begun:
            self.waited += self.now - since
            self.trained += seconds
        event = (self.now + seconds, next(self.order), worker, trial_id, segment, epoch)
        heapq.heappush(self.events, event)

    def _hear(self, ready: float, worker: int, trial_id: str, segment: Segment, epoch: int) -> None:
        row = answer(segment, epoch, f"node:{worker}", self.epoch_seconds)
        if row[METRIC] >= segment.keep_above:
            (self.folder / trial_folder(segment.number) / "best").mkdir(parents=True, exist_ok=True)
        self.rows += 1
        self.begun.add(worker)
        result = {"worker": row["worker"], "rows": [row], "plan": "nothing"}
        if epoch < segment.until:
            self.charged(self.searcher.on_trial_result, trial_id, result)
            self._train(ready, worker, trial_id, segment, epoch + 1)
            return
        result["end"] = "reached"
        self.charged(self.stopper, trial_id, result)
        self.charged(self.searcher.on_trial_complete, trial_id, result)
        self.idle.append((ready, worker))
