"""The champion: the best trial's network, trained on all training data, tested once.

Its number of epochs is fixed before it starts, and its seeds are fresh: the search's score of the
winner is a maximum over noise, so the champion is not judged by it. The test split is read here
(and by `evaluate`), once, after every seed has been trained.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import ray
import torch
from optuna.trial import FrozenTrial
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group

from vgg_search.config import Config
from vgg_search.data.source import DatasetInfo
from vgg_search.data.splits import Splits, load_test
from vgg_search.engine.checkpoints import DistributedTraining, TrainingCheckpoints, TrainingTask
from vgg_search.engine.nodes import Cluster, NodeError
from vgg_search.models.evaluation import evaluate
from vgg_search.models.files import Classifier, save_model
from vgg_search.models.images import contact_sheet
from vgg_search.records import METRIC
from vgg_search.storage.folder import TRIALS, WORST_IMAGES, champion_folder
from vgg_search.storage.place import StorageError
from vgg_search.study.record import candidate_of, rows_of, value_of
from vgg_search.study.sampling import trial_seed
from vgg_search.study.study import Study
from vgg_search.training.device import out_of_memory, pick_device, prepare_process
from vgg_search.training.model import VGG, build
from vgg_search.training.recipe import RECIPE_FIELDS, recipe_of

FRESH = 1_000_000  # numbers of the champion's seeds start here, beyond any trial's
ROOM_SECONDS = 10.0  # for cores that the search's workers had to be free
TIME_SHARE = 0.6  # of the search's time budget, at most, goes to the champion
Row = Any
Listener = Callable[[int, int, Row], None]  # index of the seed, epochs, row

log = logging.getLogger("vgg_search")


def train_champion(
    study: Study,
    best: FrozenTrial,
    splits: Splits,
    cluster: Cluster,
    facts: dict[str, Any],
    listen: Listener,
    epochs: int,
    place: int = 1,
) -> dict[str, Any] | None:
    """Train `best`'s network on train + validation with `champion_seeds` fresh seeds, test it, and
    save the first seed's in the study's folder of the champion in that place.

    Returns its card, as in model.json, or None if the study was told to stop. `listen(index of the
    seed, epochs, row)` hears of each epoch. Raises RayError if a seed's training fails, NodeError
    where no node is there to train on, DataError if the test split cannot be read.
    """
    tasks = _tasks(best, study.config, cluster, epochs)
    networks = _trained(study, tasks, splits, cluster, listen)
    scores = networks and _scores(networks, study, splits, cluster, tasks[0].threads, place)
    if not networks or not scores:
        return None
    card = facts | {
        "dataset": splits.name,
        "digest": splits.digest,
        "study": study.folder.name,
        "trial": best.number,
        "seed": tasks[0].seed,
        "epochs": epochs,
        "num_params": networks[0].num_params,
        "params": candidate_of(best.user_attrs).to_dict(),
        "recipe": {name: getattr(tasks[0].recipe, name) for name in RECIPE_FIELDS},
    }
    card |= {"place": place} if place > 1 else {}
    card["metrics"] = scores | {METRIC: value_of(best)}
    save_model(champion_folder(study.folder, place), networks[0], splits.info, card)
    with suppress(StorageError):  # what is left there costs room and nothing else
        for task in tasks:
            cluster.place.remove(task.checkpoints.folder)
    return card


def _trained(
    study: Study, tasks: list[TrainingTask], splits: Splits, cluster: Cluster, listen: Listener
) -> list[VGG] | None:
    """What `_train_seeds` returns; after a lack of memory on a shared GPU it goes on, each seed
    alone on one."""
    gpus = _gpus_of_a_seed(cluster, study.config)
    try:
        return _train_seeds(study, tasks, splits, cluster, gpus, listen)
    except RayError as error:
        if not 0 < gpus < 1 or not out_of_memory(getattr(error, "cause", None) or error):
            raise
    log.warning("the champion lacked memory on a shared GPU: it goes on, alone on one")
    return _train_seeds(study, tasks, splits, cluster, 1.0, listen)


def _gpus_of_a_seed(cluster: Cluster, config: Config) -> float:
    """A GPU for each seed where there are enough, for Ray fills one before it takes the next; else
    a trial's share."""
    there = sum(node.get("GPU", 0.0) for node in cluster.nodes())
    share = cluster.resources["gpu"]
    return 1.0 if 0 < share < 1 and there >= config.champion_seeds else share


