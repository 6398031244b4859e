"""What an experiment would do: its networks and its time, before anything is trained or written."""

from statistics import fmean
from typing import Any

import torch

from vgg_search.config import Config, ConfigError
from vgg_search.data.source import unknown
from vgg_search.data.splits import load
from vgg_search.engine.packing import measure, share
from vgg_search.engine.room import at_a_time, packed
from vgg_search.machine import cores
from vgg_search.space.arch import depth, describe
from vgg_search.space.candidate import Candidate
from vgg_search.study.budget import Budget
from vgg_search.study.sampling import DRAWS, random_candidates
from vgg_search.study.schedulers import make_scheduler
from vgg_search.terminal.formats import duration
from vgg_search.training.device import cuda_trouble, free_memory, pick_device, prepare_process
from vgg_search.training.model import VGG, build
from vgg_search.training.recipe import recipe_of
from vgg_search.training.train import Resident, Training

SAMPLES = 10
PROBE_BATCHES = 3


def forecast(config: Config) -> dict[str, Any]:
    """Print the resolved experiment, ten sampled networks, and the time it is likely to take.

    Raises DataError, and ConfigError if the space has no feasible network.
    """
    config, _ = load(config)
    print(config.dump())
    candidates = random_candidates(config.search_space, config.seed, SAMPLES)
    if not candidates:
        space, data = config.search_space, config.data
        limits = " and ".join(f"{name} {limit:,}" for name, limit in space.limits.items())
        raise ConfigError(
            f"space must have networks within its limits, got {limits} for {data.classes:,} "
            f"classes at {space.resolution} px and none in {DRAWS * SAMPLES:,} draws"
        )
    networks: list[dict[str, Any]] = []
    seconds_an_epoch: list[float] = []
    for candidate in candidates:
        params, flops = config.search_space.costs(candidate)
        seconds = config.data.train_images / images_per_second(config, candidate)
        network = {"arch": candidate.arch, "num_params": params, "flops_per_image": flops}
        network |= {"epoch_seconds": round(seconds, 2)}
        print(network_text(config, candidate, network))
        networks.append(network)
        seconds_an_epoch.append(seconds)
    epoch_seconds, slots = fmean(seconds_an_epoch), slots_here(config)
    epochs = make_scheduler(config).expected_epochs
    budget = Budget(config)
    device_seconds = epoch_seconds * budget.devices
    expected_trials, seconds = budget.outlook(epochs, epoch_seconds / slots, device_seconds)
    trials = max(1, round(expected_trials))
    device = "GPUs" if on_gpu(config) else "CPU cores"
    then = "; then the champion" if config.champion_epochs else ""
    print(
        f"about {trials} trials in {duration(round(seconds))} on {slots} workers of this machine "
        f"({device}), {epochs:.1f} epochs a trial{then}"
    )
    return {"networks": networks, "trials": trials, "search_seconds": round(seconds, 1)}


def network_text(config: Config, candidate: Candidate, network: dict[str, Any]) -> str:
    """A network and its forecast in two lines, and a line for each of its layers."""
    options, mflop = config.search_space.network(candidate), network["flops_per_image"] / 1e6
    shape = (1, config.data.channels, options["resolution"], options["resolution"])
    with torch.device("meta"):
        layers = VGG(**options).layer_summary(shape)
    lines = [
        f"{describe(candidate.arch)}  depth {depth(candidate.arch)}, lr {candidate.lr:.4g}",
        f"  {network['num_params']:,} parameters, {mflop:.1f} MFLOP an image, "
        f"{network['epoch_seconds']:.1f} s an epoch",
    ]
    lines += [f"    {name:<10} {'x'.join(map(str, shape[1:]))}" for name, shape in layers]
    return "\n".join(lines)


def images_per_second(config: Config, candidate: Candidate) -> float:
    """Training speed on one worker of this machine, measured by a few steps on noise."""
    prepare_process(max(1, int(config.cpus_per_trial)))
    count = PROBE_BATCHES * candidate.batch_size
    device = pick_device(on_gpu(config))
    size = (count, config.data.channels, config.data.side, config.data.side)
    noise = torch.randint(256, size, dtype=torch.uint8).to(device)
    labels = torch.zeros(count, dtype=torch.long, device=device)
    data = Resident(noise, labels, unknown(config.data.channels))
    network = build(config.search_space.network(candidate), config.seed)
    # In the first epoch libraries choose and compile their kernels; on a GPU the second captures
    # the step as a graph.
    epochs = 3 if device.type == "cuda" else 2
    recipe = recipe_of(config, candidate, epochs)
    *_, row = Training(network, data, recipe, config.seed).run(epochs)
    free_memory(device)
    return float(row["images_per_second"])


def on_gpu(config: Config) -> bool:
    """Whether the forecast is of this machine's GPUs; of its cores where there is none."""
    return config.gpus_per_trial != 0 and not cuda_trouble()


def slots_here(config: Config) -> int:
    """Trials that this machine can train at a time, counted as a search counts them."""
    node = {"CPU": float(cores()), "GPU": float(torch.cuda.device_count())}
    gpus = config.gpus_per_trial if on_gpu(config) else 0.0
    if gpus == "auto":
        shared = config.workers_per_trial == 1
        gpus = share(packed(config, measure(config), [node])) if shared else 1.0
    return max(1, at_a_time(config, [node], config.cpus_per_trial, gpus))
