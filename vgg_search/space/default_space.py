"""What is searched unless somebody says otherwise, and the network to compare with."""

from collections.abc import Mapping
from typing import Any

from vgg_search.space.arch import Arch, most_blocks
from vgg_search.space.data_shape import ASSUMED

SPACE: dict[str, Any] = {
    "num_blocks": [1, 3],
    "num_convs": [1, 2],
    "out_channels": [16, 32, 64],
    "hidden_features": {"choices": [64, 128, 256]},
    "num_hidden": 1,
    "batch_norm": [True, False],
    "dropout": [0.0, 0.5],
    "lr": [0.02, 0.4],
    "weight_decay": [1e-5, 2e-3],
    "max_flops": 20_000_000,
}
ARCH: Arch = ((1, 16), (1, 32), (2, 64))
# The notebook's kind of network, at a size for two cores: no batch norm, half dropped out, and of
# the learning rates here the nearest to its 0.01
BASELINE: dict[str, Any] = {"arch": ARCH, "batch_norm": False, "dropout": 0.5, "lr": 0.02}


def baseline_for(fields: Mapping[str, Any]) -> Arch | dict[str, Any]:
    """The baseline unless there is another, by a `Config`'s fields: in a space of somebody's own,
    which may not have these values, the arch alone."""
    return BASELINE if fields["space"] == SPACE else ARCH


def fitted_space(resolution: int) -> dict[str, Any]:
    """The space at another resolution, px, than the one it was made for: no deeper than that
    allows, and with as many FLOPs a pixel."""
    (low, high), most = SPACE["num_blocks"], most_blocks(resolution)
    max_flops = round(SPACE["max_flops"] * (resolution / ASSUMED.resolution) ** 2)
    blocks = [low, high] if high <= most else list(range(low, most + 1))
    return SPACE | {"num_blocks": blocks, "max_flops": max_flops}


def fitted_baseline(baseline: Any, resolution: int) -> Any:
    """The default baseline, or its arch, no deeper than the resolution allows; another as it is."""
    arch = ARCH[: most_blocks(resolution)]
    if baseline == BASELINE:
        return BASELINE | {"arch": arch}
    return arch if baseline == ARCH else baseline
