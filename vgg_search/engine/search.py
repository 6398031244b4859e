"""The search on Ray: a study's segments become Ray Tune trials on reused workers.

Ray schedules and moves numbers; it decides nothing. Its searcher interface is how the study hands
out segments and hears of rows, its stopper is how the study ends, and its own table of trials, its
checkpoints and its restore are not used.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from vgg_search.data.splits import Splits
from vgg_search.engine.nodes import Cluster
from vgg_search.engine.silence import Silence
from vgg_search.engine.worker import TrialWorker
from vgg_search.errors import SearchError
from vgg_search.storage.addresses import resume_command
from vgg_search.study.study import FINISHED, Study

START_SECONDS = 20.0  # for the next worker to start, before it is taken for one that never will

log = logging.getLogger("vgg_search")


class _Unsaved:
    """Ray pickles what it is given, for a restore that is never asked for: it gets a stand-in."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()


def _until_fault(method: Callable[..., Any]) -> Callable[..., Any]:
    """The study's first error, as that its disk is full, ends the search; from then on nothing is
    asked of it or told to it."""

    @wraps(method)
    def call(searcher: "StudySearcher", *args: Any, **more: Any) -> Any:
        try:
            if searcher.fault is None:
                return method(searcher, *args, **more)
        except Exception as error:
            searcher.fault, searcher.study.stopping = error, True
        # Of `suggest`, which Tune would ask again for ten minutes where nothing runs
        return Searcher.FINISHED

    return call


