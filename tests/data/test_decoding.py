"""Image files of every kind that people have, read as squares."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vgg_search.data.decoding import ImageError, opened, read_square, size_and_channels

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
# Four quarters, top left to bottom right
QUARTERS = Image.fromarray(
    np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8).repeat(16, 0).repeat(16, 1)
)
GREY = np.arange(0, 256, 8, dtype=np.uint8)[None].repeat(32, 0)


def head(path: Path) -> tuple[int, int]:
    with opened(path) as image:
        return size_and_channels(image)


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """The colours in the four quarters."""
    side = pixels.shape[1]
    near, far = side // 4, 3 * side // 4
    points = [(near, near), (near, far), (far, near), (far, far)]
    return [tuple(int(x) for x in pixels[:, y, x]) for y, x in points]


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    QUARTERS.rotate(90).save(path, exif=exif, quality=95, subsampling=0)


def two_frames(path: Path) -> None:
    other = Image.new("RGB", QUARTERS.size, "black")
    QUARTERS.save(path, save_all=True, append_images=[other], duration=100)


def cut_out(mode: str) -> Callable[[Path], None]:
    """White is transparent; below it, black."""

    def save(path: Path) -> None:
        picture = QUARTERS.copy()
        picture.paste((0, 0, 0), (16, 16, 32, 32))
        alpha = Image.new("L", picture.size, 255)
        alpha.paste(0, (16, 16, 32, 32))
        picture.putalpha(alpha)
        (picture if mode == "RGBA" else picture.quantize(16)).save(path)

    return save


KINDS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "png": ("png", QUARTERS.save),
    "jpeg": ("jpg", lambda path: QUARTERS.save(path, quality=95, subsampling=0)),
    "webp": ("webp", lambda path: QUARTERS.save(path, lossless=True)),
    "bmp": ("bmp", QUARTERS.save),
    "tiff": ("tiff", QUARTERS.save),
    "gif, its first frame": ("gif", two_frames),
    "palette": ("png", lambda path: QUARTERS.quantize(16).save(path)),
    "cmyk": ("jpg", lambda path: QUARTERS.convert("CMYK").save(path, quality=95, subsampling=0)),
    "cmyk tiff": ("tiff", lambda path: QUARTERS.convert("CMYK").save(path)),
    "turned": ("jpg", rotated),
    "alpha": ("png", cut_out("RGBA")),
    "palette with alpha": ("png", cut_out("P")),
    "wide": ("png", lambda path: padded((64, 32)).save(path)),
    "tall": ("png", lambda path: padded((32, 64)).save(path)),
    "no suffix": ("", lambda path: QUARTERS.save(path, "png")),
    "another suffix": ("jpg", lambda path: QUARTERS.save(path, "png")),
}


def padded(size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", size, "magenta")
    picture.paste(QUARTERS, ((size[0] - 32) // 2, (size[1] - 32) // 2))
    return picture


@pytest.mark.parametrize("side", [8, 32, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_colour_images_of_any_kind(kind: str, side: int, tmp_path: Path) -> None:
    suffix, save = KINDS[kind]
    path = tmp_path / f"x.{suffix}"
    save(path)
    assert head(path) == (32, 3)
    pixels = read_square(path, side, 3)
    assert (pixels.shape, pixels.dtype) == ((3, side, side), np.uint8)
    for found, expected in zip(corners(pixels), (RED, GREEN, BLUE, WHITE), strict=True):
        np.testing.assert_allclose(found, expected, atol=6)


GREYS: dict[str, Callable[[Path], Any]] = {
    "8 bits": Image.fromarray(GREY).save,
    "16 bits": Image.fromarray(GREY.astype(np.uint16) * 257).save,
    "alpha": lambda path: Image.fromarray(GREY).convert("LA").save(path),
}


@pytest.mark.parametrize("kind", GREYS)
def test_grey_images_of_any_kind(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    GREYS[kind](path)
    assert head(path) == (32, 1)
    np.testing.assert_array_equal(read_square(path, 32, 1)[0], GREY)
    np.testing.assert_array_equal(read_square(path, 32, 3)[2], GREY)


def test_of_a_black_and_white_image_too(tmp_path: Path) -> None:
    Image.fromarray(GREY > 100).save(tmp_path / "x.png")
    assert head(tmp_path / "x.png") == (32, 1)
    np.testing.assert_array_equal(read_square(tmp_path / "x.png", 32, 1)[0], (GREY > 100) * 255)


@pytest.mark.parametrize("array", [GREY.astype(np.float32), GREY.astype(np.int32) * 10**6])
def test_more_than_16_bits_are_refused(array: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(array).save(tmp_path / "x.tiff")
    with pytest.raises(ImageError, match=r"^must have 8 or 16 bits a channel, got "):
        read_square(tmp_path / "x.tiff", 32, 1)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif"])
def test_damaged_bytes_never_escape_as_another_error(suffix: str, tmp_path: Path) -> None:
    file, rng, refused = tmp_path / f"x.{suffix}", np.random.default_rng(0), 0
    QUARTERS.save(file)
    whole = file.read_bytes()
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        where = rng.integers(0, len(damaged) if rng.random() < 0.5 else 60, 3)
        damaged[where] = rng.integers(0, 256, 3)
        file.write_bytes(damaged.tobytes()[: rng.integers(1, len(damaged) + 1)])
        try:
            assert read_square(file, 16, 3).shape == (3, 16, 16)
        except ImageError as error:
            assert "\n" not in str(error)  # noqa: PT017  most are, some can still be read
            refused += 1
    assert refused
