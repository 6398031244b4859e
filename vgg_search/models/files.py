"""A trained network as files, and as a module that is ready for use.

A champion is a folder of two files: `model.safetensors` (the weights, in a format that cannot carry
code) and `model.json`, its card: `options` (they rebuild the network), `arch`,
`resolution`, `normalisation`, `classes`, and how it was made. No file from elsewhere is unpickled.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vgg_search.data.source import DatasetInfo
from vgg_search.errors import InputError
from vgg_search.records import AUTO
from vgg_search.storage.checksums import RESTORE, check_card, with_checksums
from vgg_search.storage.folder import CARD, WEIGHTS, replacing
from vgg_search.training.inference import prepare
from vgg_search.training.model import VGG

PathLike = str | Path
# Fields of DatasetInfo on a card
IMAGES = ("side", "flip", "light_on_dark", "drawn_test", "max_images", "skip_broken")
Weights = dict[str, Tensor]
CURE = f"{RESTORE}, or export the model again"


class ModelError(InputError):
    """A model that cannot be found, read or exported."""


class Classifier(nn.Module):
    """A network with its preprocessing: images (N, C, H, W) uint8 -> logits (N, classes).

    Raises TypeError for images of another type: whether those are scaled cannot be known.
    """

    def __init__(self, network: VGG, info: DatasetInfo) -> None:
        super().__init__()
        self.network, self.info = network, info

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {str(images.dtype).removeprefix('torch.')}")
        return self.network(prepare(images, self.network.resolution, self.info))


class Servable(Classifier):
    """What is registered and exported: the same, but for probabilities instead of logits."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(1)


def save_model(folder: PathLike, network: VGG, info: DatasetInfo, card: dict[str, Any]) -> None:
    """Write the champion files; the card, which makes the folder a champion, comes last.

    `card` says how the network was made, `info` is of the data that it was trained on.
    """
    usage = {"normalisation": {"mean": info.mean, "std": info.std}, "classes": list(info.classes)}
    usage["images"] = {name: getattr(info, name) for name in IMAGES}
    options = network.options()
    build = {"options": options, "resolution": network.resolution, "arch": options["arch"]}
    whole = json.loads(json.dumps({**usage, **card, **build}, allow_nan=False))
    with replacing(Path(folder) / WEIGHTS) as temporary:
        save_weights(temporary, network.state_dict())
    with replacing(Path(folder) / CARD) as temporary:
        text = json.dumps(with_checksums(whole, Path(folder)), indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")


def save_weights(path: Path, weights: Weights, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file. Channels-last weights are not contiguous, which it refuses. Its own
    `save_file` makes a file that no group can read, whatever the umask."""
    path.write_bytes(save({name: t.cpu().contiguous() for name, t in weights.items()}, metadata))


def load_folder(folder: PathLike) -> tuple[VGG, dict[str, Any]]:
    """The network, in eval mode on the CPU, and its card.

    `folder` is a champion folder, or a safetensors file that `export` wrote, with the card inside.
    Raises ModelError, in one line, on a missing or damaged file and on weights that do not fit.
    """
    folder = Path(folder)
    file, source = (folder / WEIGHTS, folder / CARD) if folder.is_dir() else (folder, folder)
    try:
        with safe_open(file, framework="pt") as opened:
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            header = opened.metadata() or {}
        card = json.loads(header[CARD] if source == file else source.read_text(encoding="utf-8"))
        if source != file and (changed := check_card(card, folder)):
            raise ModelError(f"{changed} in {folder} is not as it was written: {CURE}")
        network = VGG(**card["options"]).eval()
        info_of(card)
    except ModelError:
        raise
    except OSError as error:
        missing = source if file.exists() else file
        raise ModelError(f"{missing} is missing or not readable") from error
    except SafetensorError as error:
        raise ModelError(f"{file} must be a whole safetensors file: {error}; {CURE}") from error
    except (KeyError, TypeError, ValueError) as error:
        rule = f"{source} must hold a model's card (JSON: options, normalisation, classes)"
        raise ModelError(f"{rule}, got {error!r}; {CURE}") from error
    _load_weights(network, weights, file)
    return network, card


def info_of(card: dict[str, Any]) -> DatasetInfo:
    """What a card says of the data. Raises KeyError, TypeError or ValueError."""
    mean, std = (card["normalisation"][name] for name in ("mean", "std"))
    if not isinstance(mean, list):  # as older cards have it, of Fashion-MNIST
        mean, std = [mean], [std]
    return DatasetInfo(
        name=str(card.get("dataset", AUTO)),
        classes=tuple(card["classes"]),
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        **{"light_on_dark": True} | card.get("images", {}),
    )


def load_classifier(folder: PathLike) -> Classifier:
    """The folder's network, ready for use: in eval mode, on the CPU. Raises as `load_folder`."""
    network, card = load_folder(folder)
    return Classifier(network, info_of(card)).eval().requires_grad_(False)


def servable(folder: PathLike) -> tuple[Servable, np.ndarray]:
    """The folder's network with probabilities, and example images (2, C, 28, 28) uint8."""
    classifier = load_classifier(folder)
    # Two images: torch.export would take a batch of one for a constant.
    side = classifier.info.side
    example = np.zeros((2, classifier.info.channels, side, side), np.uint8)
    inside = slice(side // 4, 3 * side // 4)
    example[:, :, inside, inside] = 255
    return Servable(classifier.network, classifier.info).eval(), example


def _load_weights(network: VGG, weights: Weights, file: Path) -> None:
    """Load strictly; torch's own message on a misfit takes a line for each key."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    names = sorted(expected | shapes)
    if wrong := [name for name in names if expected.get(name) != shapes.get(name)]:
        first = f"{wrong[0]}, wanted {expected.get(wrong[0])}, got {shapes.get(wrong[0])}"
        raise ModelError(
            f"weights in {file} must fit the network of its card, {len(wrong)} do not: {first}"
        )
    network.load_state_dict(weights)
