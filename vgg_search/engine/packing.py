"""How many trials share a GPU: by memory, measured before the search on the largest network of its
space.

Trials are processes of their own, whose kernels a GPU runs in turn: a second and a third fill what
the first leaves idle (launches, the CPU's part of an epoch), and more only wait for each other.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from vgg_search.config import Config
from vgg_search.data.source import unknown
from vgg_search.space.arch import Arch
from vgg_search.space.candidate import Candidate
from vgg_search.space.search_space import Space
from vgg_search.study.sampling import random_candidates
from vgg_search.training.device import out_of_memory, pick_device, prepare_process
from vgg_search.training.model import build
from vgg_search.training.recipe import recipe_of
from vgg_search.training.train import Resident, Training

MOST = 4  # trials a GPU
USABLE = 0.9  # of a GPU's memory: allocators of several processes do not fit like bricks
CONTEXT = 2**29  # bytes that CUDA takes in each process before anything can be measured
BATCHES = 20
SAMPLES = 100


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of a GPU that one trial takes (`own`), that others hold, and that there are."""

    own: int
    others: int
    total: int

    def trials(self, cpus: int) -> int:
        """Trials that may share the GPU, with `cpus` of them at most for lack of cores; >= 1."""
        fit = int((USABLE * self.total - self.others) / self.own)
        return max(1, min(fit, cpus, MOST))

    def __str__(self) -> str:
        own, others, total = (size / 2**30 for size in (self.own, self.others, self.total))
        return (
            f"the largest network takes {own:.1f} of {total:.0f} GiB, of which others hold "
            f"{others:.1f}"
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
    networks those within its limits, and the trials given by hand, for which there are none."""
    space = config.search_space
    corner = space.sample(_Largest())
    depths = (space.sample(_Largest(), corner.arch[:n]) for n in range(1, len(corner.arch) + 1))
    proposed = [corner, *depths, *random_candidates(space, config.seed, SAMPLES)]
    within = [c for c in proposed if space.feasible(c)]
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


def measure(config: Config) -> GpuMemory:
    """Train the largest network on noise on this process's GPU. One that does not fit takes all of
    it. Raises DeviceError where torch can use none.

    What is taken is read off the device, not torch's allocator: modules of cuBLAS and cuDNN and
    graphs are a quarter of it (H200, six convolutions: 1,172 MiB, of which torch counts 909).
    """
    device = pick_device(gpu=True)
    prepare_process(max(1, int(config.cpus_per_trial)))
    free, total = torch.cuda.mem_get_info(device)
    others = max(0, total - free - CONTEXT)
    try:
        for _ in rehearsal(config, device).run(2):  # the first chooses and compiles its kernels
            pass
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return GpuMemory(total, others, total)
    left, _ = torch.cuda.mem_get_info(device)  # torch keeps what it had at its peak
    return GpuMemory(CONTEXT + free - left, others, total)


def rehearsal(config: Config, device: torch.device) -> Training:
    """A training of the largest network on noise, with epochs of BATCHES batches at most."""
    candidate = largest(config)
    data = config.data
    train_images = config.train_images or data.train_images
    images = min(train_images, BATCHES * candidate.batch_size)
    size = (images, data.channels, data.side, data.side)
    noise = torch.randint(256, size, dtype=torch.uint8, device=device)
    labels = torch.zeros(images, dtype=torch.long, device=device)
    held_out = max(1, images * (config.val_images or data.val_images) // train_images)
    info = unknown(data.channels)
    resident = Resident(noise, labels, info, noise[:held_out].clone(), labels[:held_out])
    network = build(config.search_space.network(candidate), config.seed)
    # At a rate at which noise does no harm
    recipe = recipe_of(config, replace(candidate, lr=1e-6), max_epochs=2)
    return Training(network, resident, recipe, config.seed)
