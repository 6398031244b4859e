"""The champion: the best trial's network, trained on all training data, tested once.

Its number of epochs is fixed before it starts, and its seeds are fresh: the search's score of the
winner is a maximum over noise, so the champion is not judged by it. The test split is read here
(and by `evaluate`), once, after every seed has been trained.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import torch
from optuna.trial import FrozenTrial
from ray.exceptions import RayError

from vgg_search.config import Config
from vgg_search.data import CLASSES, MEAN, STD, Splits, load_test
from vgg_search.device import settle
from vgg_search.images import contact_sheet
from vgg_search.journal import METRIC, candidate_of, rows_of, trial_seed
from vgg_search.model import VGG, build
from vgg_search.reuse import Servable, evaluate, load, save_model
from vgg_search.search_space import Candidate
from vgg_search.study import Study
from vgg_search.train import Resident, Training
from vgg_search.trial import RECIPE_FIELDS, pick_device, recipe_of

__all__ = ["RayError", "crown", "load"]

FRESH = 1_000_000  # numbers of the champion's seeds start here, beyond any trial's
TIME_SHARE = 0.6  # of the search's time budget, at most, goes to the champion
Row = dict[str, Any]


def crown(
    study: Study,
    best: FrozenTrial,
    splits: Splits,
    wanted: dict[str, float],
    facts: dict[str, Any],
    listen: Callable[[int, int, Row], None],
) -> dict[str, Any] | None:
    """Train `best`'s network on train + validation with `champion_seeds` fresh seeds, test it, and
    save the first seed's in the study's `champion` folder.

    Its worst images go to `worst.png`. Returns its card, as in model.json, or None if the study
    was told to stop. Seeds run side by side where the cluster has room; `listen(index of the seed,
    epochs, row)` hears of each epoch.
    """
    config, candidate = study.config, candidate_of(best.user_attrs)
    epochs, number = planned_epochs(best, config, splits), config.champion_seeds
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    cores = max(1, int(min(max(nodes), sum(nodes) // number)))  # a task has its place on one node
    cpus = config.cpus_per_trial if wanted["gpu"] else max(config.cpus_per_trial, cores)
    train = ray.remote(num_cpus=cpus, num_gpus=wanted["gpu"], max_retries=2)(_train)
    data = ray.put(splits)
    seeds = [trial_seed(config.seed, FRESH + i) for i in range(number)]
    streams: dict[Any, int] = {  # generators of references to rows -> index of the seed
        train.remote(config, candidate, data, epochs, seed, int(cpus)): i
        for i, seed in enumerate(seeds)
    }
    networks: dict[int, VGG] = {}
    while streams:
        ready: list[Any] = ray.wait(list(streams), timeout=0.2, fetch_local=False)[0]
        if study.stopping:
            for stream in streams:
                ray.cancel(stream, force=True)
            return None
        for stream in ready:
            item: Row = ray.get(next(stream))
            if "weights" not in item:
                listen(streams[stream], epochs, item)
                continue
            network = networks[streams.pop(stream)] = build(candidate.network(config.resolution), 0)
            network.load_state_dict({k: torch.tensor(v) for k, v in item["weights"].items()})
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
    reading = {"classes": CLASSES, "normalisation": {"mean": MEAN, "std": STD}}
    scores = [
        evaluate(Servable(networks[i], reading).eval(), images, labels) for i in range(number)
    ]
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
    save_model(study.folder / "champion", networks[0], card)
    return card


def planned_epochs(best: FrozenTrial, config: Config, splits: Splits) -> int:
    """Epochs of the champion: what is asked for, or what its share of the time budget bears,
    judged by what the trial's epochs took."""
    if config.time_budget is None:
        return config.champion_epochs
    more = 1 + len(splits.val_images) / len(splits.train_images)
    seconds = more * float(np.mean([row["epoch_seconds"] for row in rows_of(best)]))
    return max(1, min(config.champion_epochs, int(TIME_SHARE * config.time_budget / seconds)))


def _train(
    config: Config,
    candidate: Candidate,
    splits: Splits,
    epochs: int,
    seed: int,
    threads: int,
) -> Iterator[Row]:
    """Rows of one champion, then {"weights": ...}."""
    settle(threads)
    network = build(candidate.network(config.resolution), seed)
    recipe = recipe_of(config, candidate, epochs)
    training = Training(network, Resident.load(splits, pick_device(), whole=True), recipe, seed)
    yield from training.run(epochs)
    yield {"weights": {name: t.cpu().numpy() for name, t in training.measured.state_dict().items()}}
