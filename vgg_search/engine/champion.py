"""The champion: the best trial's network, trained on all training data, tested once.

Its number of epochs is fixed before it starts, and its seeds are fresh: the search's score of the
winner is a maximum over noise, so the champion is not judged by it. The test split is read here
(and by `evaluate`), once, after every seed has been trained.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import torch
from optuna.trial import FrozenTrial

from vgg_search.config import Config
from vgg_search.data.splits import Splits, load_test
from vgg_search.engine.checkpoints import Keeper, Task, Together
from vgg_search.engine.nodes import Cluster, NodeError
from vgg_search.models.evaluation import evaluate
from vgg_search.models.files import Classifier, save_model
from vgg_search.models.images import contact_sheet
from vgg_search.records import METRIC
from vgg_search.storage.folder import TRIALS
from vgg_search.storage.place import StorageError
from vgg_search.study.record import candidate_of, rows_of
from vgg_search.study.sampling import trial_seed
from vgg_search.study.study import Study
from vgg_search.training.device import pick_device, prepare_process
from vgg_search.training.model import VGG, build
from vgg_search.training.recipe import RECIPE_FIELDS, recipe_of

FRESH = 1_000_000  # numbers of the champion's seeds start here, beyond any trial's
TIME_SHARE = 0.6  # of the search's time budget, at most, goes to the champion
Row = Any


def crown(
    study: Study,
    best: FrozenTrial,
    splits: Splits,
    cluster: Cluster,
    facts: dict[str, Any],
    listen: Callable[[int, int, Row], None],
) -> dict[str, Any] | None:
    """Train `best`'s network on train + validation with `champion_seeds` fresh seeds, test it, and
    save the first seed's in the study's `champion` folder.

    Its worst images go to `worst.png`. Returns its card, as in model.json, or None if the study
    was told to stop. Seeds run side by side where the cluster has room; `listen(index of the seed,
    epochs, row)` hears of each epoch. Raises RayError if a seed's training fails, the others too
    then ending: a mean over those that went well would flatter. Raises NodeError where no node is
    there to train on, DataError if the test split cannot be read.
    """
    config, candidate = study.config, candidate_of(best.user_attrs)
    epochs, number = planned_epochs(best, config, splits), config.champion_seeds
    wanted, nodes = cluster.wanted, [node.get("CPU", 0.0) for node in cluster.nodes()]
    if not nodes:
        raise NodeError("no node is there to train it")
    cores = max(1, int(min(max(nodes), sum(nodes) // number)))  # a task has its place on one node
    cpus = config.cpus_per_trial if wanted["gpu"] else max(config.cpus_per_trial, cores)
    asked: dict[str, Any] = {"num_cpus": cpus, "num_gpus": wanted["gpu"], "max_retries": 2}
    together = cluster.together()
    if together:  # Ray Train asks for what its workers need
        cpus, asked = config.cpus_per_trial, {"num_cpus": 0}
    train = ray.remote(**asked, label_selector=cluster.selector)(_train)
    network, recipe = candidate.network(config.resolution), recipe_of(config, candidate, epochs)
    seeds = [trial_seed(config.seed, FRESH + i) for i in range(number)]
    folders = [f"{TRIALS}/champion-{best.number}-{epochs}-{i}" for i in range(number)]
    data, streams = ray.put(splits), {}  # generators of references to rows -> index of the seed
    for i, (seed, folder) in enumerate(zip(seeds, folders, strict=True)):
        keeper = Keeper(cluster.place, folder, epochs)
        task = Task(network, recipe, seed, max(1, int(cpus)), keeper, whole=True)
        streams[train.remote(task, [data], together)] = i
    networks: dict[int, VGG] = {}
    try:
        while streams:
            ready: list[Any] = ray.wait(list(streams), timeout=0.2, fetch_local=False)[0]
            if study.stopping:
                return None
            for stream in ready:
                item: Row = ray.get(next(stream))
                if "weights" not in item:
                    listen(streams[stream], epochs, item)
                    continue
                trained = networks[streams.pop(stream)] = build(network, 0)
                trained.load_state_dict({k: torch.tensor(v) for k, v in item["weights"].items()})
    finally:
        for stream in streams:
            ray.cancel(stream, force=True)
    card = facts | {
        "dataset": splits.name,
        "digest": splits.digest,
        "study": study.folder.name,
        "trial": best.number,
        "seed": seeds[0],
        "epochs": epochs,
        "num_params": networks[0].num_params,
        "params": asdict(candidate),
        "recipe": {name: getattr(config, name) for name in RECIPE_FIELDS},
    }
    images, labels = load_test(splits.name, config.data_dir)
    scores = [evaluate(Classifier(networks[i], splits.info), images, labels) for i in range(number)]
    accuracies = [score["test_accuracy"] for score in scores]
    card["metrics"] = scores[0] | {
        METRIC: best.value,
        "test_accuracies": accuracies,
        "test_accuracy_mean": float(np.mean(accuracies)),
        # Of the seeds, which are a sample; one has no spread.
        "test_accuracy_std": float(np.std(accuracies, ddof=1)) if number > 1 else None,
    }
    worst = contact_sheet(images[[row["image"] for row in scores[0]["worst"]]])
    worst.save(study.folder / "worst.png")
    save_model(study.folder / "champion", networks[0], splits.info, card)
    with suppress(StorageError):  # what is left there costs room and nothing else
        for folder in folders:
            cluster.place.remove(folder)
    return card


def planned_epochs(best: FrozenTrial, config: Config, splits: Splits) -> int:
    """Epochs of the champion: what is asked for, or what its share of the time budget bears,
    judged by what the trial's epochs took."""
    if config.time_budget is None:
        return config.champion_epochs
    more = 1 + len(splits.val_images) / len(splits.train_images)
    seconds = more * float(np.mean([row["epoch_seconds"] for row in rows_of(best)]))
    return max(1, min(config.champion_epochs, int(TIME_SHARE * config.time_budget / seconds)))


def _train(task: Task, data: list[Any], together: Together | None) -> Iterator[Row]:
    """Rows of one champion, then {"weights": ...}. All of them again if it was begun before.

    Raises RuntimeError unless it was trained to its last epoch, with a finite loss.
    """
    yield from together(task, data[0]) if together else _train_alone(task, ray.get(data[0]))
    training = task.training(ray.get(data[0]), "cpu")
    if training.diverged or training.epoch < task.keeper.until:
        what = "the loss is not finite any more" if training.diverged else "it ended"
        raise RuntimeError(f"{what} after epoch {training.epoch} of {task.keeper.until}")
    yield {"weights": {name: t.numpy() for name, t in training.weights().items()}}


def _train_alone(task: Task, splits: Splits) -> Iterator[Row]:
    prepare_process(task.threads)
    yield from task.keeper.rows(task.training(splits, pick_device()))
