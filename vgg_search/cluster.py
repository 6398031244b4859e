"""The cluster a search runs on: how it is joined, and what its nodes have room for."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import RayError

import vgg_search
from vgg_search.config import Config

log = logging.getLogger("vgg_search")


class DeviceError(ValueError):
    """The cluster lacks what a trial asks for."""


@contextmanager
def ray_cluster(config: Config) -> Iterator[None]:
    """A connection to the cluster of `config.address` or RAY_ADDRESS, else a Ray of our own."""
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    package = str(Path(vgg_search.__file__).parent)
    ray.init(
        address=address,
        include_dashboard=False if address == "local" else None,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
        runtime_env=None if address == "local" else {"py_modules": [package]},
    )
    try:
        yield
    finally:
        ray.shutdown()


def resources(config: Config) -> tuple[dict[str, float], int]:
    """(what a trial asks for, trials at a time). Raises DeviceError if no node has room for one."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    there = {name: max(node.get(name.upper(), 0.0) for node in nodes) for name in ("cpu", "gpu")}
    gpus = config.gpus_per_trial
    if gpus == "auto":
        gpus = gpu_share(config, nodes) if there["gpu"] else 0.0
    if config.needs_gpu and not there["gpu"]:
        raise DeviceError(
            "this experiment needs a GPU, none found; add --needs-gpu false to train on the CPU"
        )
    wanted = {"cpu": config.cpus_per_trial, "gpu": float(gpus)}
    for name, amount in wanted.items():
        if amount > there[name]:
            raise DeviceError(
                f"{name}s_per_trial must be <= {there[name]:g}, the most that a node has, "
                f"got {amount:g}"
            )
    slots = sum(_places(node, **wanted) for node in nodes)
    if not slots:
        raise DeviceError(
            f"no node has what a trial asks for: {wanted['cpu']:g} CPUs and {wanted['gpu']:g} GPUs"
        )
    return wanted, min(slots, config.max_concurrent or slots)


def gpu_share(config: Config, nodes: list[dict[str, float]]) -> float:
    """The part of a GPU that a trial is given for `auto`, as measured on one of the GPUs."""
    from vgg_search.packing import measure, share  # torch, which a search without GPUs can wait for

    probe = ray.remote(num_cpus=config.cpus_per_trial, num_gpus=1, max_retries=0)(measure)
    try:
        load = ray.get(probe.remote(config))
    except RayError as error:
        load = None
        log.warning("trials have a GPU each: %s", str(error).strip().splitlines()[-1])
    if load is None:
        return 1.0
    cores = min(node["CPU"] / node["GPU"] for node in nodes if node.get("GPU"))
    trials = load.trials(int(cores / config.cpus_per_trial))
    log.info("%d trials a GPU: %s", trials, load)
    return share(trials)


def _places(node: dict[str, float], cpu: float, gpu: float) -> int:
    """How many trials a node has room for; a share of a GPU is one GPU's."""
    by_cpu, gpus = int(node.get("CPU", 0.0) / cpu), node.get("GPU", 0.0)
    if not gpu:
        return by_cpu
    return min(by_cpu, int(gpus) * int(1 / gpu) if gpu < 1 else int(gpus / gpu))
