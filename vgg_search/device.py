"""What the device can do: precision by capability, CUDA graphs, and how data gets there."""

import ctypes
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4

logger = logging.getLogger("vgg_search")


@dataclass(frozen=True)
class Plan:
    """How networks run on a device, and why."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    @property
    def evaluation_batch(self) -> int:
        """Images at a time in validation, at 28 px: on a CPU, few enough to stay in its cache."""
        return 125 if self.device.type == "cpu" else 2000

    def autocast(self) -> AbstractContextManager:
        """Convolutions and matrix products in `dtype`, the rest and the weights in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} on {self.device}: {self.reason}"


def settle(num_threads: int) -> None:
    """Make this process one that trains: its threads, and an allocator that keeps what is freed.

    glibc may return a step's large tensors to the kernel and fetch them anew, page by page, in the
    next: training was 10 to 30 % slower for it on a small data set, validation up to half.
    """
    torch.set_num_threads(num_threads)
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def plan(precision: str, device: torch.device | str) -> Plan:
    """The Plan for `precision`: fp32 or bf16 as asked, or auto, bf16 where it is native.

    Emulated, bf16 takes twice the time of fp32 instead of half of it.
    """
    device = torch.device(device)
    if precision != "auto":
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        return Plan(device, dtype, f"precision is {precision}")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    dtype = torch.bfloat16 if native else torch.float32
    return Plan(device, dtype, "bf16 is native" if native else "bf16 is not native")


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

    EAGER = 3  # steps before the capture, in which libraries and optimizer allocate what they keep

    def __init__(self) -> None:
        self.seen: Counter[int] = Counter()
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.refused = False

    def run(self, step: Callable[[Tensor], None], batch: Tensor) -> None:
        """step(batch) for a batch (rows, N); the tensors that `step` writes to stay in place."""
        if batch.device.type != "cuda" or self.refused:
            step(batch)
            return
        size = batch.shape[1]
        self.seen[size] += 1
        if self.seen[size] <= self.EAGER:
            _aside(step, batch)
            return
        if size not in self.captured and not self._capture(step, batch):
            step(batch)
            return
        graph, held = self.captured[size]
        held.copy_(batch)
        graph.replay()

    def _capture(self, step: Callable[[Tensor], None], batch: Tensor) -> bool:
        graph, held = torch.cuda.CUDAGraph(), batch.clone()
        # One pool of memory for all: graphs that never run side by side may share it.
        pool = next((other.pool() for other, _ in self.captured.values()), None)
        try:
            with torch.cuda.graph(graph, pool=pool):
                step(held)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning("no CUDA graph, steps are launched one by one: %s", error)
            self.refused = True
            return False
        self.captured[batch.shape[1]] = graph, held
        return True


def _aside(step: Callable[[Tensor], None], batch: Tensor) -> None:
    """step(batch) on a stream of its own, as a capture wants it (PyTorch's notes, CUDA graphs)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(batch)
    torch.cuda.current_stream().wait_stream(stream)
