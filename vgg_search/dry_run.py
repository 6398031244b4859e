"""What an experiment would do: its networks and its time, before anything is trained or written."""

import os
from typing import Any

import numpy as np
import torch

from vgg_search.config import Config, ConfigError
from vgg_search.data.splits import SAMPLE_IMAGES, SPLIT_IMAGES
from vgg_search.engine.worker import pick_device, recipe_of
from vgg_search.space.arch import depth, describe
from vgg_search.space.search_space import Candidate
from vgg_search.study.rungs import make_scheduler
from vgg_search.study.sampling import random_candidates
from vgg_search.study.standing import Budget
from vgg_search.terminal.progress import duration
from vgg_search.training.device import settle
from vgg_search.training.model import VGG, build
from vgg_search.training.train import Resident, Training

SAMPLES = 10
PROBE_BATCHES = 3


def forecast(config: Config) -> dict[str, Any]:
    """Print the resolved experiment, ten sampled networks, and the time it is likely to take.

    The speed of each network is measured by a few steps on noise.
    """
    print(config.dump())
    candidates = random_candidates(config, SAMPLES)
    if not candidates:
        raise ConfigError("space must have networks within max_params and max_flops, found none")
    images = config.train_images or SPLIT_IMAGES - config.val_images
    if config.dataset == "sample":
        images = min(images, SAMPLE_IMAGES - min(config.val_images, SAMPLE_IMAGES // 6))
    networks = []
    for candidate in candidates:
        params, flops = config.search_space.costs(candidate)
        seconds = images / images_per_second(config, candidate)
        print(f"{describe(candidate.arch)}  depth {depth(candidate.arch)}, lr {candidate.lr:.4g}")
        print(
            f"  {params:,} parameters, {flops / 1e6:.1f} MFLOP an image, {seconds:.1f} s an epoch"
        )
        with torch.device("meta"):
            summary = VGG(**candidate.network(config.resolution)).layer_summary(
                (1, 1, config.resolution, config.resolution)
            )
        for name, shape in summary:
            print(f"    {name:<10} {'x'.join(map(str, shape[1:]))}")
        networks.append(
            {"arch": candidate.arch, "num_params": params, "flops_per_image": flops}
            | {"epoch_seconds": round(seconds, 2)}
        )
    epoch_seconds = float(np.mean([network["epoch_seconds"] for network in networks]))
    slots = config.max_concurrent or slots_here(config)
    epochs = make_scheduler(config).expected_epochs
    budget = Budget(config)
    pace, device_pace = epoch_seconds / slots, epoch_seconds * budget.devices
    found, seconds = budget.outlook(epochs, pace, device_pace)
    trials = max(1, round(found))
    print(
        f"about {trials} trials in {duration(round(seconds))} on {slots} workers of this machine, "
        f"{epochs:.1f} epochs a trial; then the champion"
    )
    return {"networks": networks, "trials": trials, "search_seconds": round(seconds, 1)}


def images_per_second(config: Config, candidate: Candidate) -> float:
    """Training speed of a candidate's network on one worker of this machine."""
    settle(max(1, int(config.cpus_per_trial)))
    count = PROBE_BATCHES * candidate.batch_size
    noise = torch.randint(256, (count, 28, 28), dtype=torch.uint8)
    data = Resident(noise.to(pick_device()), torch.zeros(count, dtype=torch.long).to(pick_device()))
    network = build(candidate.network(config.resolution), config.seed)
    # Two epochs: in the first, libraries choose and compile their kernels.
    rows = list(Training(network, data, recipe_of(config, candidate, 2), config.seed).run(2))
    return float(rows[-1]["images_per_second"])


def slots_here(config: Config) -> int:
    gpus = torch.cuda.device_count()
    per_gpu = 1.0 if config.gpus_per_trial == "auto" else config.gpus_per_trial
    if gpus and per_gpu:
        return max(1, int(gpus / per_gpu))
    return max(1, int((os.cpu_count() or 1) / config.cpus_per_trial))
