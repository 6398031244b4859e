"""From images as bytes to logits and scores: in validation, in the test, and in use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from vgg_search.data.source import DatasetInfo
from vgg_search.machine import cores
from vgg_search.records import EPOCH_METRICS, METRIC
from vgg_search.training.device import Plan
from vgg_search.training.model import VGG

VAL_METRICS = tuple(name for name in EPOCH_METRICS if name.startswith("val_"))


@contextmanager
def own_cores() -> Iterator[None]:
    """As many threads as this process may use cores, where nobody has set their number; torch by
    itself does not know the quota of a container."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prepare(images: Tensor, resolution: int, info: DatasetInfo) -> Tensor:
    """Bytes (N, C, H, W) -> normalised floats (N, C, resolution, resolution)."""
    pixels = images.float()
    for plane, mean, std in zip(pixels.unbind(1), info.mean, info.std, strict=True):
        plane.mul_(1 / (255 * std)).sub_(mean / std)
    size = (resolution, resolution)
    if images.shape[-2:] != size:
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
    return pixels


@torch.no_grad()
def logits(network: VGG, images: Tensor, info: DatasetInfo, plan: Plan) -> Tensor:
    """Logits (N, classes), float32, of images (N, C, H, W) uint8 on the network's device.

    In eval mode, in batches of bounded memory.
    """
    training = network.training
    network.eval()
    batches = images.split(plan.evaluation_batch(network.resolution))
    with plan.autocast():
        parts = [network(prepare(batch, network.resolution, info)) for batch in batches]
    network.train(training)
    return torch.cat(parts).float()


def validate(
    network: VGG, images: Tensor, labels: Tensor, info: DatasetInfo, plan: Plan
) -> dict[str, float]:
    """VAL_METRICS over all images (N, C, H, W) uint8, none dropped."""
    scores = logits(network, images, info, plan)
    hits = (scores.argmax(1) == labels).sum()
    # One wait for the device
    loss, correct = torch.stack([F.cross_entropy(scores, labels), hits]).tolist()
    return {"val_loss": loss, METRIC: correct / len(labels)}
