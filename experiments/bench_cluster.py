"""What a cluster costs and saves, on nodes of this machine (experiments/cluster/local_nodes.py).

    python experiments/bench_cluster.py data     # 64 trials on two nodes: who trains, what is held
    python experiments/bench_cluster.py ranks    # one process against Ray Train's one and two

Cost on two cores: one and a half minutes (data), three (ranks).

Prints JSON lines. Times are wall seconds of a machine that is to be otherwise idle.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from cluster.local_nodes import LocalNodes
from environment import environment

from vgg_search.config import Config
from vgg_search.data.splits import load_splits
from vgg_search.engine.environment import RAY_ENVIRONMENT
from vgg_search.study.record import read_trials, rows_of

SPACE: dict[str, Any] = {"num_blocks": 2, "num_convs": [1, 2], "out_channels": [8, 16]}
SPACE |= {"hidden_features": 32, "num_hidden": 1, "dropout": 0.0, "lr": [0.02, 0.2]}
ARCH = ((1, 16), (1, 32))
SEEDS, EPOCHS = (0, 1, 2), 3


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def object_stores(nodes: LocalNodes) -> dict[str, float]:
    """MiB in each node's object store, as Ray's metrics have it."""
    sizes = {}
    for ip, port in nodes.metrics.items():
        with urllib.request.urlopen(f"http://{ip}:{port}/metrics", timeout=10) as page:
            text = page.read().decode()
        parts = re.findall(r'^ray_object_store_memory\{.*Location="MMAP.*\} (\S+)', text, re.M)
        sizes[ip] = round(sum(map(float, parts)) / 2**20, 1)
    return sizes


def data() -> None:
    """64 trials of one epoch on the whole data set."""
    with tempfile.TemporaryDirectory() as folder, LocalNodes(Path(folder)) as nodes:
        for number in range(3):
            nodes.start(num_cpus=min(number, 1))
        command = [sys.executable, "-m", "vgg_search.run", "--quiet", "--name", "data"]
        command += ["--num-trials", "64", "--max-epochs", "1", "--train-images", "2000"]
        command += ["--val-images", "10000", "--champion-epochs", "0", "--baseline", "null"]
        command += ["--time-budget", "null", "--space", json.dumps(SPACE), "--sampler", "random"]
        began, most = time.monotonic(), Counter[str]()
        driver = subprocess.Popen(command, cwd=folder, env=os.environ | nodes.environment)
        while driver.poll() is None:
            time.sleep(2)
            for ip, mib in object_stores(nodes).items():
                most[ip] = max(most[ip], mib)
        say(what="data", code=driver.returncode, seconds=round(time.monotonic() - began, 1))
        rows = [row for t in read_trials(Path(folder, "runs/data")) for row in rows_of(t)]
        say(trials_by_worker=Counter(row["worker"] for row in rows), most_held_mib=most)


def ranks() -> None:
    """The same network by the plain loop and by Ray Train, a few seeds each."""
    for name, value in RAY_ENVIRONMENT.items():  # before Ray is imported
        os.environ.setdefault(name, value)
    import ray

    from vgg_search.engine.checkpoints import TrainingCheckpoints, TrainingTask
    from vgg_search.engine.connection import ray_cluster
    from vgg_search.engine.ddp import train_distributed
    from vgg_search.storage.place import Place
    from vgg_search.training.recipe import Recipe

    network = {"arch": ARCH, "resolution": 28, "hidden_features": 64, "num_hidden": 1}
    network |= {"dropout": 0.2, "batch_norm": False}
    options = {"flip": True, "ema": True, "precision": "fp32"}
    recipe = Recipe(max_epochs=EPOCHS, batch_size=128, lr=0.1, **options)
    splits = load_splits("auto", os.environ.get("VGG_SEARCH_DATA_DIR"), 10_000, 10_000)
    with tempfile.TemporaryDirectory() as folder, ray_cluster(Config(address="local")):
        stored = ray.put(splits)
        for seed in SEEDS:
            for count in (0, 1, 2):  # 0: the plain loop
                checkpoints = TrainingCheckpoints(Place(folder), f"{seed}-{count}", EPOCHS)
                task = TrainingTask(network, recipe, seed, 1, checkpoints)
                began, share = time.monotonic(), {"cpu": 1.0, "gpu": 0.0}
                if count:
                    rows = list(train_distributed(task, stored, count, share, {}))
                else:
                    plain = ray.remote(num_cpus=1)(lambda task, data: list(alone(task, data)))
                    rows = ray.get(plain.remote(task, stored))
                say(
                    ranks=count,
                    seed=seed,
                    wall_seconds=round(time.monotonic() - began, 1),
                    epoch_seconds=[round(row["epoch_seconds"], 2) for row in rows],
                    lr=[row["lr"] for row in rows],
                    train_loss=[round(row["train_loss"], 4) for row in rows],
                    val_accuracy=[row["val_accuracy"] for row in rows],
                )


def alone(task: Any, splits: Any) -> Any:
    from vgg_search.training.device import prepare_process

    prepare_process(1)
    training = task.training(task.data(splits, "cpu"))
    for row in training.run(task.checkpoints.until):
        task.checkpoints.save(row, training)
        yield row


if __name__ == "__main__":
    say(**environment(), date=time.ctime())
    {"data": data, "ranks": ranks}[sys.argv[1]]()
