"""How many trials there is room for on nodes, each as Ray lists it: "CPU", "GPU" and others."""

import math
from typing import TYPE_CHECKING

from vgg_search.config import Config
from vgg_search.errors import DeviceError

if TYPE_CHECKING:
    from vgg_search.engine.packing import GpuMemory


def resources(config: Config, nodes: list[dict[str, float]]) -> dict[str, float]:
    """What a trial asks for, "cpu" and "gpu". Raises DeviceError if no node has room for one."""
    there = {name: max(node.get(name.upper(), 0.0) for node in nodes) for name in ("cpu", "gpu")}
    gpus = config.gpus_per_trial
    if gpus == "auto":
        gpus = 1.0 if there["gpu"] else 0.0
    if config.needs_gpu and not there["gpu"]:
        raise DeviceError(
            "this experiment needs a GPU, none found; add --needs-gpu false to train on the CPU"
        )
    if config.workers_per_trial > 1 and 0 < gpus < 1:
        raise DeviceError(  # NCCL refuses two of them on one
            "gpus_per_trial must be a whole number with workers_per_trial > 1, for each process "
            f"has GPUs of its own, got {gpus:g}"
        )
    needed = {"cpu": config.cpus_per_trial, "gpu": float(gpus)}
    for name, amount in needed.items():
        if amount > there[name]:
            raise DeviceError(
                f"{name}s_per_trial must be <= {there[name]:g}, the most that a node has, "
                f"got {amount:g}"
            )
    processes = sum(room(node, **needed) for node in nodes)
    if not processes:
        raise DeviceError(
            f"no node has what a trial asks for: {needed['cpu']:g} CPUs and {needed['gpu']:g} GPUs"
        )
    if config.workers_per_trial > processes:
        raise DeviceError(
            f"workers_per_trial must be <= {processes}, the processes that there is room for, "
            f"got {config.workers_per_trial}"
        )
    return needed


def at_a_time(config: Config, nodes: list[dict[str, float]], cpu: float, gpu: float) -> int:
    """Trials that nodes train side by side, the processes of one perhaps on several; never more
    than asked for."""
    there = sum(room(node, cpu, gpu) for node in nodes) // config.workers_per_trial
    return min(there, config.max_concurrent or there)


def room(node: dict[str, float], cpu: float, gpu: float) -> int:
    """How many trials a node has room for; a share of a GPU is one GPU's."""
    by_cpu, gpus = int(node.get("CPU", 0.0) / cpu), node.get("GPU", 0.0)
    if not gpu:
        return by_cpu
    return min(by_cpu, int(gpus) * int(1 / gpu) if gpu < 1 else int(gpus / gpu))


def packed(config: Config, memory: "GpuMemory", nodes: list[dict[str, float]]) -> int:
    """How many trials share each GPU of `nodes`: as many as have room and cores, fewer where there
    are GPUs enough, for Ray fills one before it takes the next."""
    cores = min(node.get("CPU", 0.0) / node["GPU"] for node in nodes)
    at_once = min(config.max_concurrent or config.num_trials, config.num_trials)
    fair = math.ceil(at_once / sum(node["GPU"] for node in nodes))
    return min(memory.trials(int(cores / config.cpus_per_trial)), fair)
