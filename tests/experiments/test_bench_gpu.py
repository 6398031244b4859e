"""The GPU experiments, tried on the CPU at a tiny size."""

import json
import os
import time
from pathlib import Path
from typing import Any

import bench_gpu
import pytest
import torch
from bench_training import NETS

from vgg_search.cli.arguments import load_config
from vgg_search.space.arch import network_costs

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
    flags = ["--resolution", "32", "--loader-workers", "0", "--share", "0.5", "--rounds", "2"]
    assert bench_gpu.main(["notebook", *TINY, *flags, "--out", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "notebook.json").read_text())
    ours, theirs = kept["ours"], kept["loader"]
    cold, warm = ours["runs"]
    assert (kept["device"], warm["cuda_graphs"]) == ("cpu", 0)
    assert {"torch", "ray", "commit"} <= kept["environment"].keys()
    assert warm["images_per_second"] == pytest.approx(256 / warm["seconds"])
    assert warm["test_accuracy"] == cold["test_accuracy"]
    assert ours["first_seconds"] == cold["seconds"]
    assert set(ours["warm_seconds"].values()) == {warm["seconds"]}
    assert theirs["timed_images"] == 128  # the second of two batches: the first is the warm-up
    assert theirs["seconds"] == pytest.approx(256 / theirs["images_per_second"])
    assert kept["ratio"] == pytest.approx(theirs["seconds"] / warm["seconds"])


def test_steps_are_a_share_of_what_the_device_does(tmp_path: Path) -> None:
    flags = ["--nets", "small", "--batches", "64", "128", "--rounds", "2", "--out", str(tmp_path)]
    assert bench_gpu.main(["steps", *TINY, *flags]) == 0
    kept = json.loads((tmp_path / "steps.json").read_text())
    assert [(row["net"], row["batch_size"], row["way"]) for row in kept["steps"]] == [
        ("small", 64, "called"),
        ("small", 128, "called"),
    ]
    for row in kept["steps"]:
        assert row["us_least_and_most"][0] <= row["us"] <= row["us_least_and_most"][1]
        _, flops = network_costs(NETS["small"]["arch"], hidden_features=256, num_hidden=1)
        rate = 3 * flops * row["batch_size"] / row["us"] / 1e6  # TFLOP/s
        assert row["share_of_tflops"] == pytest.approx(rate / kept["ceilings"]["tflops"])


def test_steps_of_colour_images(tmp_path: Path) -> None:
    flags = ["--nets", "3x32", "--batches", "32", "--rounds", "1", "--out", str(tmp_path)]
    assert bench_gpu.main(["steps", *TINY, "--images", "32", *flags]) == 0
    (row,) = json.loads((tmp_path / "steps.json").read_text())["steps"]
    assert (row["net"], row["batch_size"]) == ("3x32", 32)
    assert row["us"] > 0


# Programs of NVIDIA's that say what they were asked; the daemon is "on" between its two calls
SMI = """#!/bin/sh
trap 'exit 0' TERM
echo 700
if [ -e "$CUDA_MPS_PIPE_DIRECTORY/on" ]; then echo 900; fi
while :; do sleep 0.05; done
"""
MPS = """#!/bin/sh
if [ "$1" = -d ]; then touch "$CUDA_MPS_PIPE_DIRECTORY/on"; echo on >>"$LOG"
else read word; rm "$CUDA_MPS_PIPE_DIRECTORY/on"; echo "$word" >>"$LOG"; fi
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for NVIDIA's programs; what the daemon was told."""
    for name, text in {"nvidia-smi": SMI, bench_gpu.MPS: MPS}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: "a GPU")
    return tmp_path / "log"


