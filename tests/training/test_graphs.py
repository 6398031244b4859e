"""A step as CUDA graphs. What only a GPU can do is recorded by a stand-in for torch.cuda here; on
the card itself, see tests/gpu."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_cuda import Batch, FakeCuda
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from vgg_search.data.source import unknown
from vgg_search.training import augment, graphs
from vgg_search.training.graphs import Graphs
from vgg_search.training.model import build
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident, Training

WAITS = "called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp:144.)"


@pytest.fixture(autouse=True)
def _one_stream_a_test() -> Any:
    yield
    graphs.side_stream.cache_clear()


def steps(fake: FakeCuda, sizes: list[int], step: Callable[[Any], None] | None = None) -> Graphs:
    found = Graphs()
    for size in sizes:
        found.run(step or (lambda _: fake.events.append("step")), Batch(size))  # type: ignore[arg-type]
    return found


def test_three_steps_are_called_then_one_is_captured_and_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeCuda(monkeypatch)
    found = steps(fake, [8] * 5)
    assert fake.events == ["step"] * 3 + ["capture", "step"] + ["copy", "replay"] * 2
    assert found.captured.keys() == {8}
    assert fake.mode == 0


def test_a_graph_a_batch_size_in_one_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    found = steps(fake, [8] * 4 + [7] * 4)
    assert found.captured.keys() == {8, 7}
    assert fake.pools == [None, "pool"]


def test_one_stream_serves_all_trainings_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    for _ in range(4):
        steps(fake, [8] * 4)
    assert fake.streams == 1


def test_a_step_that_waits_is_found_before_the_capture(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeCuda(monkeypatch)

    def step(_: Any) -> None:
        fake.events.append("step")
        if fake.mode == "warn":
            warnings.warn(WAITS, stacklevel=1)

    found = steps(fake, [8] * 6, step)
    assert fake.events == ["step"] * 6
    assert found.refused
    assert not Graphs.spoiled  # nothing was begun
    assert "it waits for the device" in caplog.text


def test_a_capture_that_breaks_off_gives_all_back_and_spoils_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeCuda(monkeypatch, refuses=True)
    found = steps(fake, [8] * 5)
    assert fake.events == ["step"] * 3 + ["capture", "set_stream", "generator"] + ["step"] * 2
    assert found.refused
    assert Graphs.spoiled


def test_without_cuda_a_step_is_just_called() -> None:
    batches: list[torch.Tensor] = []
    found = Graphs()
    for size in (3, 3, 3, 3, 3, 2):
        found.run(batches.append, torch.zeros(6, size))
    assert [batch.shape[1] for batch in batches] == [3, 3, 3, 3, 3, 2]
    assert not found.captured


# What a graph may hold


def training(resolution: int = 28, batch_norm: bool = True, **fields: Any) -> Training:
    options = {
        "arch": ((1, 8), (1, 16)),
        "hidden_features": 32,
        "num_hidden": 1,
        "dropout": 0.2,
        "batch_norm": batch_norm,
        "resolution": resolution,
    }
    recipe = Recipe(max_epochs=2, batch_size=16, lr=0.1, precision="fp32", **fields)
    images = torch.randint(256, (32, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(10, (32,))
    data = Resident(images, labels, unknown(1), images.clone(), labels)
    return Training(build(options, 1), data, recipe, 1)


def without_contents(run: Training, mode: FakeTensorMode) -> None:
    for module in run.network.modules():
        for name, tensor in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(mode.from_tensor(tensor).detach()))
        for name, tensor in list(module.named_buffers(recurse=False)):
            setattr(module, name, mode.from_tensor(tensor))
    run.parameters = list(run.network.parameters())
    run.velocity = [v if v is None else mode.from_tensor(v) for v in run.velocity]
    run.lr, run.totals, run.weight = map(mode.from_tensor, (run.lr, run.totals, run.weight))
    images, labels = run.data.train_images, run.data.train_labels
    run.data = Resident(mode.from_tensor(images), mode.from_tensor(labels), unknown(1))


@pytest.mark.parametrize(
    ("resolution", "batch_norm", "fields"),
    [
        (28, True, {"flip": True, "crop": 2, "erase": 8, "ema": True}),
        (28, False, {"flip": True, "label_smoothing": 0.1}),
        (32, True, {"flip": False, "momentum": 0.0}),
        (56, False, {"crop": 2}),
    ],
)
@pytest.mark.parametrize("looks", [False, True])
def test_a_step_looks_at_no_number(
    resolution: int, batch_norm: bool, fields: dict[str, Any], looks: bool
) -> None:
    """Which is what a capture forbids: traced on tensors without contents."""
    run = training(resolution, batch_norm, **fields)
    table = augment.draw(32, 28, run.recipe.crop, run.recipe.erase, torch.Generator())
    mode = FakeTensorMode()
    without_contents(run, mode)
    table = mode.from_tensor(table)
    with mode:
        if not looks:
            run._step(table[:, :16])
            return
        run.network.register_forward_hook(lambda _, __, scores: float(scores.sum()) and None)
        with pytest.raises(DataDependentOutputException):
            run._step(table[:, :16])


def addresses(run: Training) -> dict[str, int]:
    """Of what steps write to."""
    held = {
        **{f"network.{name}": t for name, t in run.network.state_dict().items()},
        **{f"measured.{name}": t for name, t in run.measured.state_dict().items()},
        **{f"velocity.{i}": t for i, t in enumerate(run.velocity) if t is not None},
        "lr": run.lr,
        "totals": run.totals,
    }
    return {name: tensor.data_ptr() for name, tensor in held.items()}


def test_what_a_graph_writes_to_stays_in_place() -> None:
    run = training(flip=True, ema=True)
    before = addresses(run)
    list(run.run(1))
    other = training(flip=True, ema=True)
    list(other.run(1))
    run.load_state_dict(other.state_dict())
    list(run.run(2))
    assert addresses(run) == before
