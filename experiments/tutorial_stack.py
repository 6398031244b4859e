"""The stack that the tutorials teach, as the other side of `bench_trials.py`.

Written after the documentation's own pages: Ray "How to use Tune with PyTorch" (function trainable,
DataLoader, a checkpoint with each report, ASHAScheduler), Ray "Running Tune experiments with
Optuna" (OptunaSearch), Ray "Using MLflow with Tune" (MLflowLoggerCallback), PyTorch's CIFAR10
tutorial (datasets, transforms, loop). Nothing of vgg_search is imported. Where the pages leave a
choice, the faster one is taken: num_workers=0, the DataLoader's default (Ray's page has 8, which
starts 16 processes an epoch), and save_artifact=False, the callback's default (Ray's page: True).

    python experiments/tutorial_stack.py SPEC.json      # made by bench_trials.py

SPEC holds configs (arch and lr of each trial), epochs, batch_size, weight_decay, momentum, warmup,
hidden_features, data_dir, index_file (train and val: indices of the training split), tracking_uri,
storage and result_file.
"""

import json
import os
import sys
import tempfile
import time

import numpy as np
import ray
import torch
import torch.nn as nn
import torch.optim as optim
from filelock import FileLock
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms


def load_data(data_dir):
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.2860, 0.3530)])
    with FileLock(os.path.join(data_dir, ".lock")):
        return datasets.FashionMNIST(data_dir, train=True, download=True, transform=transform)


def vgg_block(in_channels, num_convs, out_channels):
    layers = []
    for _ in range(num_convs):
        layers.append(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False))
        layers.append(nn.BatchNorm2d(out_channels))
        layers.append(nn.ReLU())
        in_channels = out_channels
    layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def vgg(arch, hidden_features):
    blocks, in_channels, side = [], 1, 28
    for num_convs, out_channels in arch:
        blocks.append(vgg_block(in_channels, num_convs, out_channels))
        in_channels, side = out_channels, side // 2
    net = nn.Sequential(
        *blocks,
        nn.Flatten(),
        nn.Linear(in_channels * side * side, hidden_features),
        nn.ReLU(),
        nn.Linear(hidden_features, 10),
    )
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    return net


def train_vgg(config):
    net = vgg(json.loads(config["arch"]), config["hidden_features"])
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    net.to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(
        net.parameters(),
        lr=config["lr"],
        momentum=config["momentum"],
        nesterov=True,
        weight_decay=config["weight_decay"],
    )
    trainset = load_data(config["data_dir"])
    index = np.load(config["index_file"])
    loaders = {
        split: DataLoader(
            Subset(trainset, index[split].tolist()),
            batch_size=config["batch_size"],
            shuffle=split == "train",
        )
        for split in ("train", "val")
    }
    total = config["epochs"] * len(loaders["train"])
    top = int(config["warmup"] * total)
    schedule = optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (top + 1), (total - step) / (total - top))
    )
    for _ in range(config["epochs"]):
        started = time.perf_counter()
        net.train()
        for inputs, labels in loaders["train"]:
            inputs, labels = inputs.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(net(inputs), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
        net.eval()
        val_loss, correct = 0.0, 0
        with torch.no_grad():
            for inputs, labels in loaders["val"]:
                inputs, labels = inputs.to(device), labels.to(device)
                outputs = net(inputs)
                val_loss += criterion(outputs, labels).item() * len(labels)
                correct += (outputs.argmax(1) == labels).sum().item()
        metrics = {"loss": val_loss / len(index["val"]), "accuracy": correct / len(index["val"])}
        # The bench's own two: what an epoch took, and when it ended.
        metrics |= {"epoch_seconds": time.perf_counter() - started, "ended": time.time()}
        with tempfile.TemporaryDirectory() as folder:
            torch.save(
                (net.state_dict(), optimizer.state_dict()), os.path.join(folder, "checkpoint.pt")
            )
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def main():
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    ray.init(address="local")
    fit_began = time.time()
    archs = sorted({json.dumps(config["arch"]) for config in spec["configs"]})
    points = [
        {"arch": json.dumps(config["arch"]), "lr": config["lr"]} for config in spec["configs"]
    ]
    constants = (
        "epochs batch_size weight_decay momentum warmup hidden_features data_dir index_file"
    ).split()
    tuner = tune.Tuner(
        train_vgg,
        param_space={
            "arch": tune.choice(archs),
            "lr": tune.loguniform(1e-4, 1.0),
            **{name: spec[name] for name in constants},
        },
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            search_alg=OptunaSearch(points_to_evaluate=points),
            # grace_period = max_t: every trial trains all its epochs, none is stopped.
            scheduler=ASHAScheduler(max_t=spec["epochs"], grace_period=spec["epochs"]),
            num_samples=len(points),
        ),
        run_config=tune.RunConfig(
            name="tutorial",
            storage_path=spec["storage"],
            callbacks=[
                MLflowLoggerCallback(tracking_uri=spec["tracking_uri"], experiment_name="tutorial")
            ],
        ),
    )
    results = tuner.fit()
    fit_ended = time.time()
    print("Best:", results.get_best_result().config)
    trials = []
    for result in results:
        rows = result.metrics_dataframe
        trials.append(
            {
                "arch": json.loads(result.config["arch"]),
                "lr": result.config["lr"],
                "pid": result.metrics["pid"],
                "accuracies": rows["accuracy"].tolist(),
                "epoch_seconds": rows["epoch_seconds"].tolist(),
                "ended": rows["ended"].tolist(),
            }
        )
    with open(spec["result_file"], "w") as file:
        json.dump({"fit_began": fit_began, "fit_ended": fit_ended, "trials": trials}, file)


if __name__ == "__main__":
    main()
