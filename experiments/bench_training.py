"""Images a second of the training step: against a DataLoader loop, and as a share of the peak.

    VGG_SEARCH_DATA_DIR=... python experiments/bench_training.py loader
    ... peak        # the step's floating-point operations against the machine's matrix products
    ... colour      # the same of colour images beside grey ones, in CPU time
    ... threads     # one thread and all, on a quiet machine and beside one busy process
    add --only NAME for one comparison, --out results/2026-11-24_training to keep the raw logs

Cost on an idle machine: three minutes (loader, 3 rounds), five (peak, 2 rounds at 224 px), two
(colour), ten (threads, 3 rounds).

Each variant is a process of its own (a lane), with its threads and its allocator; the lanes of a
comparison take turns, an epoch each, A B A B, one at a time, and the first round is not counted.
Operations: 2 a multiply-add, convolutions and matrices (`VGG.flops_per_image`), and a training step
is 3 forward passes. The peak is the fastest product of two square matrices, of three sizes, in the
same precision and with as many threads, by torch's matmul and by oneDNN's 1x1 convolution: on AMD
the first, Intel's MKL, reaches half of the second in float32.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from environment import environment
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from vgg_search.data.source import DatasetInfo
from vgg_search.data.splits import Splits, load_splits
from vgg_search.engine.environment import THREADS
from vgg_search.machine import cores
from vgg_search.space.arch import NOTEBOOK_ARCH
from vgg_search.training.device import plan, prepare_process
from vgg_search.training.model import VGG, build
from vgg_search.training.recipe import Recipe, lr_at
from vgg_search.training.threads import Threads
from vgg_search.training.train import Resident, Training

ROOT = Path(__file__).resolve().parents[1]
HEAD = {"hidden_features": 256, "num_hidden": 1, "dropout": 0.0}
FULL_HEAD = {"hidden_features": 4096, "num_hidden": 2, "dropout": 0.5}
THREE = {"arch": ((2, 32), (2, 64), (2, 128)), "resolution": 28, **HEAD}
# `narrow` is what the notebook's authors trained, a quarter as wide as their VGG-11.
NARROW = ((1, 16), (1, 32), (2, 64), (2, 128), (2, 128))
NETS: dict[str, dict[str, Any]] = {
    "small": {"arch": ((1, 16), (1, 32)), "resolution": 28, **HEAD, "batch_norm": True},
    "three": THREE,
    "three-bn": {**THREE, "batch_norm": True},
    "three-64": {**THREE, "resolution": 64},
    "narrow": {"arch": NARROW, "resolution": 224, **FULL_HEAD},
    "notebook": {"arch": NOTEBOOK_ARCH, "resolution": 224, **FULL_HEAD},
    **{
        f"{channels}x{side}": {**THREE, "resolution": side, "in_channels": channels}
        for side in (32, 64)
        for channels in (1, 3)
    },
}
IMAGES = {"1x32": 640, "3x32": 640, "1x64": 256, "3x64": 256} | {
    "small": 10_240,
    "three": 2_560,
    "three-bn": 2_560,
    "three-64": 2_560,
    "narrow": 256,
    "notebook": 128,
}
BATCH = 128
EPOCHS = 50  # of the schedule; fewer are trained
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


# ---- a lane: one process that runs an epoch each time it reads a line ---------------------------


def recipe_of(spec: dict[str, Any]) -> Recipe:
    return Recipe(
        max_epochs=EPOCHS,
        batch_size=BATCH,
        lr=0.01,
        weight_decay=5e-4,
        momentum=0.9,
        flip=True,
        ema=False,
        precision=spec["precision"],
    )


class Images(Dataset):
    """As torchvision's FashionMNIST gives them: a PIL image, transformed, and its label."""

    def __init__(self, images: Any, labels: Any, transform: Callable[[Any], torch.Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[i, 0])), int(self.labels[i])


def splits_of(val_images: int, train_images: int) -> Splits:
    return load_splits("auto", os.environ.get("VGG_SEARCH_DATA_DIR"), val_images, train_images)


def ours(spec: dict[str, Any]) -> Callable[[], float]:
    """An epoch of the package's own training; returns images a second."""
    prepare_process(spec["threads"])
    splits = splits_of(1000, IMAGES[spec["net"]])
    labels = torch.from_numpy(splits.train_labels).long()
    data = Resident(torch.from_numpy(splits.train_images), labels, splits.info)
    training = Training(build(NETS[spec["net"]], 0), data, recipe_of(spec), 0)
    if spec["never_fewer"]:
        training.threads = Threads(1)
    rows = training.run(EPOCHS)

    def epoch() -> float:
        with busy_process() if spec["busy"] else nullcontext():
            return float(next(rows)["images_per_second"])

    return epoch


