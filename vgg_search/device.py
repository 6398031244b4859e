"""What the device can do: precision by capability, CUDA graphs, and how data gets there."""

import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """How networks run on a device, and why."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def autocast(self) -> AbstractContextManager:
        """Convolutions and matrix products in `dtype`, the rest and the weights in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} on {self.device}: {self.reason}"


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
    """A training step as one CUDA graph for each batch size; elsewhere it is just called.

    At 28 px a step has many kernels that take less time than their launch. A replay is one launch.
    """

    EAGER = 3  # steps before the capture, in which cuDNN and the optimizer allocate what they keep

    def __init__(self) -> None:
        self.seen: Counter[int] = Counter()
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def run(self, step: Callable[[Tensor], None], batch: Tensor) -> None:
        """step(batch), with a batch of (rows, N); tensors that `step` uses must stay in place."""
        size = batch.shape[1]
        if batch.device.type != "cuda":
            step(batch)
            return
        self.seen[size] += 1
        if self.seen[size] <= self.EAGER:
            # On a stream of its own, as the capture will be (PyTorch's notes on CUDA graphs).
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step(batch)
            torch.cuda.current_stream().wait_stream(stream)
            return
        if size not in self.captured:
            graph, held = torch.cuda.CUDAGraph(), batch.clone()
            with torch.cuda.graph(graph):
                step(held)
            self.captured[size] = graph, held
        graph, held = self.captured[size]
        held.copy_(batch)
        graph.replay()
