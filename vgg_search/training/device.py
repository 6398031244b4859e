"""What the device can do: its precision, its memory, and how data gets there."""

import ctypes
import math
import resource
import sys
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vgg_search.errors import DeviceError

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# In errors for lack of memory: of a CPU's allocator, of CUDA, of cuBLAS and cuDNN for a handle or a
# workspace, and of cuDNN where no algorithm has room for its own
LACKS_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "ALLOC_FAILED",
    "unable to find an engine",
    "Unable to find a valid cuDNN algorithm",
)


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
        where = str(self.device)
        if self.device.type == "cuda":
            card = torch.cuda.get_device_properties(self.device)
            where += f" ({card.name}, {card.total_memory / 2**30:.0f} GiB)"
        return f"{str(self.dtype).removeprefix('torch.')} on {where}: {self.reason}"


def pick_device(gpu: bool) -> torch.device:
    """The GPU of this process where one is asked for, else the CPU. Raises DeviceError where it
    cannot be used: to train on the CPU instead would take days, and nobody would know."""
    if not gpu:
        return torch.device("cpu")
    if trouble := cuda_trouble():
        raise DeviceError(f"a GPU was asked for, but {trouble}; --gpus-per-trial 0 trains on CPUs")
    return torch.device("cuda")


def best_device() -> torch.device:
    """The GPU where torch can use one, else the CPU: for work that promises neither."""
    return torch.device("cpu" if cuda_trouble() else "cuda")


def cuda_trouble() -> str:
    """Why torch can use no GPU in this process, in its own words; "" where it can."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return ""
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA"
    reasons = [str(warning.message).partition(" (Triggered")[0] for warning in said]
    return f"torch {torch.__version__} finds none" + "".join(f": {text}" for text in reasons[:1])


def peak_memory_mib(device: torch.device) -> float:
    """The most memory this process has held: of the GPU where it trains there, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def out_of_memory(error: BaseException) -> bool:
    """Whether it is for lack of memory, for which torch's allocator has a class; the CPU's, CUDA
    itself and its libraries have texts."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in LACKS_MEMORY)
    )


def context_lost(error: BaseException) -> bool:
    """Whether an error of CUDA has ended this process's use of the GPU: all that follows fails."""
    return isinstance(error, torch.AcceleratorError) and not out_of_memory(error)


def free_memory(device: torch.device) -> None:
    """Give back what torch keeps of a GPU's memory, and count its peak anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def prepare_process(num_threads: int) -> None:
    """Set the threads of a process that trains, and an allocator that keeps what is freed.

    glibc may return a step's large tensors to the kernel and fetch them anew, page by page, in the
    next: training was 10 to 30 % slower for it on a small data set, validation up to half.
    cuDNN chooses its algorithms by its own heuristics. Trying them on each new shape gained nothing
    (H200, steps of 355, 436, 818 us and 7.7 ms: within 0.5 %), cost up to 1.5 s a network, and may
    choose others in the next process.
    """
    torch.set_num_threads(num_threads)
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
        tf32 = device.type == "cuda" and precision == "fp32"  # torch's default
        return Plan(
            device, dtype, f"precision is {precision}" + (", convolutions in TF32" if tf32 else "")
        )
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
