"""Which device a process trains on, and what its errors mean."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from vgg_search.errors import DeviceError
from vgg_search.training.device import (
    context_lost,
    cuda_trouble,
    out_of_memory,
    pick_device,
    plan,
)

OLD_DRIVER = "CUDA initialization: The NVIDIA driver on your system is too old (found version 12)."


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 9.00 GiB",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_lack_of_memory_has_many_texts(text: str) -> None:
    assert out_of_memory(RuntimeError(text))
    assert out_of_memory(torch.AcceleratorError(text))
    assert not context_lost(torch.AcceleratorError(text))
    assert not out_of_memory(ValueError(text))


def test_lack_of_memory_has_classes() -> None:
    assert out_of_memory(torch.OutOfMemoryError("of a GPU"))
    assert out_of_memory(MemoryError())


@pytest.mark.parametrize(
    "text", ["CUDA error: device-side assert triggered", "CUDA error: an illegal memory access"]
)
def test_another_error_of_cuda_ends_the_process(text: str) -> None:
    assert context_lost(torch.AcceleratorError(text))
    assert not out_of_memory(torch.AcceleratorError(text))
    assert not context_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_the_cpu_is_used_where_no_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(gpu=False) == torch.device("cpu")
    assert pick_device(gpu=True) == torch.device("cuda")


def test_a_gpu_that_torch_cannot_use_is_an_error_with_torchs_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray may count it all the same: by NVML, which asks less of the driver."""

    def is_available() -> bool:
        warnings.warn(
            f"{OLD_DRIVER} (Triggered internally at CUDAFunctions.cpp:109.)", stacklevel=2
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    assert cuda_trouble() == f"torch {torch.__version__} finds none: {OLD_DRIVER}"
    with pytest.raises(DeviceError, match=r"^a GPU was asked for, but torch .* --gpus-per-trial 0"):
        pick_device(gpu=True)


def test_a_torch_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert cuda_trouble() == f"torch {torch.__version__} is built without CUDA"


def test_float32_on_a_gpu_says_that_convolutions_are_not() -> None:
    assert plan("fp32", "cuda").reason == "precision is fp32, convolutions in TF32"


def test_a_plan_names_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="NVIDIA H200", total_memory=141 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    assert str(plan("bf16", "cuda")) == (
        "bfloat16 on cuda (NVIDIA H200, 141 GiB): precision is bf16"
    )
