"""One image file, of any format, size and mode that people have, as bytes: the only place where
images are decoded.

Pillow. What changes nothing is not called: the smallest images, read in 80 us, feel each call.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vgg_search.data.source import Array
from vgg_search.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MUST_BE = f"must be a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")


class ImageError(InputError):
    """A file that is no image we can read; the text does not repeat the file's name."""


@contextmanager
def opened(source: str | Path | IO[bytes]) -> Iterator[Image.Image]:
    """The image in a file, whose pixels are not decoded yet; of several (GIF), the first.

    Raises ImageError, also for whatever goes wrong while the block decodes it.
    """
    try:
        with Image.open(source, formats=FORMATS) as image:
            yield image
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(MUST_BE) from error
    # Of damaged bytes Pillow's decoders make errors of many kinds
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"cannot be read: {reason}") from error


def read_square(path: str | Path, side: int, channels: int) -> Array:
    """The `square` of the image in a file. Raises ImageError."""
    with opened(path) as image:
        return square(image, side, channels)


def square(image: Image.Image, side: int, channels: int) -> Array:
    """An opened image as (channels, side, side): its middle square, made larger or smaller.

    Upright as its EXIF data says; transparent parts are white. Raises ImageError.
    """
    image.draft(None, (side, side))  # a JPEG is decoded no larger than it is used
    image.load()  # a PNG's EXIF data may stand behind its pixels
    may_be_turned = image.info or image.format == "TIFF"  # whose metadata are tags, not info
    if may_be_turned and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        ImageOps.exif_transpose(image, in_place=True)
    image = flattened(image, "L" if channels == 1 else "RGB")
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side))
    return as_planes(image)


def flattened(image: Image.Image, mode: str) -> Image.Image:
    """In 8 bits a channel, on white, as `mode` (L or RGB)."""
    image = in_8_bits(image)
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours)
    return image if image.mode == mode else image.convert(mode)


def in_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits in 8: Pillow's own conversion clips instead of scaling."""
    if image.mode == "F":
        raise ImageError("must have 8 or 16 bits a channel, got 32 (float)")
    if not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image, np.int64)
    if pixels.size and not 0 <= pixels.min() <= pixels.max() < 2**16:
        raise ImageError(f"must have 8 or 16 bits a channel, got values up to {pixels.max()}")
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))


def as_planes(image: Image.Image) -> Array:
    """The pixels of an image in mode L or RGB: uint8 (C, H, W)."""
    # Not by asarray, which asks Pillow for more than the bytes
    pixels = np.frombuffer(image.tobytes(), np.uint8)
    return pixels.reshape(image.height, image.width, -1).transpose(2, 0, 1)


def size_and_channels(image: Image.Image) -> tuple[int, int]:
    """(px of the shorter side, 1 if grey else 3), from the file's head alone. Raises
    ImageError."""
    if not min(image.size):
        raise ImageError("must have at least one pixel")
    return min(image.size), 1 if image.mode in GREY_MODES else 3
