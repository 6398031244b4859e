"""The search on Ray: a study's segments become Ray Tune trials on reused workers.

Ray schedules and moves numbers; it decides nothing. Its searcher interface is how the study hands
out segments and hears of rows, its stopper is how the study ends, and its own table of trials, its
checkpoints and its restore are not used.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import ray
from ray import tune
from ray.air.execution import PlacementGroupResourceManager, ResourceRequest
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper
from ray.util.placement_group import PlacementGroup, placement_group

from vgg_search.data.splits import Splits
from vgg_search.engine.nodes import Cluster
from vgg_search.engine.worker import TrialWorker
from vgg_search.records import EpochRow
from vgg_search.study.study import FINISHED, Study

log = logging.getLogger("vgg_search")


class _Unsaved:
    """Ray pickles what it is given, for a restore that is never asked for: it gets a stand-in."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()


class StudySearcher(_Unsaved, Searcher):
    """Lets Ray ask the study, while there are places for more trials. A Ray trial is a segment;
    its id is known here only. `only` selects the nodes for processes that a trial starts."""

    def __init__(
        self,
        study: Study,
        places: Callable[[], int],
        only: Callable[[], dict[str, str]] = dict,
    ) -> None:
        super().__init__()
        self.study, self.places, self.only = study, places, only
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
        return {"segment": segment, "nodes": self.only()}

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
            self.study.report(number, cast(EpochRow, row))
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


class _Request(ResourceRequest):
    """`request` on the nodes that `selector` has; equal to `request`, which Tune knows it by."""

    def __init__(self, request: ResourceRequest, selector: dict[str, str]) -> None:
        super().__init__(request.bundles, request.strategy)
        self.selector = selector

    def to_placement_group(self) -> PlacementGroup:
        return placement_group(self.bundles, self.strategy, bundle_label_selector=[self.selector])


class _Places(PlacementGroupResourceManager):
    """Asks Ray for a place for each new worker, on nodes known as sound by now."""

    selector: dict[str, str]

    def request_resources(self, resource_request: ResourceRequest) -> None:
        super().request_resources(_Request(resource_request, self.selector))

    def choose(self, selector: dict[str, str]) -> None:
        """From now on on the nodes of `selector`, also what was asked for and is not there yet."""
        self.selector = selector
        for request, waiting in list(self._request_to_staged_pgs.items()):
            number = len(waiting)
            for _ in range(number):  # all first: Ray calls off any of them, a new one too
                self.cancel_resource_request(request)
            for _ in range(number):
                self.request_resources(request)


class _PlainActors:
    """Workers in processes that stand ready.

    Tune asks for an environment with one variable more (PL_DISABLE_FORK), for which Ray starts each
    worker anew while those that have imported everything stand by: 2 to 3 s until the first trial.
    """

    def __init__(self) -> None:
        self.known: dict[type, Any] = {}

    def get(self, trainable: type) -> Any:
        if trainable not in self.known:
            self.known[trainable] = ray.remote(trainable)
        return self.known[trainable]


class _Controller(TuneController):
    """Lets a worker that is starting start, and one go whose node is being drained.

    Tune hands a trial whose worker is starting to the first worker that is free and ends the other:
    where trials take less time than the start of a process, one worker would train them all.
    """

    def __init__(self, cluster: Cluster, **kwargs: Any) -> None:
        self.cluster, self.places = cluster, _Places()
        self.places.choose(cluster.only())
        super().__init__(**kwargs, resource_manager_factory=lambda: self.places)
        self._actor_force_cleanup_timeout = 1  # seconds; checkpoints are whole at any time
        self._class_cache = _PlainActors()  # type: ignore[assignment]

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {name: state[name] for name in state.keys() - {"cluster", "places"}}

    def _maybe_reuse_cached_actor(self, trial: Trial) -> bool:
        own = self._trial_to_actor.get(trial)
        starting = own is not None and self._actor_manager.is_actor_started(own)
        if starting and trial not in self._resetting_trials:
            return False
        return super()._maybe_reuse_cached_actor(trial)

    def _maybe_cache_trial_actor(self, trial: Trial) -> bool:
        leaves = trial.last_result.get("node_ip") in self.cluster.leaving()
        return not leaves and super()._maybe_cache_trial_actor(trial)

    def _maybe_add_actors(self) -> None:
        if self.places.selector != (selector := self.cluster.only()):
            self.places.choose(selector)
            if self.cluster.leaving():  # a worker there may be one of those that stand ready
                self._cleanup_cached_actors(force_all=True)
        super()._maybe_add_actors()  # tries one of those that wait for a place, maybe a wrong one
        for trial in self._staged_trials & self._pending_trials:
            self._maybe_reuse_cached_actor(trial)


def run_search(study: Study, splits: Splits, cluster: Cluster, draw: Callable[[], None]) -> None:
    """Train until the study has finished, is told to stop, or is out of budget."""
    scratch = tempfile.mkdtemp(prefix="vgg_search-")
    trainable = tune.with_parameters(
        TrialWorker,
        splits=splits,
        experiment=study.config,
        place=cluster.place,
        together=cluster.together(),
    )
    study.budget.devices = (cluster.wanted["gpu"] or 1.0) * study.config.workers_per_trial
    if cluster.packing:
        log.info(cluster.packing)
    # What fit() makes
    tune.tune.TuneController = partial(_Controller, cluster)  # type: ignore[misc, assignment]
    try:
        study.budget.start()
        tune.Tuner(
            tune.with_resources(trainable, tune.PlacementGroupFactory([cluster.bundle()])),
            tune_config=tune.TuneConfig(
                search_alg=StudySearcher(study, cluster.places, cluster.only),
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
        shutil.rmtree(scratch, ignore_errors=True)
    if study.finished:
        study.close()
