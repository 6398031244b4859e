"""The GPU experiments, tried on the CPU at a tiny size."""

import json
from pathlib import Path
from typing import Any

import bench_gpu
import pytest
import torch

from vgg_search.cli.arguments import load_config

ROOT = Path(__file__).parents[2]


def test_the_notebooks_experiment_is_its_run() -> None:
    config, _ = load_config(["--config", str(ROOT / "experiments" / "notebook.yaml")])
    space = config.search_space
    assert space.sampled() == {}
    network = space.sample(None)  # type: ignore[arg-type]  # nobody is asked
    assert network.arch == config.baseline
    assert (network.lr, network.weight_decay, network.batch_size) == (0.01, 0.0, 128)
    assert (network.hidden_features, network.num_hidden, network.dropout) == (4096, 2, 0.5)
    assert (config.needs_gpu, config.resolution, config.max_epochs) == (True, 224, 10)
    assert (config.momentum, config.schedule, config.ema, config.flip) == (0, "constant", False, 0)


def test_without_a_gpu_it_refuses_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_gpu.main(["notebook"]) == 2
    said = capsys.readouterr()
    assert said.err == ("this benchmark needs a GPU, none found; try it with --device cpu\n")
    assert said.out == ""


TINY = ["--device", "cpu", "--dataset", "sample", "--images", "256", "--epochs", "1"]


def test_notebook_times_both_loops(tmp_path: Path) -> None:
    flags = ["--resolution", "32", "--loader-workers", "0", "--share", "0.5"]
    assert bench_gpu.main(["notebook", *TINY, *flags, "--out", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "notebook.json").read_text())
    ours, theirs = kept["ours"], kept["loader"]
    assert (kept["device"], ours["cuda_graphs"]) == ("cpu", 0)
    assert {"torch", "ray", "commit"} <= kept["environment"].keys()
    assert ours["images_per_second"] == pytest.approx(256 / ours["seconds"])
    assert theirs["timed_images"] == 128  # the second of two batches: the first is the warm-up
    assert theirs["seconds"] == pytest.approx(256 / theirs["images_per_second"])
    assert kept["ratio"] == pytest.approx(theirs["seconds"] / ours["seconds"])


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cuda", [{"gpus_per_trial": 1}, {"gpus_per_trial": 0.25}]),
        ("cpu", [{"max_concurrent": 1}, {"max_concurrent": 4}]),
    ],
)
def test_packing_gives_each_number_the_same_trials(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    expected: list[dict[str, Any]],
) -> None:
    asked = []

    def run_ours(_: Path, config: dict[str, Any]) -> dict[str, Any]:
        asked.append(config)
        summary = {"slot_busy_fraction": 0.9, "trials": {"completed": 64}}
        return {"search_seconds": 30.0, "wall_seconds": 40.0, "summary": summary}

    monkeypatch.setattr(bench_gpu, "run_ours", run_ours)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: "a GPU")
    assert bench_gpu.main(["packing", "--device", device, "--packed", "1", "4"]) == 0
    for config, fields in zip(asked, expected, strict=True):
        assert config == asked[0] | fields
        assert len(config["enqueue"]) == config["num_trials"] == 64


@pytest.mark.slow
def test_packing_is_a_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VGG_SEARCH_DATA_DIR", str(tmp_path))  # the sample is asked for
    flags = ["--trials", "2", "--packed", "2", "--out", str(tmp_path)]
    assert bench_gpu.main(["packing", *TINY, *flags]) == 0
    (found,) = json.loads((tmp_path / "packing.json").read_text())["packing"]
    assert found["states"]["completed"] == 2
    assert found["trials_per_minute"] > found["trials_per_minute_of_the_command"] > 0
