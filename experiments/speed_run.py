"""How soon does a plain VGG network name 92, 93 and 94 % of Fashion-MNIST's test images rightly?

    VGG_SEARCH_DATA_DIR=... python experiments/speed_run.py FOLDER      # ten seeds of each mark
    ... FOLDER --marks 93 --validate --seeds 3 --change '{"epochs": 6, "lr": 0.2}'    # a try

The rules, for whoever wants to be faster:

1. Two cores of a CPU; which, is in the table. The 60,000 training images and nothing else: no other
   data, no weights from before, one network and one look at each test image.
2. The clock starts with the images in memory as bytes, and stops with the last weights. To build
   the network, to prepare images, and all that a process does for its first time count; imports,
   the reading of files and the test do not. Each run is a process of its own with both cores.
3. A recipe is chosen on a validation split of the training images (`--validate`), and fixed before
   its first run is tested. Each run is tested once, at its end, and none is left out.
4. Ten seeds or more; the mean of their accuracies reaches the mark. The median of seconds counts.

Rows are kept in FOLDER/runs.csv and not repeated. `--change` is for tries, which are kept too.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from environment import environment
from kept_rows import add_rows, read_rows

from vgg_search.data.splits import load_splits, load_test
from vgg_search.machine import cores
from vgg_search.models.evaluation import evaluate
from vgg_search.models.files import Classifier
from vgg_search.space.candidate import Candidate
from vgg_search.training.device import prepare_process
from vgg_search.training.model import build
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident, Training

Entry = dict[str, Any]  # fields of Candidate and of Recipe, and `epochs`
COMMON: Entry = {"batch_norm": True, "num_hidden": 0, "dropout": 0.0}
COMMON |= {"batch_size": 128, "weight_decay": 5e-4, "lr": 0.2}
ENTRIES: dict[int, Entry] = {  # by the mark in percent
    92: COMMON | {"arch": [[1, 16], [2, 32], [2, 64]], "epochs": 3},
    93: COMMON | {"arch": [[2, 16], [2, 32], [2, 64]], "epochs": 7},
    94: COMMON
    | {"arch": [[2, 32], [2, 64], [2, 128]], "epochs": 10, "crop": 1, "label_smoothing": 0.05},
}
FILE, COLUMNS = "runs.csv", ["mark", "split", "entry", "seed", "accuracy", "seconds", "load", "cpu"]
COLUMNS += ["torch", "commit"]


def run(entry: Entry, seed: int, validate: bool) -> tuple[float, float]:
    """Accuracy on the validation or the test split, and seconds of the training."""
    fields = dict(entry)
    epochs, own = fields.pop("epochs"), fields.keys() & Candidate.__dataclass_fields__.keys()
    candidate = Candidate.from_dict({name: fields.pop(name) for name in own})
    prepare_process(cores())
    data_dir = os.environ.get("VGG_SEARCH_DATA_DIR")
    splits = load_splits("fashion-mnist", data_dir)
    images, labels = (splits.train_images, splits.train_labels) if validate else splits.whole()
    began = time.perf_counter()
    data = Resident(torch.from_numpy(images), torch.from_numpy(labels).long(), splits.info)
    network = build(candidate.network(splits.info.side), seed)
    recipe = Recipe(max_epochs=epochs, **fields, **candidate.recipe())
    training = Training(network, data, recipe, seed)
    for _ in training.run(epochs):
        pass
    seconds = time.perf_counter() - began
    measured = splits.val_images, splits.val_labels
    if not validate:
        measured = load_test("fashion-mnist", data_dir)
    scores = evaluate(Classifier(training.measured, splits.info), *measured)
    return scores["test_accuracy"], seconds


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One after the other, those that are not there yet."""
    split = "validation" if options.validate else "test"
    there = {
        (r["mark"], r["split"], r["entry"], int(r["seed"]))
        for r in read_rows(options.folder / FILE)
    }
    made_by = environment()
    for mark in options.marks:
        entry = json.dumps(ENTRIES[mark] | options.change)
        for seed in range(options.seeds):
            if (str(mark), split, entry, seed) in there:
                continue
            row = {"mark": mark, "split": split, "entry": entry, "seed": seed}
            row["load"] = round(os.getloadavg()[0], 1)
            with multiprocessing.get_context("spawn").Pool(1) as process:
                accuracy, seconds = process.apply(run, (json.loads(entry), seed, options.validate))
            row |= {"accuracy": f"{accuracy:.4f}", "seconds": f"{seconds:.2f}"}
            yield row | {name: made_by[name] for name in COLUMNS[-3:]}


def table(folder: Path) -> str:
    """A line for each recipe that was tried."""
    kinds: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in read_rows(folder / FILE):
        kinds.setdefault((row["split"], row["mark"], row["entry"]), []).append(row)
    lines = ["| split | mark | recipe | n | accuracy | seconds |", "| --- " * 6 + "|"]
    for (split, mark, entry), runs in sorted(kinds.items()):
        scores = [100 * float(row["accuracy"]) for row in runs]
        seconds = [float(row["seconds"]) for row in runs]
        spread = f", standard deviation {statistics.stdev(scores):.2f}" if len(runs) > 1 else ""
        lines.append(
            f"| {split} | {mark} | `{entry}` | {len(runs)} | {statistics.mean(scores):.2f}{spread} "
            f"| {statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--marks", type=int, nargs="*", default=[*ENTRIES], choices=ENTRIES)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--validate", action="store_true", help="no test split is read")
    parser.add_argument("--change", type=json.loads, default={}, metavar="JSON")
    options = parser.parse_args()
    if options.change and not options.validate:
        parser.error("--change is for tries: it wants --validate")
    options.folder.mkdir(parents=True, exist_ok=True)
    for row in rows(options):
        add_rows(options.folder / FILE, COLUMNS, [row])
        print(row["mark"], row["split"], row["seed"], row["accuracy"], row["seconds"], flush=True)
    print(table(options.folder))


if __name__ == "__main__":
    main()