class StudySearcher(_Unsaved, Searcher):
    """Lets Ray ask the study for segments, at most `slots()` at a time. A Ray trial is a segment;
    its id is known here only."""

    def __init__(self, study: Study, slots: Callable[[], int], socket: Path | None = None) -> None:
        """`socket` is the raylet's."""
        super().__init__()
        self.study, self.slots, self.socket = study, slots, socket
        self.numbers: dict[str, int] = {}  # trials at work, by Ray's id of their segment
        self.workers: dict[str, Any] = {}  # handles of the processes that have started, by name
        self._worker_of: dict[str, str] = {}  # a worker's name, by Ray's id of its segment
        self.silence = Silence()
        self._plans: set[str] = set()  # how workers train, and why
        self._most = 0  # segments at work at once, so far
        self._given_up = 0  # as many segments have fewer workers, and that will not change
        self._last_change = time.monotonic()  # a worker was asked for, has started, or died
        self.fault: Exception | None = None  # of the study: Tune would make an error of its own

    @_until_fault
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self.numbers) >= max(1, self.slots()):
            return None
        segment = self.study.propose()
        if segment is None:
            if len(self._worker_of) == len(self.numbers):  # else who is idle is not known
                for name in list(self.workers.keys() - set(self._worker_of.values()))[1:]:
                    del self.workers[name]  # of idle workers Tune keeps one and ends the others
            return None
        if segment == FINISHED:
            return Searcher.FINISHED
        self.numbers[trial_id] = segment.number
        self.silence.began(trial_id, self.study.config.search_space.costs(segment.candidate)[1])
        if len(self.numbers) > self._most:
            self._most, self._last_change = len(self.numbers), time.monotonic()
        return {"segment": segment}

    @_until_fault
    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Called with each result but a segment's last."""
        self._hear(trial_id, result)

    def _hear(self, trial_id: str, result: dict[str, Any]) -> None:
        self._worker_of[trial_id] = name = result["worker"]
        if "actor" in result:
            self.workers[name], self._last_change = result["actor"], time.monotonic()
        rows = result.get("rows", [])
        self.silence.heard(trial_id, rows)
        for row in rows:
            self.study.report(self.numbers[trial_id], row)
        plan = result.get("plan")
        if plan and plan not in self._plans:
            self._plans.add(plan)
            log.info("trials train in %s", plan)

    @_until_fault
    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Called with a segment's last result, or with none where its worker is gone."""
        if error or result is None:
            name = self._worker_of.pop(trial_id, None)
            if name is None:  # it had yet to say so: one of those without a segment
                name = next(iter(self.workers.keys() - set(self._worker_of.values())), "")
            self.workers.pop(name, None)
            self._last_change = time.monotonic()
            number = self.numbers.pop(trial_id)
            self.silence.ended(trial_id)
            self.study.segment_ended(number, "died", "the worker or its node died")
            return
        self._hear(trial_id, result)
        self.silence.ended(trial_id)
        del self._worker_of[trial_id]
        for other in self.numbers.keys() - self._worker_of.keys() - {trial_id}:
            self.silence.heard(other, ())  # it may have waited for this worker
        self.study.segment_ended(self.numbers.pop(trial_id), result["end"], result.get("error"))

    def worker_is_starting(self) -> bool:
        """Whether a segment at work waits for a worker of its own.

        Tune would hand it to the next worker that is free, and end the one that starts: where
        trials take less time than the start of a process, one worker would train them all. So no
        segment ends meanwhile, unless no worker has started for START_SECONDS.
        """
        waiting = len(self.numbers) > max(len(self.workers), self._given_up)
        if waiting and time.monotonic() - self._last_change > START_SECONDS:
            self._given_up = len(self.numbers)
            return False
        return waiting

    def end_silent_workers(self) -> None:
        """End workers that have said nothing for too long; others take up what they trained.

        Of a segment that has not said anything yet, it is known only that its worker is one of
        those without another segment: these are ended when all such segments are silent.
        """
        silent = self.silence.too_long()
        names = {self._worker_of[trial_id] for trial_id in silent & self._worker_of.keys()}
        unnamed = self.numbers.keys() - self._worker_of.keys()
        if unnamed and unnamed <= silent:
            names |= self.workers.keys() - set(self._worker_of.values())
        for name in names & self.workers.keys():
            log.warning("worker %s has said nothing for too long: it is ended", name)
            ray.kill(self.workers.pop(name))

    @_until_fault
    def check_ray(self) -> None:
        """Where the raylet's socket is gone no worker can be started, and Ray waits for ever."""
        if self.socket and not self.socket.exists():
            again = resume_command(self.study.folder.name, self.study.config.storage_path)
            raise SearchError(f"{self.socket}, which Ray needs, was removed: go on with {again}")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the state."""


class StudyStopper(_Unsaved, Stopper):
    """Ends a segment that its worker is done with, and the search when the study is told to stop or
    has used up its budget."""

    def __init__(self, searcher: StudySearcher) -> None:
        self.searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return "end" in result and not self.searcher.worker_is_starting()

    def stop_all(self) -> bool:
        study, workers = self.searcher.study, self.searcher.workers
        self.searcher.end_silent_workers()
        self.searcher.check_ray()
        if not (study.stopping or study.budget.used_up):
            return False
        for worker in workers.values():  # Tune would wait 10 s for their epochs to end
            ray.kill(worker)  # checkpoints are whole at any time
        workers.clear()
        return True


class _FifoScheduler(_Unsaved, FIFOScheduler):
    """Tune's own order of trials, the first that was added first. Its own scheduler looks through
    all that there ever were, at each step: with 10,000, a fifth of the driver's time."""

    def __init__(self) -> None:
        super().__init__()
        self._trials: list[Trial] = []

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._trials.append(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        self._trials = [trial for trial in self._trials if not trial.is_finished()]
        return next((t for t in self._trials if t.status == Trial.PENDING), None)


class _EachStep(_Unsaved, tune.Callback):
    """Calls `draw` at each turn of Ray's loop, eight or nine times a second."""

    def __init__(self, draw: Callable[[], None]) -> None:
        self.draw = draw

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.draw()


def run_search(study: Study, splits: Splits, cluster: Cluster, draw: Callable[[], None]) -> None:
    """Train until the study has finished, is told to stop, or is out of budget; `draw` is called
    several times a second."""
    trainable = tune.with_parameters(
        TrialWorker,
        splits=splits,
        experiment=study.config,
        place=cluster.place,
        gpu=cluster.resources["gpu"] > 0,
        distributed=cluster.distributed_training(),
    )
    study.budget.devices = (cluster.resources["gpu"] or 1.0) * study.config.workers_per_trial
    if cluster.packing:
        log.info(cluster.packing)
    searcher = StudySearcher(study, cluster.slots, _raylet_socket())
    group = tune.PlacementGroupFactory([cluster.bundle()], bundle_label_selector=[cluster.selector])
    scratch = tempfile.mkdtemp(prefix="vgg_search-")
    try:
        study.budget.start()
        placed, stopper = tune.with_resources(trainable, group), StudyStopper(searcher)
        run_tune(placed, searcher, stopper, study.folder.name, scratch, draw)
    except Exception:
        if searcher.fault is None:
            raise
    finally:
        study.budget.stop()
        shutil.rmtree(scratch, ignore_errors=True)
    if searcher.fault:
        raise searcher.fault
    if study.finished:
        study.close()


def _raylet_socket() -> Path | None:
    """Of this node, None of a user's Ray on another machine."""
    here = ray.get_runtime_context().get_node_id()
    sockets = {node["NodeID"]: Path(node["RayletSocketName"]) for node in ray.nodes()}
    return sockets[here] if sockets[here].exists() else None


def run_tune(
    trainable: Any,
    searcher: Searcher,
    stopper: Stopper,
    name: str,
    scratch: str,
    draw: Callable[[], None],
) -> None:
    """Run Tune until the searcher has finished, with its own files and words out of the way; `draw`
    is called at each of its steps."""
    tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_FifoScheduler(),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            storage_path=scratch,
            name=name,
            stop=stopper,
            callbacks=[_EachStep(draw)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
            # Its default in a notebook clears the cell, and with it what was said before
            progress_reporter=tune.CLIReporter(),
        ),
    ).fit()
