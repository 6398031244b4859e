"""A training step as CUDA graphs: a replay is one launch.

After PyTorch's notes on CUDA graphs (warm-up and capture on one side stream, one pool of memory).
"""

import logging
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger("vgg_search")


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Of this process, for all warm-ups and captures: cuBLAS keeps a workspace for each stream as
    long as the process lives (measured: 66 MiB more a training with a stream for each)."""
    return torch.cuda.Stream(device)


class Graphs:
    """A training step as one CUDA graph for each batch size; on a CPU it is just called.

    At 28 px a step has many kernels that take less time than their launch: replayed steps took 355,
    438 and 818 us on an H200, called ones 2.3, 3.2 and 3.9 ms. A step that waits for the device,
    which no graph can hold, is found in the last one before the capture; it is called as it is from
    then on. `spoiled` says that a capture broke off all the same, in this process.
    """

    EAGER = 3  # steps before the capture, in which libraries allocate what they keep
    spoiled = False

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
            self._warm_up(step, batch, last=self.seen[size] == self.EAGER)
            return
        if size not in self.captured and not self._capture(step, batch):
            step(batch)
            return
        graph, held = self.captured[size]
        held.copy_(batch)
        graph.replay()

    def _warm_up(self, step: Callable[[Tensor], None], batch: Tensor, last: bool) -> None:
        here, aside = torch.cuda.current_stream(), side_stream(batch.device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            if not last:
                step(batch)
            elif _waits(step, batch):
                self._refuse("it waits for the device")
        here.wait_stream(aside)

    def _capture(self, step: Callable[[Tensor], None], batch: Tensor) -> bool:
        graph, held = torch.cuda.CUDAGraph(), batch.clone()
        # One pool of memory for all: graphs that never run side by side may share it.
        pool = next((other.pool() for other, _ in self.captured.values()), None)
        here = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=side_stream(batch.device)):
                step(held)
        except RuntimeError as error:  # for lack of memory too: one by one the steps need less
            self._refuse(str(error))
            Graphs.spoiled = True
            torch.cuda.set_stream(here)  # torch 2.11 leaves its own
            # What broke off leaves the generator waiting for its end: dropout would fail.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            return False
        self.captured[batch.shape[1]] = graph, held
        return True

    def _refuse(self, reason: str) -> None:
        log.warning("no CUDA graph of a step, each is launched as it is: %s", reason)
        self.refused = True
        self.captured.clear()


def _waits(step: Callable[[Tensor], None], batch: Tensor) -> bool:
    """step(batch); whether it waited for the device."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step(batch)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return any("called a synchronizing CUDA operation" in str(one.message) for one in said)
