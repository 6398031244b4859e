"""What the device can do: its precision, CUDA graphs, and how data gets there."""

import ctypes
import logging
import math
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4

log = logging.getLogger("vgg_search")


@dataclass(frozen=True)
class Plan:
    """How networks run on a device, and why."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def evaluation_batch(self, resolution: int) -> int:
        """Images at a time in validation: few enough for a CPU's cache, enough to fill a GPU."""
        at_28, least = (125, 8) if self.device.type == "cpu" else (2000, 128)
        return max(least, at_28 * 28**2 // resolution**2)

    def autocast(self) -> AbstractContextManager:
        """Convolutions and matrix products in `dtype`, the rest and the weights in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} on {self.device}: {self.reason}"


def pick_device() -> torch.device:
    """The GPU that this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak_memory_mib(device: torch.device) -> float:
    """The most memory this process has held: of the GPU where it trains there, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def out_of_memory(error: Exception) -> bool:
    """Whether it is for lack of memory, for which torch has a class on a GPU, on a CPU a text."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def prepare_process(num_threads: int) -> None:
    """Set the threads of a process that trains, and an allocator that keeps what is freed.

    glibc may return a step's large tensors to the kernel and fetch them anew, page by page, in the
    next: training was 10 to 30 % slower for it on a small data set, validation up to half.
    cuDNN tries its algorithms on each new shape and keeps the fastest for the process: the trials
    of a search share most of their shapes.
    """
    torch.set_num_threads(num_threads)
    torch.backends.cudnn.benchmark = True
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def plan(precision: str, device: torch.device | str) -> Plan:
    """The Plan for `precision`: fp32 or bf16 as asked, or auto, the faster of the two.

    Native, bf16 takes half the time of fp32; emulated, three times as long. A GPU says which it is,
    a CPU where x86 has a flag for it, by functions that torch does not document. Probing every CPU
    instead would make a trial's precision depend on its neighbours: with native bf16 the probe's
    ratio was 0.3 to 0.9 on an idle machine of two cores, and 0.02 to 14 beside three busy
    processes. So only a CPU without those flags is probed.
    """
    device = torch.device(device)
    if precision != "auto":
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        return Plan(device, dtype, f"precision is {precision}")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if native:
        return Plan(device, torch.bfloat16, "bf16 is native")
    if device.type == "cuda":
        return Plan(device, torch.float32, "bf16 is not native")
    ratio = bf16_to_fp32()
    # Not by a hair: what is gained must be worth the digits.
    dtype = torch.bfloat16 if ratio < 0.9 else torch.float32
    return Plan(device, dtype, f"bf16 took {ratio:.2f} times as long as fp32 in a probe")


@cache
def bf16_to_fp32() -> float:
    """Time of a small step (two convolutions, there and back) in bf16, in units of fp32's.

    The best of up to 8 turns each, in half a second; asked once a process, for the threads it has.
    """
    image = torch.ones(8, 16, 28, 28).to(memory_format=torch.channels_last)
    first, second = (torch.full((32, n, 3, 3), 0.01, requires_grad=True) for n in (16, 32))
    best = {torch.float32: math.inf, torch.bfloat16: math.inf}
    began = time.perf_counter()
    for turn in range(9):
        for dtype in best:
            started = time.perf_counter()
            with Plan(image.device, dtype, "the probe").autocast():
                F.conv2d(
                    F.conv2d(image, first, padding=1).relu(), second, padding=1
                ).sum().backward()
            if turn:  # the first one compiles
                best[dtype] = min(best[dtype], time.perf_counter() - started)
        if turn and time.perf_counter() - began > 0.5:
            break
    return best[torch.bfloat16] / best[torch.float32]


def to_device(array: np.ndarray, device: torch.device | str) -> Tensor:
    """The array as a tensor on `device`; on the CPU it shares the array's memory."""
    with warnings.catch_warnings():
        # Ray's arrays are read-only, and one copy serves all workers of a node: nothing writes.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array).to(device)


class Graphs:
    """A training step as one CUDA graph for each batch size; on a CPU it is just called.

    At 28 px a step has many kernels that take less time than their launch; a replay is one launch.
    A step that cannot be captured is called as it is from then on.
    """

    EAGER = 3  # steps before the capture, in which libraries allocate what they keep

    def __init__(self) -> None:
        self.seen: Counter[int] = Counter()
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.refused = False
        # One for all steps before a capture: freed memory is kept for the stream that had it.
        self.aside: torch.cuda.Stream | None = None

    def run(self, step: Callable[[Tensor], None], batch: Tensor) -> None:
        """step(batch) for a batch (rows, N); the tensors that `step` writes to stay in place."""
        if batch.device.type != "cuda" or self.refused:
            step(batch)
            return
        size = batch.shape[1]
        self.seen[size] += 1
        if self.seen[size] <= self.EAGER:
            self._warm_up(step, batch)
            return
        if size not in self.captured and not self._capture(step, batch):
            step(batch)
            return
        graph, held = self.captured[size]
        held.copy_(batch)
        graph.replay()

    def _warm_up(self, step: Callable[[Tensor], None], batch: Tensor) -> None:
        """step(batch) on another stream, as a capture wants it (PyTorch's notes, CUDA graphs)."""
        here = torch.cuda.current_stream()
        self.aside = self.aside or torch.cuda.Stream()
        self.aside.wait_stream(here)
        with torch.cuda.stream(self.aside):
            step(batch)
        here.wait_stream(self.aside)

    def _capture(self, step: Callable[[Tensor], None], batch: Tensor) -> bool:
        graph, held = torch.cuda.CUDAGraph(), batch.clone()
        # One pool of memory for all: graphs that never run side by side may share it.
        pool = next((other.pool() for other, _ in self.captured.values()), None)
        try:
            with torch.cuda.graph(graph, pool=pool, stream=self.aside):
                step(held)
        except RuntimeError as error:  # for lack of memory too: one by one the steps need less
            log.warning("no CUDA graph, steps are launched one by one: %s", error)
            self.refused = True
            self.captured.clear()
            # A capture that broke off leaves the generator waiting for its end: dropout would fail.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            return False
        self.captured[batch.shape[1]] = graph, held
        return True
