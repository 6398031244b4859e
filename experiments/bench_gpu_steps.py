"""The training step alone, for `bench_gpu.py steps`: why a run is as slow as it is.

Each network trains on noise, its step called and replayed as a CUDA graph: microseconds a step, its
kernels, the processor's time to launch it, and its share of what the device multiplies at best.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from bench_training import NETS
from bench_trials import SEED
from torch.profiler import ProfilerActivity, profile

from vgg_search.data.source import unknown
from vgg_search.training import augment
from vgg_search.training.device import free_memory, plan, prepare_process
from vgg_search.training.model import build
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident, Training

LAUNCHES = 50


def steps(options: argparse.Namespace) -> dict[str, Any]:
    """A row for each network, batch size and way of launching its step."""
    device = torch.device(options.device)
    prepare_process(torch.get_num_threads())
    best = ceilings(device)
    print(json.dumps(best), flush=True)
    rows = []
    for net in options.nets or NETS:
        for batch_size in options.batches:
            for way in ("called", "replayed") if device.type == "cuda" else ("called",):
                rows.append({"net": net, "batch_size": batch_size, "way": way})
                free_memory(device)  # of the one before, and its peak
                rows[-1] |= step(NETS[net], batch_size, way, best["tflops"], options)
                print(json.dumps(rows[-1]), flush=True)
    return {"ceilings": best, "steps": rows}


def ceilings(device: torch.device) -> dict[str, float]:
    """What the device does at best: TFLOP/s in a product of two square matrices, in the precision
    of trainings, and TB/s, read and written, in a copy."""
    side, size = (8192, 2**30) if device.type == "cuda" else (512, 2**24)
    square = torch.randn(side, side, device=device, dtype=plan("auto", device).dtype)
    here = torch.zeros(size, device=device, dtype=torch.uint8)
    there = torch.empty_like(here)
    product = seconds(lambda: square @ square, device)
    copy = seconds(lambda: there.copy_(here), device)
    return {"tflops": 2 * side**3 / product / 1e12, "tb_a_second": 2 * size / copy / 1e12}


def seconds(work: Callable[[], Any], device: torch.device, times: int = 10) -> float:
    """The median of so many calls, after one that is not counted."""
    taken = []
    for _ in range(times + 1):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - began)
    return median(taken[1:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step(
    network: dict[str, Any], batch_size: int, way: str, tflops: float, options: argparse.Namespace
) -> dict[str, Any]:
    device = torch.device(options.device)
    batches = max(1, options.images // batch_size) if network["resolution"] == 28 else 40
    count = min(options.images, batches * batch_size)
    channels = network.get("in_channels", 1)
    images = torch.randint(256, (count, channels, 28, 28), dtype=torch.uint8).to(device)
    data = Resident(images, torch.randint(10, (count,)).to(device), unknown(channels))
    recipe = Recipe(max_epochs=10_000, batch_size=batch_size, lr=0.01)
    training = Training(build(network, SEED), data, recipe, SEED)
    training.graphs.refused = way == "called"
    epochs = [row["images_per_second"] for row in training.run(1 + options.rounds)]
    each = sorted(1e6 * count / training.steps / speed for speed in epochs[1:])
    flops = 3 * training.network.flops_per_image * count / training.steps
    row = {
        "us": median(each),
        "us_least_and_most": [each[0], each[-1]],
        "first_epoch_seconds": count / epochs[0],
        "share_of_tflops": flops / median(each) / 1e6 / tflops,
        "graphs": len(training.graphs.captured),
    }
    if device.type == "cuda":
        table = augment.draw(count, 28, 0, 0, torch.Generator()).to(device)
        batch = table.tensor_split(training.steps, dim=1)[0]  # of a size that was captured
        row |= launches(lambda: training.graphs.run(training._step, batch), device)
        row["peak_mib"] = torch.cuda.max_memory_reserved(device) / 2**20
    return row


def launches(one: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Of one step: the processor's time to launch it, its kernels, and their time."""
    wait(device)
    began = time.perf_counter()
    for _ in range(LAUNCHES):
        one()
    launched = time.perf_counter() - began
    wait(device)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        one()
        wait(device)
    kernels = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return {
        "launch_us": 1e6 * launched / LAUNCHES,
        "kernels": len(kernels),
        "kernel_us": sum(event.time_range.elapsed_us() for event in kernels),
    }
