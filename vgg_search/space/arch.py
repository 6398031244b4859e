"""What an architecture is, and what it costs, by arithmetic alone: no torch, an instant answer.

An `arch` is a tuple of `(num_convs, out_channels)` pairs, one a block, as in the notebook
"Networks Using Blocks (VGG)"; the paper is Simonyan and Zisserman, arXiv:1409.1556, section 2.1.
"""

from collections.abc import Iterator, Sequence

Arch = tuple[tuple[int, int], ...]

NOTEBOOK_ARCH: Arch = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))


def as_arch(pairs: Sequence[Sequence[int]]) -> Arch:
    """The tuple form of an arch that came as lists (YAML, JSON)."""
    return tuple((int(num_convs), int(out_channels)) for num_convs, out_channels in pairs)


def check_arch(arch: Arch, resolution: int) -> None:
    """Raise ValueError unless `arch` can be built: each block halves the image, 1 px must stay."""
    if not arch:
        raise ValueError("num_blocks must be >= 1, got 0")
    most = resolution.bit_length() - 1
    if len(arch) > most:
        raise ValueError(
            f"num_blocks must be <= {most} at resolution {resolution}, got {len(arch)}"
        )
    for num_convs, out_channels in arch:
        if num_convs < 1:
            raise ValueError(f"num_convs must be >= 1, got {num_convs}")
        if out_channels < 1:
            raise ValueError(f"out_channels must be >= 1, got {out_channels}")


def depth(arch: Arch) -> int:
    """Number of convolutions."""
    return sum(num_convs for num_convs, _ in arch)


def width(arch: Arch) -> int:
    """Widest out_channels."""
    return max(out_channels for _, out_channels in arch)


def describe(arch: Arch) -> str:
    """A short name: ((1, 32), (2, 64)) is "1x32-2x64"."""
    return "-".join(f"{num_convs}x{out_channels}" for num_convs, out_channels in arch)


def _layers(
    arch: Arch,
    num_classes: int,
    in_channels: int,
    resolution: int,
    hidden_features: int,
    num_hidden: int,
) -> Iterator[tuple[int, int, int, bool]]:
    """(inputs, outputs, positions, is a convolution) of each weighted layer, in order."""
    channels, side = in_channels, resolution
    for num_convs, out_channels in arch:
        for _ in range(num_convs):
            yield 9 * channels, out_channels, side * side, True
            channels = out_channels
        side //= 2
    features = channels * side * side
    for _ in range(num_hidden):
        yield features, hidden_features, 1, False
        features = hidden_features
    yield features, num_classes, 1, False


def network_costs(
    arch: Arch,
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    resolution: int = 28,
    hidden_features: int = 4096,
    num_hidden: int = 2,
    batch_norm: bool = False,
    dropout: float = 0.0,  # noqa: ARG001  has no weights
) -> tuple[int, int]:
    """(trainable parameters, FLOPs of one image's forward pass), for the arguments of `VGG`.

    Weights, biases, batch-norm scales and shifts; 2 FLOPs a multiply-add of Conv and Linear.
    """
    num_params = flops = 0
    for inputs, outputs, positions, is_conv in _layers(
        arch, num_classes, in_channels, resolution, hidden_features, num_hidden
    ):
        # A convolution before a batch norm has no bias, the norm has a scale and a shift.
        num_params += inputs * outputs + outputs * (2 if is_conv and batch_norm else 1)
        flops += 2 * inputs * outputs * positions
    return num_params, flops
