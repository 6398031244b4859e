"""A trained network as one file for other programs, verified against the network itself."""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vgg_search.models.files import (
    ModelError,
    PathLike,
    load_folder,
    save_weights,
    servable,
)
from vgg_search.storage.folder import CARD, replacing
from vgg_search.training.inference import own_cores, prepare
from vgg_search.training.model import VGG

# Largest difference in a probability that an export may show. Measured: 0 for safetensors and pt2,
# 1.2e-6 at most for ONNX (five networks), whose runtime adds up in another order.
TOLERANCE = 1e-5

Answer = Callable[[Tensor], Tensor]  # images (N, C, H, W) uint8 -> probabilities


def export(folder: PathLike, format: str, out: PathLike, images: np.ndarray) -> dict[str, Any]:
    """Write `out`, read it back, and compare with the network on `images` (N, C, H, W) uint8.

    pt2 and onnx hold the Servable, for any batch size; safetensors holds the weights, and the card
    in its header; state-dict the weights alone, by the names that the notebook's class has, which
    takes normalised images and gives logits. `out` appears only once verified. Raises ModelError.
    """
    writers = {
        "safetensors": _write_safetensors,
        "pt2": _write_pt2,
        "onnx": _write_onnx,
        "state-dict": _write_state_dict,
    }
    if format not in writers:
        raise ModelError(f"format must be one of {', '.join(writers)}, got {format}")
    network, _ = servable(folder)
    try:
        with replacing(Path(out)) as temporary:
            difference, changed = _compare(network, writers[format](folder, temporary), images)
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


@own_cores()
@torch.inference_mode()
def _compare(network: Answer, exported: Answer, images: np.ndarray) -> tuple[float, int]:
    """(largest difference in a probability, number of images of another class)."""
    batches = torch.from_numpy(images.copy()).split(100)
    expected, answers = (
        torch.cat([answer(batch) for batch in batches]) for answer in (network, exported)
    )
    changed = int((expected.argmax(1) != answers.argmax(1)).sum())
    return (expected - answers).abs().max().item(), changed


def _write_safetensors(folder: PathLike, path: Path) -> Answer:
    network, card = load_folder(folder)
    save_weights(path, network.state_dict(), {CARD: json.dumps(card)})
    return servable(path)[0]


def _write_state_dict(folder: PathLike, path: Path) -> Answer:
    model = servable(folder)[0]
    plain = _as_in_the_notebook(model.network)
    torch.save({name: tensor.contiguous() for name, tensor in plain.state_dict().items()}, path)
    plain.load_state_dict(torch.load(path, weights_only=True))

    def answer(images: Tensor) -> Tensor:
        scores: Tensor = plain["net"](prepare(images, model.network.resolution, model.info))
        return scores.softmax(1)

    return answer


def _as_in_the_notebook(network: VGG) -> nn.ModuleDict:
    """The same network and weights as its class has them, all in `net`: blocks of convolutions,
    each followed by ReLU, with the pool last; flatten; Linear, ReLU and Dropout; Linear."""
    layers: list[nn.Module] = []
    for name, layer in copy.deepcopy(network.layers).named_children():
        if name.startswith("block"):
            *convolutions, pool, relu = layer.children()
            layers.append(nn.Sequential(*convolutions, relu, pool))
        else:
            layers += layer.children() if name.startswith("hidden") else [layer]
    return nn.ModuleDict({"net": nn.Sequential(*layers)}).eval()


def _write_pt2(folder: PathLike, path: Path) -> Answer:
    module, traced = _traced(folder)
    with path.open("wb") as file:
        torch.export.save(torch.export.export(module, **traced), file)
    with path.open("rb") as file, warnings.catch_warnings():
        # torch 2.11's own, of how it reads; nothing writes there
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        # It unpickles here, but nothing that we did not just write
        return torch.export.load(file).module()


def _write_onnx(folder: PathLike, path: Path) -> Answer:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        install = "pip install 'vgg-search[export]'"
        raise ModelError(f"onnx export needs the extra 'export': {install}") from error
    module, traced = _traced(folder)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["probabilities"]}
    program: Any = torch.onnx.export(module, **traced, **names, dynamo=True, verbose=False)
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _traced(folder: PathLike) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The network, and what torch's exporters need to trace it for any batch size."""
    module, example = servable(folder)
    batch = torch.export.Dim("batch")
    return module, {"args": (torch.from_numpy(example),), "dynamic_shapes": ({0: batch},)}
