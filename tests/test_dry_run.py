"""What an experiment would do, said before anything is trained or written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import Batch, FakeCuda
from fake_workers import SPACE, experiment
from torch._subclasses import FakeTensorMode

from vgg_search import dry_run
from vgg_search.config import Config
from vgg_search.data.splits import load
from vgg_search.dry_run import PROBE_BATCHES, SAMPLES, forecast, images_per_second, slots_here
from vgg_search.engine.packing import GpuMemory
from vgg_search.space.arch import describe, network_costs
from vgg_search.study.sampling import random_candidates
from vgg_search.training.graphs import Graphs
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident


def test_it_prints_networks_and_time_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = experiment(num_trials=10, train_images=500, max_concurrent=2, name="later")
    result = forecast(config)
    assert list(tmp_path.iterdir()) == []
    out = capsys.readouterr().out
    assert out.startswith(load(config)[0].dump())
    assert len(result["networks"]) == SAMPLES
    for network in result["networks"]:
        arch, head = network["arch"], {"hidden_features": 32, "num_hidden": 1}
        assert network["num_params"] == network_costs(arch, **head)[0]
        assert network["flops_per_image"] == network_costs(arch, **head)[1]
        assert network["epoch_seconds"] >= 0
        assert f"{describe(arch)}  depth " in out
        assert f"  {network['num_params']:,} parameters, " in out
    assert out.count("    block1     ") == SAMPLES
    assert out.count("    output     10\n") == SAMPLES
    assert result["trials"] == 10
    assert "about 10 trials in " in out.splitlines()[-1]
    assert "on 2 workers of this machine (CPU cores), 2.0 epochs a trial" in out.splitlines()[-1]
    seconds = sum(network["epoch_seconds"] for network in result["networks"]) / SAMPLES
    assert result["search_seconds"] == pytest.approx(10 * 2.0 * seconds / 2, abs=0.06)


def test_networks_of_less_than_a_hundredth_of_a_second_have_a_forecast(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(256, size=(24, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "few.npz", x_train=images, y_train=np.arange(24) % 2)
    config = Config(
        dataset=tmp_path / "few.npz",
        space={"num_blocks": 1, "out_channels": 1, "hidden_features": 1, "lr": [0.01, 0.1]},
        baseline=None,
        batch_size=8,
    )
    assert forecast(config)["trials"] >= 1


def test_a_time_budget_says_how_many_trials_it_bears(capsys: pytest.CaptureFixture[str]) -> None:
    config = experiment(num_trials=1_000_000, time_budget=60, max_concurrent=1)
    result = forecast(config)
    assert result["search_seconds"] == 60
    assert 1 <= result["trials"] < 1_000_000
    assert f"about {result['trials']} trials in 1m00s on 1 workers" in capsys.readouterr().out


def test_device_hours_bear_as_many_trials_as_their_share_of_a_device_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dry_run, "cores", lambda: 4)
    fields = {"num_trials": 10**6, "gpu_hours": 100 / 3600, "max_concurrent": 4, "max_epochs": 1}
    halves, wholes = (forecast(experiment(gpus_per_trial=n, **fields)) for n in (0.5, 1))
    # 100 s of one device: 200 s for halves of it, by four at a time
    assert halves["search_seconds"] == pytest.approx(2 * wholes["search_seconds"]) == 50


def test_samples_are_feasible_and_the_same_each_time() -> None:
    config = experiment(space=SPACE | {"max_params": 20_000})
    found = random_candidates(config.search_space, config.seed, 5)
    assert len(found) == 5
    assert found == random_candidates(config.search_space, config.seed, 5)
    assert all(config.search_space.costs(candidate)[0] <= 20_000 for candidate in found)


def test_a_space_without_a_feasible_network_is_an_error() -> None:
    config = experiment(space=SPACE | {"max_params": 10})
    with pytest.raises(
        ValueError, match=r"^space must have networks within its limits, got max_params 10"
    ):
        forecast(config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts this machine's cores")
def test_workers_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vgg_search.dry_run.cores", lambda: 8)
    assert slots_here(experiment(cpus_per_trial=2)) == 4
    assert slots_here(experiment(cpus_per_trial=0.5)) == 16
    assert slots_here(experiment(cpus_per_trial=16)) == 1


# A GPU that is not there


class Steps:
    """A training of which only its steps are: its speed is the number of the epoch."""

    def __init__(self, network: Any, data: Resident, recipe: Recipe, seed: int) -> None:
        self.sizes = len(data.train_labels) // recipe.batch_size * [recipe.batch_size]
        self.events: list[str] = []  # of torch.cuda, in the epoch that was run last
        self.graphs = Graphs()

    def run(self, until: int) -> Iterator[dict[str, Any]]:
        for epoch in range(1, until + 1):
            self.events.clear()
            for size in self.sizes:
                self.graphs.run(lambda _: self.events.append("step"), Batch(size))  # type: ignore[arg-type]
            yield {"images_per_second": float(epoch)}


def test_the_epoch_that_counts_only_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture takes as long as hundreds of steps."""
    fake, trainings = FakeCuda(monkeypatch), []

    def training(*arguments: Any) -> Steps:
        trainings.append(Steps(*arguments))
        fake.events = trainings[-1].events
        return trainings[-1]

    monkeypatch.setattr(dry_run, "Training", training)
    monkeypatch.setattr(dry_run, "pick_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(dry_run, "free_memory", lambda _: None)
    config = experiment(cpus_per_trial=torch.get_num_threads())
    (candidate,) = random_candidates(config.search_space, config.seed, 1)
    with FakeTensorMode():  # which may lie on a device that is not there
        speed = images_per_second(config, candidate)
    assert speed == 3.0
    assert trainings[0].events == ["copy", "replay"] * PROBE_BATCHES


@pytest.mark.parametrize(
    ("each", "cores", "slots", "fields"),
    [
        ("auto", 16, 8, {}),
        ("auto", 4, 4, {}),
        (0.25, 16, 8, {}),
        (0.25, 4, 4, {}),
        (1, 16, 2, {}),
        (2, 16, 1, {}),
        (1, 16, 1, {"workers_per_trial": 2}),
        ("auto", 16, 1, {"workers_per_trial": 2}),
        (1, 2, 2, {"max_concurrent": 64}),
        (0.25, 16, 3, {"max_concurrent": 3}),
    ],
)
def test_workers_of_two_gpus(
    monkeypatch: pytest.MonkeyPatch, each: Any, cores: int, slots: int, fields: dict[str, Any]
) -> None:
    monkeypatch.setattr(dry_run, "cuda_trouble", lambda: "")
    monkeypatch.setattr(dry_run, "cores", lambda: cores)
    monkeypatch.setattr(dry_run, "measure", lambda _: GpuMemory(own=1, others=0, total=80))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = experiment(gpus_per_trial=each, num_trials=100, **fields)
    assert slots_here(config) == slots
