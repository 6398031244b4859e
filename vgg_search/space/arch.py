"""What an architecture is, and what it costs, by arithmetic alone: no torch, an instant answer.

An `arch` is a tuple of `(num_convs, out_channels)` pairs, one a block, as in the notebook
"Networks Using Blocks (VGG)"; the paper is Simonyan and Zisserman, arXiv:1409.1556, section 2.1.
"""

from collections.abc import Sequence
from itertools import pairwise

Arch = tuple[tuple[int, int], ...]

NOTEBOOK_ARCH: Arch = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))


def as_arch(pairs: Sequence[Sequence[int]]) -> Arch:
    """The tuple form of an arch that came as lists (YAML, JSON)."""
    return tuple((int(num_convs), int(out_channels)) for num_convs, out_channels in pairs)


def most_blocks(resolution: int) -> int:
    """How many times images of that side, px, can be halved."""
    return resolution.bit_length() - 1


def check_arch(arch: Arch, resolution: int) -> None:
    """Raise ValueError unless `arch` can be built: each block halves the image, 1 px must stay."""
    if not arch:
        raise ValueError("num_blocks must be >= 1, got 0")
    most = most_blocks(resolution)
    if len(arch) > most:
        raise ValueError(
            f"num_blocks must be <= {most} at resolution {resolution}, got {len(arch)}"
        )
    for num_convs, out_channels in arch:
        if num_convs < 1:
            raise ValueError(f"num_convs must be >= 1, got {num_convs}")
        if out_channels < 1:
            raise ValueError(f"out_channels must be >= 1, got {out_channels}")


def block_values(arch: Arch) -> dict[str, int]:
    """num_convs_1, out_channels_1, num_convs_2, ... by the names that a sampler sees."""
    return {
        f"{name}_{i}": value
        for i, block in enumerate(arch, 1)
        for name, value in zip(("num_convs", "out_channels"), block, strict=True)
    }


def depth(arch: Arch) -> int:
    """Number of convolutions."""
    return sum(num_convs for num_convs, _ in arch)


def describe(arch: Arch) -> str:
    """A short name: ((1, 32), (2, 64)) is "1x32-2x64"."""
    return "-".join(f"{num_convs}x{out_channels}" for num_convs, out_channels in arch)


def network_costs(
    arch: Arch,
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    resolution: int = 28,
    hidden_features: int = 4096,
    num_hidden: int = 2,
    batch_norm: bool = False,
    kernel_size: int = 3,
    dropout: float = 0.0,  # noqa: ARG001  has no weights
) -> tuple[int, int]:
    """(trainable parameters, FLOPs of one image's forward pass), for the arguments of `VGG`.

    Weights, biases, batch-norm scales and shifts; 2 FLOPs a multiply-add of Conv and Linear.
    """
    num_params = flops = 0
    channels, side = in_channels, resolution
    for num_convs, out_channels in arch:
        for _ in range(num_convs):
            weights = kernel_size**2 * channels * out_channels
            # Before a batch norm there is no bias; the norm has a scale and a shift
            num_params += weights + out_channels * (2 if batch_norm else 1)
            flops += 2 * weights * side * side
            channels = out_channels
        side //= 2
    for inputs, outputs in pairwise(
        (channels * side * side, *[hidden_features] * num_hidden, num_classes)
    ):
        num_params += inputs * outputs + outputs
        flops += 2 * inputs * outputs
    return num_params, flops
