"""What could be switched on or off in the training step: one comparison each, in images a second.

    VGG_SEARCH_DATA_DIR=... python experiments/bench_choices.py choices [--only NAME] [--out FOLDER]

Lanes that take turns, as in `bench_training.py`, which has the options; a ratio is to the first
lane, which is how a worker of vgg_search trains unless it says otherwise. The allocators need
Debian's libjemalloc2.
"""

from collections.abc import Callable
from typing import Any

import bench_training
import torch
from bench_training import lane
from torch.nn import functional as F
from torch.optim.sgd import sgd

from vgg_search.data.source import DatasetInfo
from vgg_search.training import train
from vgg_search.training.train import Training


def descend(**how: bool) -> Callable[[Training], None]:
    def change(training: Training) -> None:
        training._descend = torch.no_grad()(
            lambda: sgd(
                training.parameters,
                [p.grad for p in training.parameters],
                training.velocity,
                lr=training.lr,
                momentum=training.recipe.momentum,
                nesterov=True,
                weight_decay=training.recipe.weight_decay,
                dampening=0,
                maximize=False,
                **how,
            )
        )

    return change


def compiled(training: Training) -> None:
    training.network.layers = torch.compile(training.network.layers)


def contiguous(training: Training) -> None:
    training.network.to(memory_format=torch.contiguous_format)
    training.velocity = [torch.zeros_like(p) for p in training.parameters]


def half_prepare(images: torch.Tensor, resolution: int, info: DatasetInfo) -> torch.Tensor:
    pixels = images.to(torch.bfloat16).mul_(1 / (255 * info.std)).sub_(info.mean / info.std)
    if resolution != images.shape[-1]:
        pixels = F.interpolate(pixels, (resolution, resolution), mode="bilinear")
    return pixels


def half(_: Training) -> None:
    train.prepare = half_prepare


bench_training.CHANGES |= {
    "foreach": descend(foreach=True),
    "loop": descend(foreach=False),
    "compiled": compiled,
    "contiguous": contiguous,
    "half": half,
}


def allocator_lanes(net: str) -> list[dict[str, Any]]:
    jemalloc = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"
    tunables = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0"
    forever = {"MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always"}
    return [
        lane("glibc as it comes", net, env={}, settled=False),
        lane("mallopt in the process", net, env={}),
        lane("mallopt and GLIBC_TUNABLES", net, env={"GLIBC_TUNABLES": tunables}),
        lane("jemalloc", net, env={"LD_PRELOAD": jemalloc}, settled=False),
        lane("jemalloc that keeps all, huge pages", net, env={"LD_PRELOAD": jemalloc, **forever},
             settled=False),
    ]  # fmt: skip


def changed(net: str, precision: str, *changes: str) -> list[dict[str, Any]]:
    return [
        lane("as it is", net, precision=precision),
        *(lane(change, net, precision=precision, change=change) for change in changes),
    ]


bench_training.MODES = {
    "choices": {
        "precision": [lane(p, "three-bn", precision=p) for p in ("fp32", "bf16")],
        "allocator at 28 px": allocator_lanes("three-bn"),
        "allocator at 224 px": allocator_lanes("narrow"),
        "memory format, bf16": changed("three-bn", "bf16", "contiguous"),
        "memory format, fp32": changed("three-bn", "fp32", "contiguous"),
        "optimiser, small": changed("small", "auto", "foreach", "loop"),
        "optimiser, three-bn": changed("three-bn", "auto", "foreach", "loop"),
        "half-precision images at 28 px": changed("small", "bf16", "half"),
        "half-precision images at 224 px": changed("narrow", "bf16", "half"),
        "torch.compile, small": changed("small", "auto", "compiled"),
        "torch.compile, three-bn": changed("three-bn", "auto", "compiled"),
        "threads, small": [
            lane("one trial, two threads", "small", threads=2),
            lane("two trials, one thread each", "small", times=2),
        ],
        "threads, three-bn": [
            lane("one trial, two threads", "three-bn", threads=2),
            lane("two trials, one thread each", "three-bn", times=2),
        ],
    }
}

if __name__ == "__main__":
    bench_training.main()
