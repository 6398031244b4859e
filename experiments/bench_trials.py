"""Trials a minute: vgg_search against the stack that the tutorials teach, and its own start-up.

    VGG_SEARCH_DATA_DIR=... python experiments/bench_trials.py short      # 100 trials, 1 epoch
    ... middle      # 16 trials, 3 epochs of 10,000 images
    ... startup     # 300 trials of vgg_search alone: start-up of each
    ... busy        # 64 trials with ASHA: how much of the slots' time is training
    add --out results/2026-11-24_trials to keep figures, logs and a CSV a trial

Cost on two cores: 7 minutes (short), 3 a round (middle), half a minute (startup), one (busy).

`short` and `middle` run both stacks in turn (A B A B with --rounds 2), each as its own process,
on the same configurations, images, recipe and number of epochs, with no early stopping, both with
MLflow on SQLite. What counts is wall time from starting the process to its end, when everything is
logged and, for ours, tables and report are written; beside it, without the start of interpreter,
imports and Ray; and the search alone. Augmentation and weight averaging are off on both sides.
"""

import argparse
import csv
import json
import math
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from environment import environment
from trials_page import OURS, TUTORIAL, compare, figures, section

from vgg_search.machine import cores
from vgg_search.space.arch import describe
from vgg_search.study.record import read_trials, rows_of
from vgg_search.study.tables import startup_seconds, trained

ROOT = Path(__file__).resolve().parents[1]
SEED = 2026
SMALL = [[[1, 8]], [[1, 16]], [[1, 8], [1, 16]], [[1, 16], [1, 16]], [[1, 16], [1, 32]]]
LARGER = [
    [[1, 16], [1, 32]],
    [[1, 16], [2, 32]],
    [[1, 16], [1, 32], [1, 64]],
    [[1, 16], [1, 32], [2, 64]],
]
RECIPE: dict[str, Any] = {
    "batch_size": 128,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "hidden_features": 64,
    "warmup": 0.25,  # share of the steps, as in vgg_search's one-cycle
}
SIZES: dict[str, dict[str, Any]] = {
    "short": {"trials": 100, "epochs": 1, "train_images": 2_000, "val_images": 1_000},
    "middle": {"trials": 16, "epochs": 3, "train_images": 10_000, "val_images": 2_000},
    "startup": {"trials": 300, "epochs": 1, "train_images": 500, "val_images": 500},
    "busy": {"trials": 64, "epochs": 9, "train_images": 5_000, "val_images": 1_000},
}
COLUMNS = "mode round stack trial arch lr epochs val_accuracy seconds startup started ended".split()


def configurations(mode: str, count: int) -> list[dict[str, Any]]:
    """The fixed list of (arch, lr) that both stacks train, none twice."""
    rng, archs = random.Random(SEED), LARGER if mode in ("middle", "busy") else SMALL
    return [
        {"arch": archs[i % len(archs)], "lr": round(10 ** rng.uniform(-2, -0.7), 6)}
        for i in range(count)
    ]


# ---- the two stacks ---------------------------------------------------------------------------


def experiment(mode: str, size: dict[str, Any], precision: str) -> dict[str, Any]:
    """The experiment file of ours."""
    config: dict[str, Any] = {
        "num_trials": size["trials"],
        "max_epochs": size["epochs"],
        "train_images": size["train_images"],
        "val_images": size["val_images"],
        "dataset": "fashion-mnist",
        "scheduler": "asha" if mode == "busy" else "none",
        "baseline": None,
        "time_budget": None,
        "champion_epochs": 0,
        "flip": False,
        "ema": False,
        "precision": precision,
        "batch_size": RECIPE["batch_size"],
        "momentum": RECIPE["momentum"],
        "space": {
            "num_blocks": [1, 3],
            "num_convs": [1, 2],
            "out_channels": {"choices": [8, 16, 32, 64]},
            "hidden_features": RECIPE["hidden_features"],
            "num_hidden": 1,
            "batch_norm": True,
            "dropout": 0.0,
            "lr": [0.001, 1.0],
            "weight_decay": RECIPE["weight_decay"],
        },
    }
    if mode == "busy":  # the sampler at work too, in a space of networks as small
        config["space"] |= {"out_channels": {"choices": [8, 16, 32]}, "max_flops": 6_000_000}
    else:
        config["enqueue"] = configurations(mode, size["trials"])
    return config


