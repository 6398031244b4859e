"""Small champions for the tests of what is done with one: weights as initialised, on the card what
training would have written."""

import os
from pathlib import Path

import numpy as np
import torch

from vgg_search.data.fashion_mnist import SOURCE
from vgg_search.data.splits import load_test
from vgg_search.models.files import save_model
from vgg_search.training.model import VGG

INFO = SOURCE.info
DATASET = INFO.name if os.environ.get("VGG_SEARCH_DATA_DIR") else "sample"


def network(resolution: int = 28) -> VGG:
    """Weights as initialised; the batch norms have seen some numbers, so that they matter."""
    torch.manual_seed(0)
    vgg = VGG(
        ((1, 4), (2, 8)), resolution=resolution, hidden_features=16, num_hidden=1, batch_norm=True
    )
    vgg(torch.randn(64, 1, resolution, resolution) * 3 + 1)
    return vgg


def save_champion(folder: Path, resolution: int = 28) -> Path:
    """The folder, which then holds that network."""
    save_model(folder, network(resolution), INFO, {"study": "a", "metrics": {"val_accuracy": 1}})
    return folder


def some_test_images(count: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """The first images of the test split, and their labels."""
    images, labels = load_test(DATASET)
    return images[:count], labels[:count]
