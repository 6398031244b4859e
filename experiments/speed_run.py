"""How many seconds to 92, 93 and 94 % test accuracy on Fashion-MNIST, on the cores of one machine?

    python experiments/speed_run.py FOLDER [--marks 92 93 94] [--seeds 10]   # rows of the table
    python experiments/speed_run.py FOLDER --validate MINE.yaml --seeds 3    # to choose a recipe

`VGG_SEARCH_DATA_DIR` names the data. Each seed is a process of its own, one after another. The
clock runs from the decoded bytes of the training images in memory to the trained weights: building
the network, augmentation and the first step are in; imports, reading and evaluation are not.
Recipes are chosen on the validation split, which is then not trained on; those of speed_run.yaml
are trained on all 60,000 images, each seed reads the test split once, and all seeds count: a mark
is met by their mean. FOLDER/speed_run.jsonl keeps a line a seed; seeds that are there are not run
again. Cost: ten minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from environment import environment

from vgg_search.data.splits import load_splits, load_test
from vgg_search.engine.environment import THREADS
from vgg_search.machine import cores
from vgg_search.models.evaluation import evaluate
from vgg_search.models.files import Classifier
from vgg_search.space.arch import as_arch
from vgg_search.training.device import prepare_process
from vgg_search.training.model import build
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident, Training

RECIPES = Path(__file__).with_suffix(".yaml")
ROWS = "speed_run.jsonl"
DATA = ("fashion-mnist", os.environ.get("VGG_SEARCH_DATA_DIR"))


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """One training by `network` (arguments of VGG) and `recipe` (of Recipe): seconds, and accuracy
    on the test split or, with `validate`, on the validation split."""
    prepare_process(cores())
    splits, validate, seed = load_splits(*DATA), spec["validate"], spec["seed"]
    began = time.perf_counter()
    data = Resident.load(splits, "cpu", whole=not validate)
    network = build(spec["network"] | {"arch": as_arch(spec["network"]["arch"])}, seed)
    recipe = Recipe(**spec["recipe"])
    data = Resident(data.train_images, data.train_labels, data.info)  # no validation on the way
    training = Training(network, data, recipe, seed)
    for _ in training.run(recipe.max_epochs):
        pass
    seconds = time.perf_counter() - began
    images, labels = (splits.val_images, splits.val_labels) if validate else load_test(*DATA)
    with torch.no_grad():
        scores = evaluate(Classifier(training.measured.eval(), splits.info), images, labels)
    params = sum(p.numel() for p in network.parameters())
    found = {"seconds": seconds, "accuracy": scores["test_accuracy"], "num_params": params}
    return spec | found | {"load": os.getloadavg()[0], "environment": environment()}


def rows_of(folder: Path, name: str, recipe: dict[str, Any], seeds: int, validate: bool) -> Any:
    """A row a seed, from FOLDER or a process of its own."""
    table = folder / ROWS
    lines = table.read_text().splitlines() if table.exists() else []
    done = {(row["mark"], row["seed"]): row for row in map(json.loads, lines)}
    for seed in range(seeds):
        spec = {"mark": name, "seed": seed, "validate": validate} | recipe
        if (name, seed) not in done:
            command = [sys.executable, __file__, str(folder), "--one", json.dumps(spec)]
            told = subprocess.run(
                command, env=os.environ | THREADS, stdout=subprocess.PIPE, check=True
            )
            done[name, seed] = json.loads(told.stdout)
            with table.open("a") as file:
                file.write(json.dumps(done[name, seed]) + "\n")
        yield done[name, seed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--marks", nargs="+")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--validate", type=Path, metavar="RECIPES")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(options.one)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    print("| mark | seconds | accuracy, % | lowest | parameters | epochs | seeds |")
    print("| --- " * 7 + "|")
    recipes = yaml.safe_load((options.validate or RECIPES).read_text())
    for name in options.marks or recipes:
        found = rows_of(options.folder, name, recipes[name], options.seeds, bool(options.validate))
        rows = list(found)
        seconds, scores = ([row[key] for row in rows] for key in ("seconds", "accuracy"))
        spread = f" (std {100 * statistics.stdev(scores):.2f})" if len(rows) > 1 else ""
        print(
            f"| {name} | {statistics.mean(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f}) "
            f"| {100 * statistics.mean(scores):.2f}{spread} | {100 * min(scores):.2f} "
            f"| {rows[0]['num_params']:,} | {rows[0]['recipe']['max_epochs']} | {len(rows)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
