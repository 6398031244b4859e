"""Random changes of training images, a whole batch at a time, on the device where they lie.

Every random number of an epoch is drawn before it starts, on the CPU, into one table with a column
an image: the same numbers on every device, and no call to a generator inside the epoch, which a
CUDA graph could not repeat.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

ORDER, FLIP, SHIFT_Y, SHIFT_X, ERASE_Y, ERASE_X = range(6)


def draw(count: int, side: int, crop: int, erase: int, generator: torch.Generator) -> Tensor:
    """The table of an epoch, (6, count) int64: which image comes, and how it is changed.

    Shifts lie in 0..2*crop, corners of erased squares in 0..side-erase.
    """
    rows = [torch.randperm(count, generator=generator)]
    for most in (1, 2 * crop, 2 * crop, side - erase, side - erase):
        rows.append(torch.randint(most + 1, (count,), generator=generator))
    return torch.stack(rows)


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the images (N, C, H, W) left to right where `flipped` (N,) is not 0."""
    return torch.where(flipped.bool()[:, None, None, None], images.flip(3), images)


def shift(images: Tensor, top: Tensor, left: Tensor, crop: int) -> Tensor:
    """Cut each image (N, C, H, W) out of itself with `crop` black pixels around, at (top, left)."""
    side = images.shape[2]
    windows = F.pad(images, (crop,) * 4).unfold(2, side, 1).unfold(3, side, 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def blank(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Blacken a square of `size` pixels in each image (N, C, H, W), its corner at (top, left).

    Random erasing with a fixed size: DeVries and Taylor, arXiv:1708.04552; Zhong et al.,
    arXiv:1708.04896.
    """
    place = torch.arange(images.shape[2], device=images.device)
    rows, columns = place - top[:, None], place - left[:, None]
    in_rows, in_columns = (((x >= 0) & (x < size)) for x in (rows, columns))
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None])[:, None], 0)
