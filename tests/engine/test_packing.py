"""How many trials share a GPU. What only a GPU can tell (its memory) is given by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_workers import experiment

from vgg_search.engine import packing
from vgg_search.engine.packing import (
    CONTEXT,
    GpuMemory,
    footprint,
    largest,
    measure,
    rehearsal,
    share,
)
from vgg_search.engine.room import room
from vgg_search.errors import DeviceError

GIB = 2**30
SPACE: dict[str, Any] = {
    "num_blocks": [1, 3],
    "num_convs": [1, 2],
    "out_channels": [8, 16, 32],
    "hidden_features": {"choices": [64, 32]},
    "num_hidden": 1,
    "batch_norm": [True, False],
    "batch_size": [64, 128],
    "lr": [0.01, 1.0],
}


@pytest.mark.parametrize(
    ("own", "others", "cpus", "trials"),
    [
        (2, 0, 16, 4),
        (24, 0, 16, 3),  # nine tenths of 80 GiB are usable: 72
        (26, 0, 16, 2),  # though three of these are only 78
        (30, 0, 16, 2),
        (41, 0, 16, 1),
        (100, 0, 16, 1),  # it does not fit, and will say so itself
        (16, 40, 16, 2),  # what others hold is taken off once: 32 GiB are left
        (2, 40, 16, 4),
        (2, 79, 16, 1),  # others have it all
        (2, 0, 3, 3),  # three cores
        (2, 0, 0, 1),
    ],
)
def test_trials_fill_a_gpu_within_memory_and_cores(
    own: int, others: int, cpus: int, trials: int
) -> None:
    assert GpuMemory(own * GIB, others * GIB, 80 * GIB).trials(cpus) == trials


@pytest.mark.parametrize("trials", range(1, 9))
def test_shares_of_a_gpu_have_room_on_it(trials: int) -> None:
    assert trials * share(trials) <= 1
    assert room({"CPU": 16.0, "GPU": 2.0}, cpu=1.0, gpu=share(trials)) == 2 * trials


def test_memory_says_what_was_measured() -> None:
    assert str(GpuMemory(3 * GIB, 40 * GIB, 80 * GIB)) == (
        "the largest network takes 3.0 of 80 GiB, of which others hold 40.0"
    )


class FakeGpu:
    """80 GiB, of which others hold 10; half a GiB more once a process has its context."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, taken: int, error: Exception | None = None
    ) -> None:
        self.free, self.taken, self.error = 80 * GIB - 10 * GIB - CONTEXT, taken, error
        monkeypatch.setattr(packing, "pick_device", lambda **_: torch.device("cuda"))
        monkeypatch.setattr(packing, "prepare_process", lambda *_: None)
        monkeypatch.setattr(packing, "rehearsal", lambda *_: self)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (self.free, 80 * GIB))

    def run(self, epochs: int) -> list[int]:
        if self.error:
            raise self.error
        self.free -= self.taken
        return list(range(epochs))


def test_what_others_hold_is_not_a_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch, taken=2 * GIB)
    assert measure(experiment()) == GpuMemory(2 * GIB + CONTEXT, 10 * GIB, 80 * GIB)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_network_that_does_not_fit_has_the_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    FakeGpu(monkeypatch, taken=0, error=error)
    memory = measure(experiment())
    assert memory == GpuMemory(80 * GIB, 10 * GIB, 80 * GIB)
    assert memory.trials(16) == 1


def test_another_error_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch, taken=0, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        measure(experiment())


def test_a_rehearsal_that_diverges_measures_all_the_same() -> None:
    training = rehearsal(experiment(space=SPACE, train_images=300), torch.device("cpu"))
    with torch.no_grad():
        training.parameters[0].fill_(math.nan)
    assert [row["epoch"] for row in training.run(2)] == [1]


def test_the_largest_network_is_a_corner_of_the_space() -> None:
    found = largest(experiment(space=SPACE))
    assert found.arch == ((2, 32), (2, 32), (2, 32))
    assert (found.batch_size, found.hidden_features, found.batch_norm) == (128, 64, True)


def test_few_blocks_are_larger_where_the_linear_layers_are_wide() -> None:
    wide = SPACE | {"hidden_features": 4096, "num_hidden": 2, "batch_size": 8}
    assert len(largest(experiment(space=wide)).arch) == 1


def test_limits_hold_for_the_largest_network() -> None:
    config = experiment(space=SPACE | {"max_params": 20_000})
    found = largest(config)
    assert config.search_space.costs(found)[0] <= 20_000
    assert footprint(config.search_space, found) > 0


def test_trials_given_by_hand_know_no_limits() -> None:
    arch = ((2, 256),)
    config = experiment(space=SPACE | {"max_params": 20_000}, baseline=arch)
    assert largest(config).arch == arch


def test_the_estimate_ranks_networks_as_their_parameters_and_pixels_do() -> None:
    config = experiment(space=SPACE)
    space, candidate = config.search_space, largest(config)
    small = replace(candidate, arch=((1, 8),), batch_size=64)
    # 16 bytes for each of 101,154 parameters: a convolution of 72, its batch norm of 16, linear
    # layers of 14 * 14 * 8 * 64 + 64 and 64 * 10 + 10. And 8 bytes, there and back, for each of
    # the 401,408 outputs of 64 images, 8 channels and 28 * 28 pixels
    assert footprint(space, small) == 1_618_464 + 3_211_264
    # The second block has two convolutions, at half of the resolution
    deep = replace(small, arch=((1, 8), (2, 16)))
    assert footprint(space, deep) - 16 * space.costs(deep)[0] == 6_422_528


def test_a_rehearsal_trains_on_noise_and_stays_finite() -> None:
    config = experiment(space=SPACE, train_images=300, val_images=100, precision="fp32")
    training = rehearsal(config, torch.device("cpu"))
    assert len(training.data.train_images) == 300
    assert training.data.val_images is not None
    assert len(training.data.val_images) == 100
    rows = list(training.run(2))
    assert all(math.isfinite(row["val_loss"]) for row in rows)
    whole = rehearsal(experiment(space=SPACE), torch.device("cpu"))
    assert len(whole.data.train_images) == 2560


@pytest.mark.skipif(torch.cuda.is_available(), reason="it measures, where it can")
def test_without_a_gpu_nothing_is_measured_on_a_cpu_instead() -> None:
    with pytest.raises(DeviceError, match=r"^a GPU was asked for, but torch "):
        measure(experiment(space=SPACE))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_says_what_a_trial_takes() -> None:
    memory = measure(experiment(space=SPACE))
    assert CONTEXT < memory.own < memory.total
    assert 0 <= memory.others < memory.total
