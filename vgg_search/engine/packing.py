"""How many trials share a GPU: measured before the search, on the largest network of its space.

Trials are processes of their own, whose kernels a GPU runs in turn: a second trial fills what the
first leaves idle (launches, the CPU's part of an epoch), and a third has nothing to fill where the
first two keep the GPU busy. So the number follows from the share of the time that one trial keeps
it busy, within what memory allows.
"""

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pynvml
import torch

from vgg_search.config import Config
from vgg_search.data.source import UNKNOWN
from vgg_search.dry_run import SPLIT_IMAGES, sample
from vgg_search.space.arch import Arch
from vgg_search.space.candidate import Candidate
from vgg_search.space.search_space import Space
from vgg_search.training.device import pick_device, prepare_process
from vgg_search.training.model import build
from vgg_search.training.recipe import recipe_of
from vgg_search.training.train import Resident, Training

MOST = 8  # trials a GPU: beyond, each new process costs its CUDA context for little
USABLE = 0.9  # of a GPU's memory: allocators of several processes do not fit like bricks
SECONDS = 3.0  # of training, over which the load is looked at
BATCHES = 100
SAMPLES = 100


@dataclass(frozen=True)
class Load:
    """What one trial asks of a GPU: bytes that its process holds, of `total`, and the share of the
    time that it keeps the GPU busy (1 where the driver does not tell)."""

    memory: int
    total: int
    busy: float

    def trials(self, cpus: int) -> int:
        """Trials that may share the GPU, with `cpus` of them at most for lack of cores."""
        fit = int(USABLE * self.total / self.memory)
        return max(1, min(fit, math.ceil(round(1 / max(self.busy, 1 / MOST), 6)), cpus, MOST))

    def __str__(self) -> str:
        held, total = (size / 2**30 for size in (self.memory, self.total))
        return (
            f"the largest network takes {held:.1f} of {total:.0f} GiB and keeps the GPU busy "
            f"for {self.busy:.0%} of the time"
        )


def share(trials: int) -> float:
    """The part of a GPU that one of `trials` is to ask Ray for, which knows four digits."""
    return math.floor(10_000 / trials) / 10_000


class _Largest:
    """A suggester that answers with the largest value of each dimension."""

    def suggest_int(self, name: str, low: int, high: int, **_: Any) -> int:
        return high

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:
        return high

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return max(choices)


def largest(config: Config) -> Candidate:
    """The network that takes most memory in training: of the space's corners and a hundred random
    networks those within its limits, and the trials given by hand, which know no limits."""
    space = config.search_space
    corner = space.sample(_Largest())
    depths = (space.sample(_Largest(), corner.arch[:n]) for n in range(1, len(corner.arch) + 1))
    proposed = [corner, *depths, *sample(config, SAMPLES)]
    within = [c for c in proposed if all(v <= 0 for v in space.excess(c).values())]
    by_hand = [replace(corner, arch=t["arch"]) for t in config.trials_by_hand if "arch" in t]
    return max(within + by_hand, key=lambda candidate: footprint(space, candidate))


def footprint(space: Space, candidate: Candidate) -> int:
    """Bytes of training, roughly, to compare candidates by: weights, gradients, momentum and their
    average in fp32, and each convolution's output there and back."""
    params, _ = space.costs(candidate)
    outputs = sum(_outputs(candidate.arch, space.resolution))
    return 16 * params + 8 * candidate.batch_size * outputs


def _outputs(arch: Arch, resolution: int) -> Iterator[int]:
    for block, (num_convs, out_channels) in enumerate(arch):
        yield num_convs * out_channels * (resolution >> block) ** 2


def measure(config: Config) -> Load | None:
    """Train the largest network on noise for a few seconds on this process's GPU; None without one.

    What others hold of the GPU at the start counts as this trial's: they are likely to stay.
    """
    device = pick_device()
    if device.type != "cuda":
        return None
    prepare_process(max(1, int(config.cpus_per_trial)))
    free, total = torch.cuda.mem_get_info(device)
    try:
        busy = _train(rehearsal(config, device))
    except torch.OutOfMemoryError:
        return Load(total, total, 1.0)
    return Load(total - free + torch.cuda.max_memory_reserved(device), total, busy)


def rehearsal(config: Config, device: torch.device) -> Training:
    """A training of the largest network on noise, with epochs of at most a hundred batches."""
    candidate = largest(config)
    images = min(config.train_images or SPLIT_IMAGES, BATCHES * candidate.batch_size)
    noise = torch.randint(256, (images, 28, 28), dtype=torch.uint8, device=device)
    labels = torch.zeros(images, dtype=torch.long, device=device)
    held_out = max(1, images * config.val_images // (config.train_images or SPLIT_IMAGES))
    data = Resident(noise, labels, UNKNOWN, noise[:held_out].clone(), labels[:held_out])
    network = build(candidate.network(config.resolution), config.seed)
    # At a rate at which noise does no harm
    recipe = recipe_of(config, replace(candidate, lr=1e-6), max_epochs=10_000)
    return Training(network, data, recipe, config.seed)


def _train(training: Training) -> float:
    """Share of the time that the GPU was busy, the median over the epochs of SECONDS."""
    started, readings = time.monotonic(), list[float]()
    for _ in training.run(training.recipe.max_epochs):
        if time.monotonic() - started > SECONDS / 3:  # the driver looks back over up to a second
            readings.append(_busy())
        if time.monotonic() - started > SECONDS and readings:
            break
    return statistics.median(readings)


def _busy() -> float:
    try:
        return max(torch.cuda.utilization(), 1) / 100
    except (RuntimeError, pynvml.NVMLError):  # no driver, or a part of a GPU
        return 1.0
