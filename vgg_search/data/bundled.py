"""The bundled sample of Fashion-MNIST, so that a machine without the data can run and test.

Its file, licence and origin are in `sample/`; `experiments/make_sample.py` made it.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from vgg_search.data.fashion_mnist import PREFIXES, FashionMNIST
from vgg_search.data.source import LabelledImages, Reading, Source, Split

SAMPLE = Path(__file__).parent / "sample" / "fashion-mnist-sample.npz"


class BundledSample(Source):
    """6,000 training and 2,000 test images, stratified."""

    info = replace(FashionMNIST.info, name="sample")
    is_sample = True

    def locate(self, data_dir: str | Path | None, split: Split) -> Path:
        """Always in the package: a folder that was named is for other data sets."""
        return SAMPLE

    def load(self, location: Path, split: Split, reading: Reading) -> LabelledImages:
        with np.load(location, allow_pickle=False) as arrays:
            prefix = PREFIXES[split]
            images, labels = arrays[f"{prefix}_images"], arrays[f"{prefix}_labels"]
        return LabelledImages(self.info, images[:, None], labels)


SOURCE = BundledSample()
SOURCES = {"sample": SOURCE}
