"""A trained network's answers to image files, and its scores on a test split."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vgg_search.data.decoding import ImageError
from vgg_search.models.files import Classifier, ModelError, PathLike, load_classifier
from vgg_search.models.images import read_for
from vgg_search.training.device import best_device, plan, to_device
from vgg_search.training.inference import logits, own_cores

WORST = 20  # images that `evaluate` names


def predict(model: Classifier | PathLike, paths: Sequence[PathLike]) -> list[dict[str, Any]]:
    """A row for each path, in order: file, class, probability, assumed, top3; or file, error."""
    classifier = model if isinstance(model, Classifier) else load_classifier(model)
    classes = classifier.info.classes
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            image, assumed = read_for(path, classifier.info)
        except ImageError as error:
            rows.append({"file": str(path), "error": str(error)})
            continue
        best = _logits(classifier, image[None])[0].softmax(0).topk(min(3, len(classes)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top3 = [(classes[i], probability) for i, probability in pairs]
        answer = {"class": top3[0][0], "probability": top3[0][1], "assumed": assumed}
        rows.append({"file": str(path), **answer, "top3": top3})
    return rows


def evaluate(
    model: Classifier | PathLike, images: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Scores on (N, C, H, W) uint8 images: test_accuracy, test_loss, per_class, confusion, worst.

    A Classifier answers where it is, one that is loaded here on a GPU if there is one.
    `confusion[true][predicted]` counts images. `worst` are the images of the highest loss, highest
    first. Raises ModelError for images of another kind.
    """
    if isinstance(model, Classifier):
        classifier = model
    else:
        classifier = load_classifier(model).to(best_device())
    classes = classifier.info.classes
    if images.shape[1] != classifier.info.channels or labels.max(initial=0) >= len(classes):
        raise ModelError(
            f"the images must have {classifier.info.channels} channels and {len(classes)} classes "
            f"as those the model was trained on, got {images.shape[1]} and {labels.max() + 1}"
        )
    scores, truth = _logits(classifier, images), torch.from_numpy(labels.astype(np.int64))
    size = len(classes)
    pairs = torch.bincount(truth * size + scores.argmax(1), minlength=size**2)
    confusion = pairs.reshape(size, size).numpy()
    losses = F.cross_entropy(scores, truth, reduction="none")
    worst = []
    for i in losses.topk(min(WORST, len(labels))).indices.tolist():
        probability, guess = scores[i].softmax(0).max(0)
        names = {"class": classes[labels[i]], "predicted": classes[guess]}
        worst.append({"image": i, **names, "probability": probability.item()})
    return {
        "test_accuracy": float(confusion.trace() / len(labels)),
        "test_loss": losses.mean().item(),
        "per_class": _per_class(classes, confusion),
        "confusion": confusion.tolist(),
        "worst": worst,
    }


def _per_class(classes: Sequence[str], confusion: np.ndarray) -> list[dict[str, Any]]:
    """A class's `accuracy` is its recall; None for a class without images, as `precision` is for
    one never predicted."""
    rows = []
    for name, hits, images, predictions in zip(
        classes, confusion.diagonal(), confusion.sum(1), confusion.sum(0), strict=True
    ):
        recall, precision = (float(hits / n) if n else None for n in (images, predictions))
        row = {"class": name, "images": int(images), "accuracy": recall, "precision": precision}
        rows.append(row)
    return rows


@own_cores()
def _logits(classifier: Classifier, images: np.ndarray) -> Tensor:
    """(N, C, H, W) uint8 -> (N, classes) float32 on the CPU."""
    device = next(classifier.parameters()).device
    resident = to_device(images, device)
    return logits(classifier.network, resident, classifier.info, plan("fp32", device)).cpu()
