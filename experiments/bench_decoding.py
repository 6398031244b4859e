"""How fast is a folder of images read, the first time and from the cache?

    python experiments/bench_decoding.py FOLDER [GREY_PNGS]

FOLDER holds class folders, or is made: GREY_PNGS files (60000) of Fashion-MNIST. Printed: images a
second of Pillow alone, in a process a core; of the first reading, with listing, sizes, decoding,
splitting; seconds of three readings from the cache. Cost: a minute.
"""

import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from environment import environment
from PIL import Image

from vgg_search.data.splits import load_splits


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


def main() -> None:
    folder = Path(sys.argv[1])
    if not folder.exists():
        make(folder, int(sys.argv[2]) if len(sys.argv) > 2 else 60_000)
    files = [path for path in folder.rglob("*.*") if path.is_file()]
    began = time.perf_counter()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, files, chunksize=100))
    pillow, seconds = len(files) / (time.perf_counter() - began), []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for _ in range(4):
            began = time.perf_counter()
            load_splits(str(folder))
            seconds.append(time.perf_counter() - began)
    row = {"files": len(files), "pillow": round(pillow), "first": round(len(files) / seconds[0])}
    row["from_cache_seconds"] = [round(second, 3) for second in seconds[1:]]
    print(json.dumps(row | {"load": os.getloadavg()[0]} | environment()))


if __name__ == "__main__":
    main()
