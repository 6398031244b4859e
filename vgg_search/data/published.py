"""Published data sets that torchvision reads, each a row of SOURCES.

MNIST: LeCun et al. 1998; KMNIST: Clanuwat et al., arXiv:1812.01718; EMNIST: Cohen et al.,
arXiv:1702.05373; CIFAR: Krizhevsky 2009; SVHN: Netzer et al. 2011. CIFAR's files are pickles, which
torchvision reads only where their digests are those of the published ones.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vgg_search.data.download import download
from vgg_search.data.source import (
    DATA_DIR,
    DataError,
    DatasetInfo,
    LabelledImages,
    Reading,
    Source,
    Split,
    as_labels,
    statistics,
)
from vgg_search.machine import cache_folder


@dataclass(frozen=True)
class Published(Source):
    """A data set by its class in torchvision.datasets."""

    name: str
    kind: str
    split_by: Literal["train", "split"] = "train"
    """The class's argument that says which split: a truth value or its name."""
    part: str | None = None
    """Which of several data sets that the class reads."""
    is_characters: bool = False
    """Which a mirror image changes."""
    is_transposed: bool = False
    """Whether the files hold rows as columns."""

    def locate(self, data_dir: str | Path | None, split: Split) -> Path:
        """In `data_dir`, else where VGG_SEARCH_DATA_DIR says, else the cache, else a download."""
        for origin, named in (("data_dir", data_dir), (DATA_DIR, os.environ.get(DATA_DIR))):
            if named:
                root = Path(named).expanduser()
                if reason := self._trouble(root, split):
                    rule = f"{origin} must hold {self.name} as torchvision's {self.kind} has it"
                    raise DataError(f"{rule}, got {named}: {reason}")
                return root
        root = cache_folder()
        if self._trouble(root, split):
            options = [self._options(split) for split in ("train", "test")]
            download(self.kind, "", "*", root, options)
        return root

    def load(self, location: Path, split: Split, reading: Reading) -> LabelledImages:
        data = self._open(location, split)
        images = np.asarray(data.data)
        if images.ndim == 3:
            images = (images.swapaxes(1, 2) if self.is_transposed else images)[:, None]
        elif images.shape[3] == 3:
            images = images.transpose(0, 3, 1, 2)
        images = np.ascontiguousarray(images)
        labels = np.asarray(data.labels if hasattr(data, "labels") else data.targets)
        classes = tuple(getattr(data, "classes", map(str, range(10))))
        if classes[0] == "N/A":  # EMNIST's letters count from 1
            labels, classes = labels - 1, classes[1:]
        mean, std = statistics(images)
        info = DatasetInfo(
            name=self.name,
            classes=classes,
            mean=mean,
            std=std,
            side=images.shape[-1],
            flip=not self.is_characters,
            light_on_dark=len(mean) == 1,
        )
        return LabelledImages(info, images, as_labels(labels))

    def _options(self, split: Split) -> dict[str, Any]:
        part = {"split": self.part} if self.part else {}
        return part | {self.split_by: split if self.split_by == "split" else split == "train"}

    def _open(self, root: Path, split: Split) -> Any:
        """torchvision's data set, with its images in memory. Raises DataError, which says why."""
        import torchvision.datasets  # brings torch: seconds

        try:
            return getattr(torchvision.datasets, self.kind)(str(root), **self._options(split))
        except Exception as error:  # of damaged files it makes many kinds
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(reason) from error

    def _trouble(self, root: Path, split: Split) -> str:
        """Why torchvision cannot read the split in `root`; "" if it can."""
        try:
            self._open(root, split)
        except DataError as error:
            return str(error)
        return ""


SOURCES = {
    source.name: source
    for source in (
        Published("mnist", "MNIST", is_characters=True),
        Published("kmnist", "KMNIST", is_characters=True),
        Published(
            "emnist-balanced", "EMNIST", part="balanced", is_characters=True, is_transposed=True
        ),
        Published(
            "emnist-letters", "EMNIST", part="letters", is_characters=True, is_transposed=True
        ),
        Published("cifar10", "CIFAR10"),
        Published("cifar100", "CIFAR100"),
        Published("svhn", "SVHN", split_by="split", is_characters=True),
    )
}
