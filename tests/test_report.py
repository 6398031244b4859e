"""The report: its numbers, its figures, its warnings, and what it says of poor studies."""

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from vgg_search.arch import count_flops, count_params, depth, describe, width
from vgg_search.health import EPOCH_COLUMNS, TRIAL_COLUMNS, load
from vgg_search.report import ReportError, health, make_report, plots
from vgg_search.search_space import Space

CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
]  # fmt: skip
SPACE = {
    "num_blocks": [1, 3],
    "num_convs": [1, 2],
    "out_channels": [16, 32, 64],
    "hidden_features": {"choices": [64, 128, 256]},
    "num_hidden": 1,
    "batch_norm": [True, False],
    "dropout": [0.0, 0.5],
    "lr": [0.02, 0.5],
    "weight_decay": [1e-5, 2e-3],
}
MAX_EPOCHS = 9


def score(candidate: Any, epoch: int, noise: random.Random) -> float:
    """A made-up but plausible val_accuracy: deeper wants a smaller lr, wider is better."""
    off = math.log(candidate.lr / (0.3 / depth(candidate.arch)))
    top = 0.952 - 0.06 / depth(candidate.arch) - 0.4 / width(candidate.arch) - 0.006 * off**2
    top += 0.008 * candidate.batch_norm - 0.01 * abs(candidate.dropout - 0.2)
    return max(0.1, top - 0.25 * math.exp(-0.6 * epoch) + noise.gauss(0, 0.006))


def simulate(folder: Path, num_trials: int, seed: int = 0, workers: int = 2) -> None:
    """A run folder as a stop-ASHA study leaves it, its proposals from a real Optuna journal."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = random.Random(seed)
    space = Space(SPACE, 28, 128)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.create_study(
        storage=storage, study_name=folder.name, direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
    )  # fmt: skip
    baseline = ((1, 16), (1, 32), (2, 64))
    study.enqueue_trial(space.enqueued({"arch": baseline})[0])
    clock = {f"127.0.0.1-{100 + w}": 2.0 + w for w in range(workers)}
    rungs: dict[int, list[float]] = {1: [], 3: []}
    trials, epochs = [], []
    for number in range(num_trials):
        trial = study.ask()
        c = space.sample(trial)
        worker = min(clock, key=clock.__getitem__)
        started = clock[worker]
        flops = count_flops(c.arch, hidden_features=c.hidden_features, num_hidden=1)
        seconds = 1 + flops / 1e7
        state, last, best, best_epoch, now = "completed", 0.0, 0.0, 0, started + 0.1
        for epoch in range(1, MAX_EPOCHS + 1):
            now += seconds * noise.uniform(0.9, 1.1)
            diverged = c.lr > 0.1 and depth(c.arch) > 3
            last = math.nan if diverged else score(c, epoch, noise)
            trial.report(last, epoch)
            epochs.append(
                [number, epoch, math.nan if diverged else 0.4, 0.9, 0.3, last, c.lr, seconds,
                 50_000 / seconds, now]
            )  # fmt: skip
            if diverged:
                state = "diverged"
                break
            if last > best:
                best, best_epoch = last, epoch
            if epoch in rungs:
                rungs[epoch].append(last)
                if last < sorted(rungs[epoch])[-math.ceil(len(rungs[epoch]) / 3)]:
                    state = "pruned"
                    break
        clock[worker] = now + 0.05
        trial.set_user_attr("state", state)
        done = state == "completed"
        final = optuna.trial.TrialState.COMPLETE if done else optuna.trial.TrialState.PRUNED
        study.tell(trial, last if done else None, state=final)
        trials.append(
            [number, state, describe(c.arch), depth(c.arch), width(c.arch), len(c.arch), c.lr,
             c.weight_decay, c.dropout, c.hidden_features, c.batch_norm, c.batch_size,
             count_params(c.arch, hidden_features=c.hidden_features, num_hidden=1,
                          batch_norm=c.batch_norm),
             flops, epoch, last, best, best_epoch, now - started, started, now, worker, ""]
        )  # fmt: skip
    write_table(folder / "trials.csv", TRIAL_COLUMNS, trials)
    write_table(folder / "epochs.csv", EPOCH_COLUMNS, epochs)
    done = [t for t in trials if t[1] == "completed"]
    top = max(done, key=lambda t: t[15]) if done else None
    config = {
        "name": folder.name, "seed": seed, "dataset": "fashion-mnist", "resolution": 28,
        "val_images": 10_000, "num_trials": num_trials, "max_epochs": MAX_EPOCHS, "batch_size": 128,
        "baseline": [list(block) for block in baseline], "space": SPACE,
        "tracking_uri": "http://me:secret@tracker/", "champion_epochs": 12,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    arch = [list(map(int, b.split("x"))) for b in top[2].split("-")] if top else None
    champion = {
        "val_accuracy": top[15], "test_accuracy": round(top[15] - 0.0031, 4), "num_params": top[12],
        "model_uri": "models:/vgg-search@champion", "run_id": "0" * 32,
    } if top else None  # fmt: skip
    states = ["completed", "pruned", "diverged", "infeasible", "failed", "interrupted"]
    end = max((t[20] for t in trials), default=0.0)
    summary = {
        "study": folder.name, "state": "completed", "dataset": "fashion-mnist",
        "num_trials": num_trials,
        "trials": {s: sum(t[1] == s for t in trials) for s in states},
        "epochs_trained": len(epochs), "best_val_accuracy": top[15] if top else None,
        "best_trial": top[0] if top else None, "best_arch": arch,
        "best_lr": top[6] if top else None,
        "baseline_val_accuracy": trials[0][15] if trials else None, "champion": champion,
        "wall_seconds": end + 60, "search_seconds": end, "startup_seconds_per_trial": 0.11,
        "slot_busy_fraction": 0.97, "images_per_second": 31_234.5,
        "versions": {"torch": "2.15.0", "optuna": optuna.__version__}, "commit": "abc1234",
        "seed": seed,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    if champion:
        rows = [[noise.choice([0, 0, 2, 9, 30]) for _ in CLASSES] for _ in CLASSES]
        for i, row in enumerate(rows):
            row[i] = 1000 - sum(row) + row[i]
        tests = [champion["test_accuracy"], champion["test_accuracy"] + 0.001]
        card = {
            "options": {"arch": arch}, "epochs": 12, "digest": "0123456789abcdef",
            "classes": CLASSES,
            "metrics": {"test_accuracy": tests[0], "test_accuracies": tests, "confusion": rows},
        }  # fmt: skip
        (folder / "champion").mkdir(exist_ok=True)
        (folder / "champion" / "model.json").write_text(json.dumps(card))


def write_table(path: Path, columns: tuple[str, ...], rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
