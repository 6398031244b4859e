"""The search on Ray: a study's segments become Ray Tune trials on reused workers.

Ray schedules and moves numbers; it decides nothing. Its searcher interface is how the study hands
out segments and hears of rows, its stopper is how the study ends, and its own table of trials, its
checkpoints and its restore are not used.
"""

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.tune.execution import tune_controller
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from vgg_search.cluster import LOCAL, Cluster, address_of
from vgg_search.data import Splits
from vgg_search.study import FINISHED, Study
from vgg_search.trial import TrialWorker, forget_workers

log = logging.getLogger("vgg_search")
_CLASSES = tune_controller._ActorClassCache


@contextmanager
def stop_on_signals(study: Study) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM tells the study to stop, a second ends the process at once.

    Yields the signals received. Entered after `ray.init`, which sets handlers of its own.
    """
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        study.stopping = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Unsaved:
    """Ray pickles what it is given, for a restore that is never asked for: it gets a stand-in."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()


class StudySearcher(_Unsaved, Searcher):
    """Lets Ray ask the study, while there are places for more trials. A Ray trial is a segment;
    its id is known here only."""

    def __init__(self, study: Study, places: Callable[[], int]) -> None:
        super().__init__()
        self.study, self.places = study, places
        self.numbers: dict[str, int] = {}
        self.plans: set[str] = set()  # how workers train, and why

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if len(self.numbers) >= max(1, self.places()):
            return None
        segment = self.study.propose()
        if segment is None:
            return None
        if segment == FINISHED:
            return Searcher.FINISHED
        self.numbers[trial_id] = segment.number
        return {"segment": segment}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._report(self.numbers[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self.numbers.pop(trial_id)
        if error or result is None:
            self.study.segment_ended(number, "died", "the worker or its node died")
            return
        self._report(number, result)  # a trial's last result comes here only
        self.study.segment_ended(number, result["end"], result.get("error"))

    def _report(self, number: int, result: dict[str, Any]) -> None:
        # Ray flattens what a worker returns: {"row": {"epoch": 1}} comes as {"row/epoch": 1}.
        row = {key[4:]: value for key, value in result.items() if key.startswith("row/")}
        if row:
            self.study.report(number, row)
        plan = result.get("plan")
        if plan and plan not in self.plans:
            self.plans.add(plan)
            log.info("trials train in %s", plan)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the state."""


class StudyStopper(_Unsaved, Stopper):
    """Ends everything when the study is told to stop or has used up its budget."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.study.stopping or self.study.budget.used_up


class _EachStep(_Unsaved, tune.Callback):
    """Calls `draw` at each turn of Ray's loop, eight or nine times a second."""

    def __init__(self, draw: Callable[[], None]) -> None:
        self.draw = draw

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.draw()


class _PlainActors(_CLASSES):
    """Workers in processes that stand ready.

    Tune asks for an environment with one variable more (PL_DISABLE_FORK), for which Ray starts each
    worker anew while those that have imported everything stand by: 2 to 3 s until the first trial.
    """

    def get(self, trainable_cls: type) -> Any:
        if trainable_cls not in self._cache:
            self._cache[trainable_cls] = ray.remote(trainable_cls)
        return self._cache[trainable_cls]


def run_search(study: Study, splits: Splits, cluster: Cluster, draw: Callable[[], None]) -> None:
    """Train until the study has finished, is told to stop, or is out of budget."""
    scratch = tempfile.mkdtemp(prefix="vgg_search-")
    left = study.config.num_trials - study.trained + len(study.interrupted)
    trainable = tune.with_parameters(
        TrialWorker,
        splits=splits,
        experiment=study.config,
        place=cluster.place,
        together=cluster.together(),
        others=(scratch, min(cluster.places(), left)),
    )
    study.budget.devices = cluster.wanted["gpu"] or 1.0
    if cluster.packing:
        log.info(cluster.packing)
    # Elsewhere than here the variables that Tune passes on may matter
    local = address_of(study.config) == LOCAL
    tune_controller._ActorClassCache = _PlainActors if local else _CLASSES  # type: ignore[misc]
    try:
        study.budget.start()
        tune.Tuner(
            tune.with_resources(trainable, cluster.request()),
            tune_config=tune.TuneConfig(
                search_alg=StudySearcher(study, cluster.places),
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                name=study.folder.name,
                stop=StudyStopper(study),
                callbacks=[_EachStep(draw)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()
    finally:
        study.budget.stop()
        forget_workers(scratch)
        shutil.rmtree(scratch, ignore_errors=True)
    if study.finished:
        study.close()
