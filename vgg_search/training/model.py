"""VGG-style networks: blocks of 3x3 convolutions that each halve the image, then linear layers.

From the notebook "Networks Using Blocks (VGG)"; paper: Simonyan and Zisserman, arXiv:1409.1556.
Shapes: N images, C channels, H and W the image's sides, always equal here. What an arch is, and
what it costs, is in `arch`.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vgg_search.space.arch import as_arch, check_arch, network_costs


def vgg_block(
    in_channels: int,
    num_convs: int,
    out_channels: int,
    kernel_size: int = 3,
    batch_norm: bool = False,
) -> nn.Sequential:
    """`num_convs` convolutions with ReLU, then a max pool: NCHW -> (N, out_channels, H/2, W/2).

    The last ReLU comes after the pool: both orders give the same outputs and the same gradients,
    for both operations are monotonic, and this one has a quarter of the pixels to go through.
    """
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        # A batch norm subtracts the mean, and any bias with it.
        layers += [
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                padding=kernel_size // 2,
                bias=not batch_norm,
            )
        ]
        layers += [nn.BatchNorm2d(out_channels)] if batch_norm else []
        layers += [nn.ReLU(inplace=True)]
        in_channels = out_channels
    layers.insert(-1, nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """The network of an arch: normalised images (N, in_channels, R, R) -> logits (N, num_classes).

    Raises ValueError for an arch that cannot be built at this resolution R.
    """

    def __init__(
        self,
        arch: Sequence[Sequence[int]],
        num_classes: int = 10,
        in_channels: int = 1,
        resolution: int = 28,
        hidden_features: int = 4096,
        num_hidden: int = 2,
        dropout: float = 0.5,
        batch_norm: bool = False,
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        self.arch, self.resolution = as_arch(arch), resolution
        check_arch(self.arch, resolution)
        head = {
            "num_classes": num_classes,
            "in_channels": in_channels,
            "resolution": resolution,
            "hidden_features": hidden_features,
            "num_hidden": num_hidden,
            "kernel_size": kernel_size,
        }
        self._options: dict[str, Any] = {**head, "dropout": dropout, "batch_norm": batch_norm}
        self.num_params, self.flops_per_image = network_costs(
            self.arch, **head, batch_norm=batch_norm
        )

        self.layers = self._build()
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def _build(self) -> nn.Sequential:
        """Blocks, then the linear layers, by name."""
        options = self._options
        kind = {name: options[name] for name in ("kernel_size", "batch_norm")}
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = options["in_channels"]
        for i, (num_convs, out_channels) in enumerate(self.arch, 1):
            layers[f"block{i}"] = vgg_block(channels, num_convs, out_channels, **kind)
            channels = out_channels
        layers["flatten"] = nn.Flatten()
        features = channels * (self.resolution >> len(self.arch)) ** 2
        for i in range(1, options["num_hidden"] + 1):
            layers[f"hidden{i}"] = nn.Sequential(
                nn.Linear(features, options["hidden_features"]),
                nn.ReLU(inplace=True),
                nn.Dropout(options["dropout"]),
            )
            features = options["hidden_features"]
        layers["output"] = nn.Linear(features, options["num_classes"])
        return nn.Sequential(layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON: VGG(**options) is a network like this."""
        return {"arch": [list(block) for block in self.arch], **self._options}

    def layer_summary(self, x_shape: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
        """(name, output shape) of each block and layer for images of `x_shape` (NCHW)."""
        expected = (self._options["in_channels"], self.resolution, self.resolution)
        if tuple(x_shape[1:]) != expected:
            raise ValueError(f"x_shape must be (N, {', '.join(map(str, expected))}), got {x_shape}")
        # By arithmetic: a run takes half a second at 224 px, the meta device seconds of imports.
        shapes: list[tuple[int, ...]] = []
        for i, (_, out_channels) in enumerate(self.arch, 1):
            shapes.append((out_channels, self.resolution >> i, self.resolution >> i))
        shapes.append((math.prod(shapes[-1]),))
        shapes += [(self._options["hidden_features"],)] * self._options["num_hidden"]
        shapes.append((self._options["num_classes"],))
        names = [name for name, _ in self.layers.named_children()]
        return [(name, (x_shape[0], *shape)) for name, shape in zip(names, shapes, strict=True)]


def build(options: dict[str, Any], seed: int) -> VGG:
    """VGG(**options) with initial weights drawn from `seed`; torch's global generator is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return VGG(**options)
