"""How fast is a folder of images read, the first time and from the cache?

    python experiments/bench_decoding.py FOLDER [GREY_PNGS]

FOLDER holds class folders, or is made: GREY_PNGS files (60000) of Fashion-MNIST. Rounds, of which
the first warms up and is not counted, of: Pillow alone (`open`, `asarray`), in a process a core;
our decoding into a file, with the start of its processes; the first reading, with listing,
decoding, sorting and splitting; a reading from the cache. Pillow decodes photos at the size that
they have, we at one near that in which they are used.

Printed: images a second; of all processes together, microseconds of CPU an image, which do not
depend on what else the machine does; the share that our decoding has of Pillow, by round, of both;
seconds of a reading from the cache. Cost: a minute, of CPU time three.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from environment import environment
from PIL import Image

from vgg_search.data.decoders import Decoders, File
from vgg_search.data.splits import load_splits
from vgg_search.machine import cores

ROUNDS = 5


def decode(path: Path) -> int:
    with Image.open(path) as image:
        return np.asarray(image).nbytes


def make(folder: Path, count: int) -> None:
    splits = load_splits("auto", os.environ.get("VGG_SEARCH_DATA_DIR"))
    for i, (image, label) in enumerate(zip(*splits.whole(), strict=True)):
        if i < count:
            target = folder / str(label)
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0]).save(target / f"{i}.png")


def pillow(files: list[Path]) -> None:
    with ProcessPoolExecutor(cores()) as pool:
        list(pool.map(decode, files, chunksize=100))


def listed(path: Path) -> File:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def ours(files: list[File], side: int, channels: int) -> None:
    with tempfile.TemporaryDirectory() as folder, Decoders(len(files)) as decoders:
        pixels = Path(folder, "pixels")
        pixels.touch()
        for head in decoders.decode(files, (side, channels), pixels):
            assert not isinstance(head, Exception), head


def seconds(work: Callable[..., object], *arguments: object) -> tuple[float, float]:
    """(on the clock, of CPU)."""
    began, before = time.perf_counter(), os.times()
    work(*arguments)
    return time.perf_counter() - began, sum(os.times()[:4]) - sum(before[:4])


def main() -> None:
    folder = Path(sys.argv[1])
    if not folder.exists():
        make(folder, int(sys.argv[2]) if len(sys.argv) > 2 else 60_000)
    files = sorted(path for path in folder.rglob("*.*") if path.is_file())
    info = load_splits(str(folder)).info
    facts = [listed(path) for path in files]  # by the first reading, which is timed as a whole
    rounds = []
    for _ in range(ROUNDS + 1):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["XDG_CACHE_HOME"] = cache
            one = {"pillow": seconds(pillow, files)}
            one["decoding"] = seconds(ours, facts, info.side, info.channels)
            one |= {name: seconds(load_splits, str(folder)) for name in ("first", "cached")}
        rounds.append(one)
    row: dict[str, object] = {"files": len(files), "side": info.side, "channels": info.channels}
    for name in ("pillow", "decoding", "first"):
        row[name] = [round(len(files) / one[name][0]) for one in rounds[1:]]
        row[f"{name}_cpu_us"] = [round(one[name][1] / len(files) * 1e6, 1) for one in rounds[1:]]
    for i, name in enumerate(("share", "share_cpu")):
        row[name] = [round(one["pillow"][i] / one["decoding"][i], 3) for one in rounds[1:]]
        row[f"cached{name[5:]}_seconds"] = [round(one["cached"][i], 3) for one in rounds[1:]]
    print(json.dumps(row | {"load": os.getloadavg()[0]} | environment()))


if __name__ == "__main__":
    main()
