"""What a GPU makes of it: the notebook's run against its own loop, several trials on one GPU, and
the step alone.

    VGG_SEARCH_DATA_DIR=... python experiments/bench_gpu.py notebook     # ours whole, theirs a part
    ... packing     # 64 trials at 28 px: `auto`, and 1, 2, 4 and 8 of them on each GPU at a time
    ... steps       # a training step on noise, called and as a CUDA graph (bench_gpu_steps.py)
    add --out FOLDER to keep the figures

Cost on an H200: `packing` with 24 trials 45 s a run; `notebook` and `steps` were not run on a GPU
yet. --device cpu with a small size tries each.

`notebook` trains what experiments/notebook.yaml says, on all 60,000 images, in this process; its
seconds go from images in memory to the last epoch, with the copy to the device, the initial weights
and the capture of CUDA graphs. The first of --rounds is cold: it loads CUDA's libraries too. Then,
on the same network, the notebook's loop: a DataLoader of PIL images, prepared by --loader-workers
processes (its own number is 4), float32, SGD, the loss read at each step. A --share of an epoch of
it is timed, after --warm-up steps that are not (start of the processes, first kernels); the whole
run follows from its images a second: the least that it would take. --net notebook: both at the full
width.

`packing` runs `python -m vgg_search.run` on the same configurations, with the default recipe, each
trained for all of its epochs; trials a minute of the search, and of the whole command. Its
processes take turns on a GPU, and then, where NVIDIA's MPS is installed, run side by side: its
daemon is started for those runs and stopped after each. --rounds go A B A B, after a short run that
is not counted.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_gpu_steps import steps
from bench_training import NETS, Images
from bench_trials import ROOT, SEED, experiment, run_ours
from environment import environment
from torch.utils.data import DataLoader
from torchvision import transforms

from vgg_search.cli.arguments import load_config
from vgg_search.data.splits import Splits, load_splits, load_test
from vgg_search.models.evaluation import evaluate
from vgg_search.models.files import Classifier
from vgg_search.training.device import free_memory, plan, prepare_process
from vgg_search.training.model import build
from vgg_search.training.recipe import Recipe, recipe_of
from vgg_search.training.train import Resident, Training

VAL_IMAGES = 10_000
MPS = "nvidia-cuda-mps-control"


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


@contextmanager
def gpu_memory() -> Iterator[Callable[[], int | None]]:
    """The most MiB that one GPU had in use meanwhile, whoever used it, once the block has ended;
    None without NVIDIA's tools."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield lambda: None
        return
    with tempfile.TemporaryFile("w+") as readings:
        command = [tool, "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
        with subprocess.Popen(command, stdout=readings) as reader:
            try:
                yield lambda: most
            finally:
                reader.terminate()
        readings.seek(0)
        most = max((int(line) for line in readings if line.strip().isdigit()), default=None)


# ---- notebook -----------------------------------------------------------------------------------


def notebook(options: argparse.Namespace) -> dict[str, Any]:
    """Our run and a share of the notebook's loop, on the same network and images."""
    flags = ["--config", str(ROOT / "experiments" / "notebook.yaml"), "--name", "bench"]
    flags += ["--resolution", str(options.resolution), "--max-epochs", str(options.epochs)]
    config, _ = load_config([*flags, "--dataset", options.dataset])
    arch = NETS[options.net]["arch"]
    candidate = config.search_space.sample(None, arch)  # type: ignore[arg-type]  # all is fixed
    held_out = options.images // 6  # trained on too, as by the champion
    splits = load_splits(config.dataset, config.data_dir, held_out, options.images - held_out)
    recipe = recipe_of(config, candidate, options.epochs)
    shape = candidate.network(options.resolution)
    prepare_process(torch.get_num_threads())
    with gpu_memory() as ours_mib:
        runs = [our_run(shape, splits, recipe, options) for _ in range(options.rounds)]
    warm = runs[1:] or runs
    ours = {
        "runs": runs,
        "first_seconds": runs[0]["seconds"],
        "warm_seconds": spread([run["seconds"] for run in warm]),
        "plan": str(plan(recipe.precision, options.device)),
        "gpu_mib": ours_mib(),
    }
    with gpu_memory() as theirs_mib:
        theirs = loader_loop(shape, splits, recipe, options)
    theirs |= {"seconds": options.epochs * options.images / theirs["images_per_second"]}
    theirs |= {"gpu_mib": theirs_mib()}
    ratio = theirs["seconds"] / ours["warm_seconds"]["median"]
    return {"ours": ours, "loader": theirs, "ratio": ratio}


def our_run(
    shape: dict[str, Any], splits: Splits, recipe: Recipe, options: argparse.Namespace
) -> dict[str, Any]:
    """The whole run once. What it held of the GPU is free again at the end."""
    began = time.perf_counter()
    resident = Resident.load(splits, options.device, whole=True)
    training = Training(build(shape, SEED), resident, recipe, SEED)
    rows = list(training.run(options.epochs))
    seconds = time.perf_counter() - began
    scores = evaluate(Classifier(training.measured, splits.info), *load_test(options.dataset))
    graphs = len(training.graphs.captured)
    del training, resident
    free_memory(torch.device(options.device))
    return {
        "seconds": seconds,
        "images_per_second": options.epochs * options.images / seconds,
        "last_epoch_images_per_second": rows[-1]["images_per_second"],
        "train_accuracy": rows[-1]["train_accuracy"],
        "test_accuracy": scores["test_accuracy"],
        "cuda_graphs": graphs,
    }


def loader_loop(
    shape: dict[str, Any], splits: Splits, recipe: Recipe, options: argparse.Namespace
) -> dict[str, Any]:
    """The notebook's loop: its warm-up and then a share of an epoch, both within one epoch."""
    side = (options.resolution, options.resolution)
    transform = transforms.Compose([transforms.Resize(side), transforms.ToTensor()])
    images = Images(*splits.whole(), transform)
    workers = options.loader_workers
    batches = DataLoader(images, recipe.batch_size, shuffle=True, num_workers=workers)
    warm_up = min(options.warm_up, len(batches) - 1)
    timed = max(1, min(round(options.share * len(batches)), len(batches) - warm_up))
    network = build(shape, SEED).to(options.device).train()
    optimizer = torch.optim.SGD(network.parameters(), recipe.lr)
    criterion = torch.nn.CrossEntropyLoss()
    began, seen, loss_sum = time.perf_counter(), 0, 0.0
    for step, (inputs, answers) in zip(range(warm_up + timed), batches, strict=False):
        inputs, answers = inputs.to(options.device), answers.to(options.device)
        loss = criterion(network(inputs), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item()  # the notebook draws it, so each step waits for the device
        seen += len(answers)
        if step + 1 == warm_up:
            began, seen = time.perf_counter(), 0
    speed = seen / (time.perf_counter() - began)
    return {"images_per_second": speed, "timed_images": seen, "of_an_epoch": seen / len(images)}


# ---- packing ------------------------------------------------------------------------------------


@contextmanager
def mps() -> Iterator[None]:
    """NVIDIA's daemon by which kernels of several processes run side by side, for the processes
    that are started meanwhile."""
    names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        os.environ.update(dict.fromkeys(names, folder))
        try:
            subprocess.run([MPS, "-d"], check=True)
            try:
                yield
            finally:
                subprocess.run([MPS], input="quit\n", text=True, check=True, timeout=60)
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                os.environ.update({name: value} if value is not None else {})


def packing(options: argparse.Namespace) -> dict[str, Any]:
    """The same trials with so many on each GPU at a time; on a CPU, so many at a time."""
    size = {"trials": options.trials, "epochs": options.epochs}
    size |= {"train_images": options.images, "val_images": min(VAL_IMAGES, options.images)}
    lanes = [(way, packed) for way in ways(options.device) for packed in options.packed]
    search(options, size | {"trials": min(4, options.trials)}, *lanes[0])  # fills caches of files
    runs = []
    for turn in range(options.rounds):
        for way, packed in lanes:
            runs.append({"round": turn, **search(options, size, way, packed)})
            print(json.dumps(runs[-1]), flush=True)
    medians = [
        {
            "way": way,
            "packed": packed,
            "trials_per_minute": spread(
                [r["trials_per_minute"] for r in runs if (r["way"], r["packed"]) == (way, packed)]
            ),
        }
        for way, packed in lanes
    ]
    return {"size": size, "packing": medians, "runs": runs}


def ways(device: str) -> list[str]:
    """How several processes share a GPU."""
    return ["turns", "mps"] if device != "cpu" and shutil.which(MPS) else ["turns"]


def search(
    options: argparse.Namespace, size: dict[str, Any], way: str, packed: int | str
) -> dict[str, Any]:
    """One search. Raises SystemExit unless all trials are completed: one that fails is quick, and
    proves nothing."""
    config = experiment("middle", size, "auto") | {"dataset": options.dataset}
    for field in ("flip", "ema", "momentum", "batch_size"):  # as in a search of anyone's
        del config[field]
    if options.device == "cpu":
        config |= {} if packed == "auto" else {"max_concurrent": packed}
    else:
        config |= {"gpus_per_trial": packed if packed == "auto" else 1 / packed}
    with (
        tempfile.TemporaryDirectory(prefix="bench_gpu-") as work,
        mps() if way == "mps" else nullcontext(),
        gpu_memory() as most,
    ):
        run = run_ours(Path(work), config)
        log = Path(work, "runs", "bench", "log.txt").read_text().splitlines()
    states = run["summary"]["trials"]
    if states["completed"] != size["trials"]:
        raise SystemExit(f"all {size['trials']} trials must be completed, got {states}")
    return {
        "way": way,
        "packed": packed,
        "trials_per_minute": 60 * size["trials"] / run["search_seconds"],
        "trials_per_minute_of_the_command": 60 * size["trials"] / run["wall_seconds"],
        "search_seconds": run["search_seconds"],
        "slot_busy_fraction": run["summary"]["slot_busy_fraction"],
        "states": states,
        "gpu_mib": most(),
        "said": [line for line in log if " train in " in line or " trials a GPU: " in line],
    }


# ---- what is printed and kept -------------------------------------------------------------------

MODES = {"notebook": notebook, "packing": packing, "steps": steps}
DEFAULTS = {
    "notebook": {"epochs": 10, "images": 60_000, "resolution": 224, "rounds": 3},
    "packing": {"epochs": 3, "images": 50_000, "rounds": 2},
    "steps": {"images": 50_000, "rounds": 4},
}


def a_number_or_auto(text: str) -> int | str:
    return text if text == "auto" else int(text)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--device", default="cuda", help="cuda; cpu: to try it, at a small size")
    parser.add_argument("--dataset", default="fashion-mnist")
    parser.add_argument("--out", type=Path, help="folder for <mode>.json")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--images", type=int, help="training images")
    parser.add_argument("--resolution", type=int, help="of notebook")
    parser.add_argument("--net", default="narrow", choices=("narrow", "notebook"))
    parser.add_argument("--share", type=float, default=0.25, help="of an epoch of their loop")
    parser.add_argument("--warm-up", type=int, default=20, help="steps of theirs, not timed")
    parser.add_argument("--loader-workers", type=int, default=4)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--packed", type=a_number_or_auto, nargs="+", default=["auto", 1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, help="of the whole; of steps: timed epochs")
    parser.add_argument("--nets", nargs="+", default=None, help="of steps")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512], help="of steps")
    options = parser.parse_args(argv)
    for name, value in DEFAULTS[options.mode].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    gpu = options.device != "cpu"
    if gpu and not torch.cuda.is_available():
        print("this benchmark needs a GPU, none found; try it with --device cpu", file=sys.stderr)
        return 2
    device = torch.cuda.get_device_name(options.device) if gpu else "cpu"
    result = {"mode": options.mode, "device": device, "environment": environment()}
    result |= {"date": time.strftime("%Y-%m-%d %H:%M"), "cuda": torch.version.cuda}
    result |= {"command": " ".join(["python", "experiments/bench_gpu.py", *argv])}
    result |= MODES[options.mode](options)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{options.mode}.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