def run_ours(work: Path, config: dict[str, Any]) -> dict[str, Any]:
    """`python -m vgg_search.run` in `work`; times are seconds, `started` and `ended` absolute."""
    (work / "experiment.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    command = [sys.executable, "-m", "vgg_search.run", "--config", "experiment.yaml"]
    command += ["--name", "bench"]
    began, ended = run_process(command, work)
    folder = work / "runs" / "bench"
    summary = json.loads((folder / "summary.json").read_text())
    trials, first_starts, search_began = our_trials(folder)
    return {
        "stack": OURS,
        "wall_seconds": ended - began,
        "after_start_seconds": ended - search_began,
        "search_seconds": summary["search_seconds"],
        "first_starts": first_starts,
        "startup_median": summary["startup_seconds_per_trial"],
        "summary": summary,
        "trials": trials,
    }


def our_trials(folder: Path) -> tuple[list[dict[str, Any]], list[float], float]:
    """From a study's record: its trials, seconds until each worker's first one, the search's start.

    The first trial of a worker has no start-up: what it costs is in the second."""
    journal = trained(read_trials(folder))
    rows = {trial.number: rows_of(trial) for trial in journal}
    # A row holds when its epoch ended, and how long after the search's start it was heard of.
    search_began = max(row["ended"] - row["time"] for part in rows.values() for row in part)
    first: dict[str, int] = {}
    for number, part in sorted(rows.items(), key=lambda item: item[1][0]["ended"]):
        first.setdefault(part[0]["worker"], number)
    later = [trial.number for trial in journal if trial.number not in first.values()]
    startups = dict(zip(later, startup_seconds(journal), strict=True))
    trials = [
        {
            "trial": trial.number,
            "arch": trial.user_attrs["arch"],
            "lr": trial.user_attrs["candidate"]["lr"],
            "epochs": len(rows[trial.number]),
            "val_accuracy": rows[trial.number][-1]["val_accuracy"],
            "seconds": sum(row["epoch_seconds"] for row in rows[trial.number]),
            "startup": startups.get(trial.number),
            "started": rows[trial.number][0]["ended"] - rows[trial.number][0]["epoch_seconds"],
            "ended": rows[trial.number][-1]["ended"],
        }
        for trial in journal
    ]
    starts = [trial["started"] for trial in trials if trial["trial"] in first.values()]
    return trials, sorted(round(start - search_began, 3) for start in starts), search_began


def run_tutorial(work: Path, mode: str, size: dict[str, Any]) -> dict[str, Any]:
    """`tutorial_stack.py` in `work`, with what it takes."""
    spec = {
        "configs": configurations(mode, size["trials"]),
        "epochs": size["epochs"],
        **RECIPE,
        "data_dir": str(work.parent / "data"),
        "index_file": str(work.parent / "index.npz"),
        "tracking_uri": f"sqlite:///{work / 'mlflow.db'}",
        "storage": str(work / "ray_results"),
        "result_file": str(work / "result.json"),
    }
    (work / "spec.json").write_text(json.dumps(spec, indent=1))
    script = str(Path(__file__).with_name("tutorial_stack.py"))
    began, ended = run_process([sys.executable, script, "spec.json"], work)
    result = json.loads((work / "result.json").read_text())
    trials = [
        {
            "trial": number,
            "arch": trial["arch"],
            "lr": trial["lr"],
            "epochs": len(trial["accuracies"]),
            "val_accuracy": trial["accuracies"][-1],
            "seconds": sum(trial["epoch_seconds"]),
            "startup": None,
            "started": trial["ended"][0] - trial["epoch_seconds"][0],
            "ended": trial["ended"][-1],
        }
        for number, trial in enumerate(result["trials"])
    ]
    fill_startups(trials, slots=cores())
    startups = [trial["startup"] for trial in trials if trial["startup"] is not None]
    return {
        "stack": TUTORIAL,
        "wall_seconds": ended - began,
        "after_start_seconds": ended - result["fit_began"],
        "search_seconds": result["fit_ended"] - result["fit_began"],
        "startup_median": statistics.median(startups),
        "trials": trials,
    }


def fill_startups(trials: list[dict[str, Any]], slots: int) -> None:
    """What each trial cost its slot besides its epochs: a trial follows, on its slot, the one that
    ended last before it began. The first of each slot has none."""
    ends = [-math.inf] * slots
    for trial in sorted(trials, key=lambda trial: trial["started"]):
        free = [i for i in range(slots) if ends[i] <= trial["started"]]
        slot = max(free, key=lambda i: ends[i]) if free else min(range(slots), key=ends.__getitem__)
        if ends[slot] > -math.inf:
            between = trial["ended"] - trial["started"] - trial["seconds"]
            trial["startup"] = max(0.0, trial["started"] - ends[slot]) + between
        ends[slot] = trial["ended"]


def run_process(command: list[str], work: Path) -> tuple[float, float]:
    """Run to the end with its output in `work`/log.txt; (began, ended), s since the epoch."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("VGG_SEARCH_", "MLFLOW_"))}
    env.pop("RAY_ADDRESS", None)
    env["VGG_SEARCH_DATA_DIR"] = str(data_dir())
    # What is measured is what the commit beside it names, with the libraries of this process
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # Bytecode is cached, as in any installation; without it every process compiles what it imports,
    # which more than doubles the start of each trial of the tutorial stack.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir(), "bench_trials-bytecode"))
    with (work / "log.txt").open("w") as log:
        began = time.time()
        code = subprocess.run(command, cwd=work, env=env, stdout=log, stderr=log).returncode
        ended = time.time()
    if code:
        log_text = (work / "log.txt").read_text()
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{log_text}")
    return began, ended


# ---- data -------------------------------------------------------------------------------------


def data_dir() -> Path:
    if "VGG_SEARCH_DATA_DIR" not in os.environ:
        raise SystemExit("set VGG_SEARCH_DATA_DIR to a folder with Fashion-MNIST")
    return Path(os.environ["VGG_SEARCH_DATA_DIR"]).resolve()


def prepare_data(work: Path, size: dict[str, Any]) -> None:
    """The data as torchvision wants it, unpacked, and the indices of the images that ours takes."""
    from torchvision.datasets import FashionMNIST

    from vgg_search.data.splits import SPLIT_SEED, load_splits, stratified_order

    raw = work / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in sorted((data_dir() / "FashionMNIST" / "raw").iterdir()):
        shutil.copy(file, raw)
    dataset = FashionMNIST(work / "data", train=True, download=True)
    order = stratified_order(dataset.targets.numpy(), SPLIT_SEED)
    val = order[: size["val_images"]]
    train = order[size["val_images"] :][: size["train_images"]]
    np.savez(work / "index.npz", train=train, val=val)
    ours = load_splits("fashion-mnist", data_dir(), size["val_images"], size["train_images"])
    same = [(train, ours.train_images), (val, ours.val_images)]
    if not all(np.array_equal(dataset.data[index].numpy(), images[:, 0]) for index, images in same):
        raise SystemExit("both stacks must train on the same images, and would not")


def logged(work: Path) -> dict[str, int]:
    """What MLflow's database holds: finished runs, other runs, metric points."""
    with sqlite3.connect(work / "mlflow.db") as db:
        runs = dict(db.execute("SELECT status, count(*) FROM runs GROUP BY status"))
        points = db.execute("SELECT count(*) FROM metrics").fetchone()[0]
    finished = runs.pop("FINISHED", 0)
    return {"finished": finished, "unfinished": sum(runs.values()), "points": points}


# ---- the bench --------------------------------------------------------------------------------


def keep_raw(work: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("log.txt", "experiment.yaml", "spec.json", "runs/bench/summary.json"):
        if (work / name).exists():
            shutil.copy(work / name, folder)


def measure(mode: str, size: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each stack's runs, in turn; the first turn is a warm-up and not among them."""
    stacks = [OURS, TUTORIAL] if mode in ("short", "middle") else [OURS]
    stacks = [options.only] if options.only else stacks
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench_trials-") as top:
        prepare_data(Path(top), size)
        for turn in range(options.rounds + 1):
            for stack in stacks:
                work = Path(top, f"{turn}-{stack}")
                work.mkdir()
                load = os.getloadavg()[0]
                now = size if turn else size | {"trials": 4}
                if stack == OURS:
                    run = run_ours(work, experiment(mode, now, options.precision))
                else:
                    run = run_tutorial(work, mode, now)
                if not turn:  # for bytecode and the system's file cache
                    continue
                run |= {"round": turn, "load_before": load, "load_after": os.getloadavg()[0]}
                runs.append(run | {"logged": logged(work)})
                if options.out:
                    keep_raw(work, options.out / mode / f"{turn}-{stack}")
    return runs


def keep(out: Path, mode: str, result: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """Figures as JSON, and a row a trial as CSV."""
    (out / f"{mode}.json").write_text(json.dumps(result, indent=1) + "\n")
    with (out / f"{mode}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for run in runs:
            for trial in run["trials"]:
                which = {"mode": mode, "round": run["round"], "stack": run["stack"]}
                writer.writerow(which | trial | {"arch": describe(trial["arch"])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("mode", choices=SIZES)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--only", choices=(OURS, TUTORIAL))
    for name in ("trials", "epochs", "train-images", "val-images"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    mode, size = options.mode, dict(SIZES[options.mode])
    size |= {name: getattr(options, name) for name in size if getattr(options, name)}
    runs = measure(mode, size, options)
    slots = cores()
    result = {
        "size": size,
        "command": " ".join(["python", "experiments/bench_trials.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "precision": options.precision,
        "environment": environment(),
        "runs": [{"round": run["round"], **figures(run, slots)} for run in runs],
        "comparison": compare(runs) if len({run["stack"] for run in runs}) == 2 else None,
    }
    print(section(mode, result))
    if options.out:
        keep(options.out, mode, result, runs)


if __name__ == "__main__":
    main()
