"""A trained network as files: saved, found, loaded, asked, scored and exported.

A champion is a folder of two files: `model.safetensors` (the weights, in a format that cannot carry
code) and `model.json`, its card: `options` (they rebuild the network), `arch`,
`resolution`, `normalisation`, `classes`, and how it was made. No file from elsewhere is unpickled.
"""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vgg_search.data.splits import CLASSES, MEAN, STD
from vgg_search.errors import InputError
from vgg_search.models.images import SIDE, ImageError, read_image
from vgg_search.storage.folder import CARD, CHAMPION, RUNS, WEIGHTS, local_folder
from vgg_search.training.model import VGG

# Largest difference in a probability that an export may show. Measured: 0 for safetensors and pt2,
# 1.2e-6 at most for ONNX (five networks), whose runtime adds up in another order.
TOLERANCE = 1e-5
WORST = 20  # images that `evaluate` names

PathLike = str | Path
Weights = dict[str, Tensor]


class ModelError(InputError):
    """A model that cannot be found, read or exported."""


class Servable(nn.Module):
    """A network ready for use: images (N, 1, 28, 28) uint8 -> probabilities (N, classes)."""

    def __init__(self, network: VGG, card: dict[str, Any]) -> None:
        super().__init__()
        self.network, self.card, self.classes = network, card, tuple(card["classes"])
        self.mean = float(card["normalisation"]["mean"])
        self.std = float(card["normalisation"]["std"])

    def logits(self, images: Tensor) -> Tensor:
        """(N, 1, 28, 28) uint8 -> (N, classes)."""
        pixels = (images.float() / 255 - self.mean) / self.std
        size = (self.network.resolution, self.network.resolution)
        if size != (SIDE, SIDE):
            pixels = nn.functional.interpolate(pixels, size, mode="bilinear", align_corners=False)
        return self.network(pixels)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images).softmax(1)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path` that takes its place, at once, if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _save_weights(path: Path, weights: Weights, metadata: dict[str, str] | None = None) -> None:
    # Channels-last weights are not contiguous, and safetensors refuses those.
    save_file({name: t.cpu().contiguous() for name, t in weights.items()}, path, metadata)


def save_model(folder: PathLike, network: VGG, card: dict[str, Any]) -> None:
    """Write the champion files; the card, which makes the folder a champion, comes last."""
    defaults = {"normalisation": {"mean": MEAN, "std": STD}, "classes": list(CLASSES)}
    options: dict[str, Any] = {"options": network.options(), "resolution": network.resolution}
    options |= {"arch": options["options"]["arch"]}
    text = json.dumps({**defaults, **card, **options}, indent=2, allow_nan=False)
    with _replacing(Path(folder) / WEIGHTS) as temporary:
        _save_weights(temporary, network.state_dict())
    with _replacing(Path(folder) / CARD) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


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
        network = VGG(**card["options"]).eval()
        Servable(network, card)
    except OSError as error:
        missing = source if file.exists() else file
        raise ModelError(f"{missing} is missing or not readable") from error
    except SafetensorError as error:
        raise ModelError(f"{file} must be a whole safetensors file: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        rule = f"{source} must hold a model's card (JSON: options, normalisation, classes)"
        raise ModelError(f"{rule}, got {error!r}") from error
    _fit(network, weights, file)
    return network, card


def _fit(network: VGG, weights: Weights, file: Path) -> None:
    """Load strictly; torch's own message on a misfit takes a line for each key."""
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if wrong := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
        first = f"{wrong[0]}, wanted {wanted.get(wrong[0])}, got {found.get(wrong[0])}"
        raise ModelError(
            f"weights in {file} must fit the network of its card, {len(wrong)} do not: {first}"
        )
    network.load_state_dict(weights)


def find_model(
    model: PathLike | None = None, storage_path: PathLike = RUNS, tracking_uri: str | None = None
) -> Path:
    """What `load_folder` takes, for a model's name.

    `model` is a run's folder or name, a champion folder, an exported safetensors file,
    models:/NAME@ALIAS in the tracker, or None for the latest champion under `storage_path`.
    Raises ModelError, or ConnectionError if the tracker does not answer.
    """
    runs = local_folder(storage_path, "")  # a bucket's champion stays beside the driver
    if model is None:
        cards = runs.glob(f"*/{CHAMPION}/{CARD}")
        if latest := max(cards, key=lambda card: card.stat().st_mtime_ns, default=None):
            return latest.parent
        raise ModelError(f"no champion found under {runs}; run a search first or give --model")
    if str(model).startswith("models:/"):
        from vgg_search.tracking.registry import fetch_champion  # imports mlflow: seconds

        target = Path(tempfile.mkdtemp(prefix="vgg-search-"))
        atexit.register(shutil.rmtree, target, ignore_errors=True)
        try:
            return fetch_champion(str(model), tracking_uri, target)
        except ValueError as error:
            raise ModelError(str(error)) from error
    for folder in (Path(model), runs / model):
        if folder.is_file() or (folder / CARD).is_file():
            return folder
        if (folder / CHAMPION / CARD).is_file():
            return folder / CHAMPION
    raise ModelError(f"--model must be a run, a champion folder or models:/NAME@ALIAS, got {model}")


def servable(folder: PathLike) -> tuple[Servable, np.ndarray]:
    """The folder's network ready for use, in eval mode, and an example (2, 1, 28, 28) uint8."""
    # Two images: torch.export would take a batch of one for a constant.
    example = np.zeros((2, 1, SIDE, SIDE), np.uint8)
    example[:, :, 7:21, 7:21] = 255
    return Servable(*load_folder(folder)).eval().requires_grad_(False), example


def load(
    model: PathLike | None = None, storage_path: PathLike = RUNS, tracking_uri: str | None = None
) -> Servable:
    """The network that `find_model` finds, ready for use."""
    return servable(find_model(model, storage_path, tracking_uri))[0]


def _tensor(images: np.ndarray) -> Tensor:
    """(N, 28, 28) -> (N, 1, 28, 28); copied, for torch warns of arrays it may not write to."""
    return torch.from_numpy(images[:, None].copy())


def _logits(module: Servable, images: np.ndarray) -> Tensor:
    """(N, 28, 28) uint8 -> (N, classes) on the CPU, in batches of bounded memory."""
    batch = max(8, 500 * SIDE**2 // module.network.resolution**2)
    device = next(module.parameters()).device
    with torch.inference_mode():
        return torch.cat([module.logits(x.to(device)).cpu() for x in _tensor(images).split(batch)])


def predict(model: Servable | PathLike, paths: Sequence[PathLike]) -> list[dict[str, Any]]:
    """A row for each path, in order: file, class, probability, assumed, top3; or file, error."""
    module = model if isinstance(model, Servable) else servable(model)[0]
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            image, assumed = read_image(path)
        except ImageError as error:
            rows.append({"file": str(path), "error": str(error)})
            continue
        best = _logits(module, image[None])[0].softmax(0).topk(3)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top3 = [(module.classes[i], probability) for i, probability in pairs]
        named = {"class": top3[0][0], "probability": top3[0][1], "assumed": assumed}
        rows.append({"file": str(path), **named, "top3": top3})
    return rows


def evaluate(model: Servable | PathLike, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Scores on (N, 28, 28) uint8 images: test_accuracy, test_loss, per_class, confusion, worst.

    `confusion[true][predicted]` counts images. A class's `accuracy` is its recall; that is None
    for a class without images, as `precision` is for one never predicted. `worst` are the images
    of the highest loss, highest first.
    """
    module = model if isinstance(model, Servable) else servable(model)[0]
    logits, truth = _logits(module, images), torch.from_numpy(labels.astype(np.int64))
    size = len(module.classes)
    pairs = torch.bincount(truth * size + logits.argmax(1), minlength=size**2)
    confusion = pairs.reshape(size, size).numpy()
    per_class = []
    for name, hits, actual, guessed in zip(
        module.classes, confusion.diagonal(), confusion.sum(1), confusion.sum(0), strict=True
    ):
        recall, precision = (float(hits / n) if n else None for n in (actual, guessed))
        share = {"accuracy": recall, "precision": precision}
        per_class.append({"class": name, "images": int(actual), **share})
    losses = nn.functional.cross_entropy(logits, truth, reduction="none")
    worst = []
    for i in losses.topk(min(WORST, len(labels))).indices.tolist():
        probability, guess = logits[i].softmax(0).max(0)
        names = {"class": module.classes[labels[i]], "predicted": module.classes[guess]}
        worst.append({"image": i, **names, "probability": probability.item()})
    return {
        "test_accuracy": float(confusion.trace() / len(labels)),
        "test_loss": losses.mean().item(),
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "worst": worst,
    }


def export(folder: PathLike, format: str, out: PathLike, images: np.ndarray) -> dict[str, Any]:
    """Write `out`, read it back, and compare with the network on `images` (n, 28, 28) uint8.

    pt2 and onnx hold the Servable, for any batch size; safetensors holds the weights, and the card
    in its header. `out` appears only once verified. Raises ModelError.
    """
    writers = {"safetensors": _write_safetensors, "pt2": _write_pt2, "onnx": _write_onnx}
    if format not in writers:
        raise ModelError(f"format must be one of {', '.join(writers)}, got {format}")
    module, example = servable(folder)
    batch = torch.export.Dim("batch")
    served = {"args": (torch.from_numpy(example),), "dynamic_shapes": ({0: batch},)}
    try:
        with _replacing(Path(out)) as temporary:
            run = writers[format](module, temporary, served)
            with torch.inference_mode():
                pairs = [(module(x), run(x)) for x in _tensor(images).split(100)]
            wanted, got = (torch.cat(side) for side in zip(*pairs, strict=True))
            difference = (wanted - got).abs().max().item()
            changed = int((wanted.argmax(1) != got.argmax(1)).sum())
            if changed or not difference <= TOLERANCE:
                raise ModelError(
                    f"the {format} file must agree with the network to {TOLERANCE:g} on all "
                    f"{len(images)} images, got a difference of {difference:.2g} and {changed} "
                    f"changed classes; {out} was not written"
                )
            size = temporary.stat().st_size
    except OSError as error:
        raise ModelError(f"{out} cannot be written: {error.strerror or error}") from error
    verified = {"images": len(images), "max_difference": difference, "changed_classes": changed}
    return {"file": str(out), "format": format, "bytes": size, **verified}


def _write_safetensors(module: Servable, path: Path, _: dict[str, Any]) -> Callable:
    _save_weights(path, module.network.state_dict(), {CARD: json.dumps(module.card)})
    return servable(path)[0]


def _write_pt2(module: Servable, path: Path, served: dict[str, Any]) -> Callable:
    with path.open("wb") as file:
        torch.export.save(torch.export.export(module, **served), file)
    with path.open("rb") as file:  # torch unpickles here, but nothing that we did not just write
        return torch.export.load(file).module()


def _write_onnx(module: Servable, path: Path, served: dict[str, Any]) -> Callable:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        install = "pip install 'vgg-search[export]'"
        raise ModelError(f"onnx export needs the extra 'export': {install}") from error
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["probabilities"]}
    program: Any = torch.onnx.export(module, **served, **names, dynamo=True, verbose=False)
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