@contextmanager
def busy_process() -> Iterator[None]:
    """Another program, of another session, that uses a core all the time."""
    command = [sys.executable, "-c", "while True: pass"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def noise(spec: dict[str, Any]) -> Callable[[], float]:
    """The same on noise of the network's size and channels, in images a second of CPU time, which
    other processes prolong less."""
    prepare_process(1)
    net, count = NETS[spec["net"]], IMAGES[spec["net"]]
    side, channels = net["resolution"], net["in_channels"]
    images = torch.randint(256, (count, channels, side, side), dtype=torch.uint8)
    info = DatasetInfo("noise", tuple("0123456789"), (0.5,) * channels, (0.3,) * channels, side)
    data = Resident(images, torch.randint(10, (count,)), info)
    rows = Training(build(net, 0), data, recipe_of(spec), 0).run(EPOCHS)

    def epoch() -> float:
        began = time.process_time()
        next(rows)
        return count / (time.process_time() - began)

    return epoch


def loader(spec: dict[str, Any]) -> Callable[[], float]:
    """An epoch of the loop that PyTorch's tutorials teach, on the same network and recipe."""
    from torchvision import transforms

    torch.set_num_threads(1)
    splits = splits_of(1000, IMAGES[spec["net"]])
    side = NETS[spec["net"]]["resolution"]
    steps = [transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    steps += [transforms.Normalize(splits.info.mean, splits.info.std)]
    transform = transforms.Compose(([transforms.Resize(side)] if side != 28 else []) + steps)

    network, recipe = build(NETS[spec["net"]], 0).train(), recipe_of(spec)
    images = Images(splits.train_images, splits.train_labels, transform)
    batches = DataLoader(images, batch_size=BATCH, shuffle=True)
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.lr, recipe.momentum, nesterov=True, weight_decay=5e-4
    )
    total = EPOCHS * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_at(step, total, recipe) / recipe.lr
    )
    criterion = torch.nn.CrossEntropyLoss()

    def epoch() -> float:
        began, running_loss = time.perf_counter(), 0.0
        for inputs, labels in batches:
            optimizer.zero_grad()
            loss = criterion(network(inputs), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            running_loss += loss.item()
        return len(splits.train_images) / (time.perf_counter() - began)

    return epoch


def peak(spec: dict[str, Any]) -> Callable[[], float]:
    """Floating-point operations a second, in 10^9, of the fastest matrix product."""
    prepare_process(1)
    dtype, last = DTYPES[spec["precision"]], torch.channels_last

    def seconds(product: Callable[[], torch.Tensor]) -> float:
        product()
        times = []
        for _ in range(4):
            began = time.perf_counter()
            product()
            times.append(time.perf_counter() - began)
        return min(times)

    def once() -> float:
        best = 0.0
        for n in (512, 1024, 2048):
            a, b = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
            image = torch.randn(16, n, 8, n // 128, dtype=dtype).to(memory_format=last)
            kernel = b.view(n, n, 1, 1).to(memory_format=last)
            for product in (lambda: a @ b, lambda: F.conv2d(image, kernel)):  # noqa: B023
                best = max(best, 2 * n**3 / seconds(product) / 1e9)
        return best

    with torch.no_grad():
        once()
    return torch.no_grad()(once)


LOOPS = {"ours": ours, "noise": noise, "loader": loader, "peak": peak}


# ---- comparisons: lanes that take turns ---------------------------------------------------------


def lane(name: str, net: str, loop: str, precision: str, **more: Any) -> dict[str, Any]:
    """Ours and the peak run in the environment of a worker."""
    spec = {"name": name, "net": net, "loop": loop, "precision": precision}
    spec |= {"threads": 1, "busy": False, "never_fewer": False}
    return spec | {"env": {} if loop == "loader" else THREADS} | more


def threads_lanes(net: str, precision: str) -> list[dict[str, Any]]:
    count = cores()
    asleep: dict[str, Any] = {"never_fewer": True, "env": {"OMP_WAIT_POLICY": "PASSIVE"}}
    variants: dict[str, dict[str, Any]] = {
        "one thread": {},
        f"{count} threads that sleep at once": {"threads": count} | asleep,
        f"{count} threads": {"threads": count, "never_fewer": True},
        f"{count} threads, or one": {"threads": count},
    }
    return [
        lane(name + ", beside a busy process" * busy, net, "ours", precision, busy=busy, **spec)
        for busy in (False, True)
        for name, spec in variants.items()
    ]


def loader_lanes(net: str, precision: str) -> list[dict[str, Any]]:
    return [
        lane("DataLoader loop, fp32", net, "loader", "fp32"),
        lane(f"ours, {precision}", net, "ours", precision),
    ]


def colour_lanes(side: int, precision: str) -> list[dict[str, Any]]:
    return [
        lane(f"peak, {precision}", f"1x{side}", "peak", precision),
        lane("grey", f"1x{side}", "noise", precision),
        lane("colour", f"3x{side}", "noise", precision),
    ]


def peak_lanes(net: str) -> list[dict[str, Any]]:
    return [lane(f"{loop}, {p}", net, loop, p) for loop in ("peak", "ours") for p in DTYPES]


MODES: dict[str, dict[str, list[dict[str, Any]]]] = {
    "loader": {
        f"{net} {precision}": loader_lanes(net, precision)
        for net in ("small", "three-bn", "narrow")
        for precision in ("bf16", "fp32")
    },
    "colour": {
        f"{side} px {precision}": colour_lanes(side, precision)
        for side in (32, 64)
        for precision in DTYPES
    },
    "threads": {net: threads_lanes(net, "bf16") for net in ("small", "three-bn", "three-64")},
    "peak": {net: peak_lanes(net) for net in ("three", "three-bn", "narrow", "notebook")},
}


class Lane:
    """The process of one lane, which waits for its turn."""

    def __init__(self, spec: dict[str, Any]) -> None:
        drop = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_CONF", *THREADS)
        env = {key: value for key, value in os.environ.items() if key not in drop}
        command = [sys.executable, __file__, "--lane", json.dumps(spec)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(
            command, env=env | {"PYTHONPATH": str(ROOT), **spec["env"]}, **pipes
        )
        self._answer()

    def epoch(self) -> float:
        """Images a second (or 10^9 operations) of one epoch."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self.process.communicate()

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a lane ended with {self.process.wait()}: {self.process.args}")
        return line


def serve(spec: dict[str, Any]) -> None:
    epoch = LOOPS[spec["loop"]](spec)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(epoch(), flush=True)


def compare(specs: list[dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """Each lane with its values: of the uncounted first round, and of `rounds` more."""
    lanes = [Lane(spec) for spec in specs]
    try:
        values = [[lane.epoch() for lane in lanes] for _ in range(rounds + 1)]
    finally:
        for lane in lanes:
            lane.close()
    return [
        {**spec, "first": first, "values": list(rest)}
        for spec, (first, *rest) in zip(specs, zip(*values, strict=True), strict=True)
    ]


def report(name: str, lanes: list[dict[str, Any]]) -> str:
    """A table: of each lane its median and range, and its ratio to the first, round by round."""
    lines = [f"## {name}", "| lane | median | lowest | highest | to the first lane | of the peak |"]
    lines.append("| --- " * 6 + "|")
    peaks = {p: max(x["values"]) for x in lanes for p in [x["precision"]] if x["loop"] == "peak"}
    for one in lanes:
        middle, values = statistics.median(one["values"]), one["values"]
        ratios = [a / b for a, b in zip(values, lanes[0]["values"], strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        share = ""
        if one["loop"] in ("ours", "noise") and peaks:
            with torch.device("meta"):
                flops = 3 * VGG(**NETS[one["net"]]).flops_per_image
            share = f"{flops * middle / 1e9 / peaks[one['precision']]:.1%}"
        lines.append(
            f"| {one['name']} | {middle:.1f} | {min(values):.1f} | {max(values):.1f} "
            f"| {'' if peaks else ratio} | {share} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("mode", choices=MODES, nargs="?")
    parser.add_argument("--only", action="append", help="a comparison's name, or how it starts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--lane", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lane:
        serve(options.lane)
        return
    names = tuple(options.only or [""])
    for name, lanes in MODES[options.mode].items():
        if not name.startswith(names):
            continue
        load = os.getloadavg()[0]
        kept = {
            "mode": options.mode,
            "name": name,
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "command": " ".join(["python", *sys.argv]),
            "environment": environment(),
            "auto": str(plan("auto", "cpu")),
            "load_before": load,
            "lanes": compare(lanes, options.rounds),
            "load_after": os.getloadavg()[0],
        }
        print(report(f"{options.mode}, {name}", kept["lanes"]), flush=True)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            with (options.out / "bench.jsonl").open("a") as file:
                file.write(json.dumps(kept) + "\n")


if __name__ == "__main__":
    main()
