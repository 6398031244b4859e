"""Make the bundled sample: 6,000 training and 2,000 test images of Fashion-MNIST, stratified.

    python experiments/make_sample.py DATA_DIR [FILE]

DATA_DIR holds Fashion-MNIST in torchvision's layout. The same input gives the same arrays.
`train_index` and `t10k_index` say where in the published files each image comes from.
"""

import sys
from pathlib import Path

import numpy as np

from vgg_search.data.bundled import SAMPLE
from vgg_search.data.fashion_mnist import PREFIXES, SOURCE, find_split
from vgg_search.data.source import Reading, Split
from vgg_search.data.splits import stratified_order

SEED = 1708
SIZES: dict[Split, int] = {"train": 6_000, "test": 2_000}


def make_sample(data_dir: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for split, size in SIZES.items():
        folder = find_split(data_dir, split)
        if folder is None:
            raise SystemExit(f"DATA_DIR must hold the {split} files of Fashion-MNIST: {data_dir}")
        _, images, labels, _ = SOURCE.load(folder, split, Reading())
        index = np.sort(stratified_order(labels, SEED)[:size])
        prefix = PREFIXES[split]
        arrays[f"{prefix}_images"] = images[index, 0]
        arrays[f"{prefix}_labels"] = labels[index]
        arrays[f"{prefix}_index"] = index.astype(np.uint16)
    return arrays


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise SystemExit("usage: python experiments/make_sample.py DATA_DIR [FILE]")
    file = Path(sys.argv[2]) if len(sys.argv) == 3 else SAMPLE
    np.savez_compressed(file, **make_sample(Path(sys.argv[1])))
    print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
