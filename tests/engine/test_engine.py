"""What the trial engine promises over many trials: shared data, flat memory, the same numbers."""

import subprocess
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import yaml

from vgg_search.cli.arguments import read_yaml
from vgg_search.config import Config
from vgg_search.data.splits import Splits, load_splits
from vgg_search.machine import cores
from vgg_search.study.record import candidate_of, read_trials, rows_of
from vgg_search.training.device import prepare_process
from vgg_search.training.model import build
from vgg_search.training.recipe import recipe_of
from vgg_search.training.train import Resident, Training

MEASURED = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")
TRIALS = 300
MANY: dict[str, Any] = {
    "dataset": "sample",
    "val_images": 128,
    "train_images": 384,
    "num_trials": TRIALS,
    "max_epochs": 3,
    "batch_size": 64,
    "sampler": "random",
    "scheduler": "asha",
    "baseline": None,
    "time_budget": None,
    "champion_epochs": 0,
    "precision": "fp32",
    "crop": 2,
    "space": {
        "num_blocks": [1, 3],
        "num_convs": [1, 2],
        "out_channels": [8, 16, 32],
        "hidden_features": {"choices": [32, 64]},
        "num_hidden": 1,
        "dropout": [0.0, 0.3],
        "batch_norm": [True, False],
        "lr": [0.01, 0.3],
    },
}
# Growth of a worker's resident memory, from its 30th trial to its last: allocators settle in
# the first trials, for networks come in many sizes. One such network is 1 MiB and its activations
# 10, so a trial that was kept would show at once.
BOUND_MIB = 64


@pytest.mark.usefixtures("cluster")
def test_the_data_are_held_once_a_node() -> None:
    def shared(splits: Splits) -> list[bool]:
        """In a worker: whether the images lie in memory that processes share."""
        data = Resident.load(splits, "cpu")
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        spans = [
            [int(end, 16) for end in span.split("-")] for span, kind, *_ in maps if "s" in kind
        ]
        tensors = (data.train_images, data.val_images)
        return [
            any(low <= t.data_ptr() < high for low, high in spans) for t in tensors if t is not None
        ]

    splits = ray.put(load_splits("sample", None, 1000, None))
    assert ray.get(ray.remote(shared).remote(splits)) == [True, True]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of 300 short trials."""
    work = tmp_path_factory.mktemp("many")
    (work / "many.yaml").write_text(yaml.safe_dump(MANY))
    command = [sys.executable, "-m", "vgg_search.run", "--config", "many.yaml", "--name", "many"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return work / "runs" / "many"


@pytest.mark.slow
def test_every_slot_has_a_worker_however_short_the_trials_are(many: Path) -> None:
    workers = Counter(row["worker"] for trial in read_trials(many) for row in rows_of(trial))
    assert len(workers) == min(cores(), TRIALS)
    assert min(workers.values()) > TRIALS / 10


@pytest.mark.slow
def test_the_log_says_how_trials_train_and_why(many: Path) -> None:
    lines = [line for line in (many / "log.txt").read_text().splitlines() if "train in" in line]
    assert len(lines) == 1
    assert lines[0].endswith("trials train in float32 on cpu: precision is fp32")


@pytest.mark.slow
def test_memory_of_a_worker_does_not_grow(many: Path) -> None:
    rows = [row for trial in read_trials(many) for row in rows_of(trial)]
    rows.sort(key=lambda row: (row["worker"], row["ended"]))
    for _, told in groupby(rows, key=lambda row: row["worker"]):
        peaks = [row["peak_memory_mib"] for row in told]
        assert len(peaks) > 60
        assert peaks[-1] - peaks[30] < BOUND_MIB


@pytest.mark.slow
def test_a_reused_worker_gives_the_rows_of_a_fresh_one(many: Path) -> None:
    """Bit for bit, on the CPU in fp32 with one thread, however many trials came before."""
    config = Config(**read_yaml(many / "config.yaml"))
    data = Resident.load(load_splits("sample", None, 128, 384), "cpu")
    trained = [t for t in read_trials(many) if "state" in t.user_attrs and rows_of(t)]
    assert len(trained) == TRIALS
    threads = torch.get_num_threads()
    prepare_process(1)
    for trial in np.random.default_rng(0).choice(np.array(trained), 20, replace=False):
        candidate, seed = candidate_of(trial.user_attrs), trial.user_attrs["seed"]
        network = build(config.search_space.network(candidate), seed)
        fresh = Training(network, data, recipe_of(config, candidate, config.max_epochs), seed)
        told = rows_of(trial)
        again = list(fresh.run(len(told)))
        assert [{k: row[k] for k in MEASURED} for row in again] == [
            {k: row[k] for k in MEASURED} for row in told
        ]
    torch.set_num_threads(threads)