class Searches:
    """Notes the experiments instead of running them."""

    def __init__(self, failed: int = 0) -> None:
        self.configs: list[dict[str, Any]] = []
        self.pipes: list[str | None] = []
        self.failed = failed

    def run(self, work: Path, config: dict[str, Any]) -> dict[str, Any]:
        self.configs.append(config)
        self.pipes.append(os.environ.get("CUDA_MPS_PIPE_DIRECTORY"))
        (work / "runs" / "bench").mkdir(parents=True)
        (work / "runs" / "bench" / "log.txt").write_text(
            "trials train in bfloat16 on cuda:0: native\nother\n"
        )
        time.sleep(0.3)  # for a reading of the memory
        states = {"completed": config["num_trials"] - self.failed}
        summary = {"slot_busy_fraction": 0.9, "trials": states}
        return {"search_seconds": 30.0, "wall_seconds": 40.0, "summary": summary}


def test_packing_takes_turns_and_then_runs_side_by_side(
    monkeypatch: pytest.MonkeyPatch, tools: Path, tmp_path: Path
) -> None:
    searches = Searches()
    monkeypatch.setattr(bench_gpu, "run_ours", searches.run)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "mine")
    flags = ["--packed", "auto", "1", "4", "--rounds", "2", "--out", str(tmp_path)]
    assert bench_gpu.main(["packing", *flags]) == 0
    shares = ["auto", 1, 0.25] * 4
    assert [config["gpus_per_trial"] for config in searches.configs] == ["auto", *shares]
    for config in searches.configs[1:]:
        assert config == searches.configs[1] | {"gpus_per_trial": config["gpus_per_trial"]}
        assert len(config["enqueue"]) == config["num_trials"] == 64
        assert not {"flip", "ema", "momentum", "batch_size"} & config.keys()  # the default's
    own = [pipe == "mine" for pipe in searches.pipes]
    assert own == [True] + ([True] * 3 + [False] * 3) * 2
    assert tools.read_text().split() == ["on", "quit"] * 6
    assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == "mine"
    assert "CUDA_MPS_LOG_DIRECTORY" not in os.environ
    kept = json.loads((tmp_path / "packing.json").read_text())
    assert [(row["way"], row["packed"]) for row in kept["packing"]] == [
        (way, packed) for way in ("turns", "mps") for packed in ("auto", 1, 4)
    ]
    assert kept["packing"][0]["trials_per_minute"] == {"median": 128, "least": 128, "most": 128}
    assert {(row["way"], row["gpu_mib"]) for row in kept["runs"]} == {("turns", 700), ("mps", 900)}
    assert kept["runs"][0]["said"] == ["trials train in bfloat16 on cuda:0: native"]


def test_a_daemon_ends_with_a_search_that_fails(
    monkeypatch: pytest.MonkeyPatch, tools: Path
) -> None:
    searches = Searches()
    monkeypatch.setattr(bench_gpu, "run_ours", searches.run)
    options = ["--packed", "4", "--rounds", "1"]

    def fails_under_mps(work: Path, config: dict[str, Any]) -> dict[str, Any]:
        searches.failed = int("CUDA_MPS_PIPE_DIRECTORY" in os.environ)
        return searches.run(work, config)

    monkeypatch.setattr(bench_gpu, "run_ours", fails_under_mps)
    with pytest.raises(SystemExit, match=r"^all 64 trials must be completed, got .*63"):
        bench_gpu.main(["packing", *options])
    assert tools.read_text().split() == ["on", "quit"]


@pytest.mark.slow
def test_packing_is_a_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VGG_SEARCH_DATA_DIR", str(tmp_path))  # the sample is asked for
    flags = ["--trials", "2", "--packed", "auto", "2", "--rounds", "1", "--out", str(tmp_path)]
    assert bench_gpu.main(["packing", *TINY, *flags]) == 0
    kept = json.loads((tmp_path / "packing.json").read_text())
    for found in kept["runs"]:
        assert found["states"]["completed"] == 2
        assert found["trials_per_minute"] > found["trials_per_minute_of_the_command"] > 0
        assert "trials train in " in found["said"][0]