def _tasks(best: FrozenTrial, config: Config, cluster: Cluster, epochs: int) -> list[TrainingTask]:
    """A training a seed. Raises NodeError where no node is there."""
    candidate, number = candidate_of(best.user_attrs), config.champion_seeds
    cores = [node.get("CPU", 0.0) for node in cluster.nodes()]
    if not cores:
        raise NodeError("no node is there to train it")
    threads = config.cpus_per_trial
    if not cluster.resources["gpu"] and config.workers_per_trial == 1:
        # Side by side where there is room, each on one node
        wide = int(min(max(cores), sum(cores) // number))
        threads = wide if wide > threads and _has_room(wide, cluster.selector) else threads
    network = config.search_space.network(candidate)
    recipe = recipe_of(config, candidate, epochs)
    tasks = []
    for i in range(number):
        checkpoints = TrainingCheckpoints(
            cluster.place, f"{TRIALS}/champion-{best.number}-{epochs}-{i}", epochs
        )
        seed = trial_seed(config.seed, FRESH + i)
        tasks.append(
            TrainingTask(network, recipe, seed, max(1, int(threads)), checkpoints, whole=True)
        )
    return tasks


def _has_room(cpus: int, selector: dict[str, str]) -> bool:
    """Whether a node has so many cores free: others may hold some of them for good."""
    group = placement_group([{"CPU": cpus}], bundle_label_selector=[selector] if selector else None)
    try:
        return bool(group.wait(ROOM_SECONDS))
    finally:
        remove_placement_group(group)


def _train_seeds(
    study: Study,
    tasks: list[TrainingTask],
    splits: Splits,
    cluster: Cluster,
    gpus: float,
    listen: Listener,
) -> list[VGG] | None:
    """The trained networks, in the order of `tasks`; None if the study was told to stop.

    Seeds run side by side where the cluster has room. Raises RayError if one fails, the others too
    then ending: a mean over those that went well would flatter.
    """
    distributed = cluster.distributed_training()
    options: dict[str, Any] = {"num_cpus": 0}  # Ray Train asks for what its workers need
    if not distributed:
        cpus = max(study.config.cpus_per_trial, tasks[0].threads)
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 2}
    train = ray.remote(**options, label_selector=cluster.selector)(_train)
    data = ray.put(splits)
    # Generators of references to rows -> index of the task
    streams = {train.remote(task, [data], gpus > 0, distributed): i for i, task in enumerate(tasks)}
    networks: dict[int, VGG] = {}
    try:
        while streams:
            ready: list[Any] = ray.wait(list(streams), timeout=0.2, fetch_local=False)[0]
            if study.stopping:
                return None
            for stream in ready:
                item: Row = ray.get(next(stream))
                if "weights" not in item:
                    listen(streams[stream], tasks[0].checkpoints.until, item)
                    continue
                i = streams.pop(stream)
                networks[i] = _network(tasks[i], item["weights"])
    finally:
        for stream in streams:
            ray.cancel(stream, force=True)
    return [networks[i] for i in range(len(tasks))]


def _network(task: TrainingTask, weights: dict[str, np.ndarray]) -> VGG:
    network = build(task.network, 0)
    network.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    return network


def _scores(
    networks: list[VGG], study: Study, splits: Splits, cluster: Cluster, threads: int, place: int
) -> dict[str, Any] | None:
    """Test scores of the first network, and the accuracies of all; None if the study was told to
    stop. The worst images of the first champion's are drawn to the study's folder. Raises DataError
    if the test split cannot be read."""
    images, labels = load_test(
        splits.name, study.config.data_dir, splits.info.reading, splits.digest
    )
    # Where they were trained, and not here: it takes minutes at 224 px, in which Ctrl-C is heard
    gpus = cluster.resources["gpu"]
    options: dict[str, Any] = {"num_cpus": threads, "num_gpus": gpus}
    task = ray.remote(**options, label_selector=cluster.selector)(_test)
    answer = task.remote(networks, splits.info, images, labels, gpus > 0, threads)
    while not ray.wait([answer], timeout=0.2)[0]:
        if study.stopping:
            ray.cancel(answer, force=True)
            return None
    scores = ray.get(answer)
    if place == 1:
        worst = contact_sheet(images[[row["image"] for row in scores[0]["worst"]]])
        worst.save(study.folder / WORST_IMAGES)
    accuracies = [score["test_accuracy"] for score in scores]
    spread = float(np.std(accuracies, ddof=1)) if len(scores) > 1 else None  # of a sample
    return scores[0] | {
        "test_accuracies": accuracies,
        "test_accuracy_mean": float(np.mean(accuracies)),
        "test_accuracy_std": spread,
    }


def _test(
    networks: list[VGG],
    info: DatasetInfo,
    images: np.ndarray,
    labels: np.ndarray,
    gpu: bool,
    threads: int,
) -> list[dict[str, Any]]:
    prepare_process(threads)
    device = pick_device(gpu)
    return [evaluate(Classifier(network, info).to(device), images, labels) for network in networks]


def planned_epochs(best: FrozenTrial, config: Config, splits: Splits, slots: int) -> int:
    """Epochs of a champion: what is asked for, or what its share of the time budget has room
    for, judged by what the trial's epochs took; of several, each has an equal share, and so has
    each round of its seeds, of which `slots` are trained at a time."""
    if config.time_budget is None:
        return config.champion_epochs
    more = 1 + len(splits.val_images) / len(splits.train_images)
    seconds = more * float(np.mean([row["epoch_seconds"] for row in rows_of(best)]))
    rounds = math.ceil(config.champion_seeds / max(1, slots))
    share = TIME_SHARE * config.time_budget / (config.champions * rounds)
    return max(1, min(config.champion_epochs, int(share / seconds)))


def _train(
    task: TrainingTask, data: list[Any], gpu: bool, distributed: DistributedTraining | None
) -> Iterator[Row]:
    """Rows of one champion, then {"weights": name -> array}. All of them again if it was begun
    before. `data` holds a reference to Splits.

    Raises RuntimeError unless it was trained to its last epoch, with a finite loss.
    """
    splits = ray.get(data[0])
    yield from distributed(task, data[0]) if distributed else _train_alone(task, splits, gpu)
    training = task.training(task.data(splits, "cpu"))
    if training.diverged or training.epoch < task.checkpoints.until:
        what = "the loss is not finite any more" if training.diverged else "it ended"
        raise RuntimeError(f"{what} after epoch {training.epoch} of {task.checkpoints.until}")
    yield {"weights": {name: tensor.numpy() for name, tensor in training.weights().items()}}


def _train_alone(task: TrainingTask, splits: Splits, gpu: bool) -> Iterator[Row]:
    prepare_process(task.threads)
    yield from task.checkpoints.train(task.training(task.data(splits, pick_device(gpu))))
