"""Files as people have them, made from real test images, and what they are read as."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vgg_search.data.decoding import MUST_BE, ImageError
from vgg_search.data.splits import load_test
from vgg_search.models.images import DARK, LIGHT, read_image

EXIF_ORIENTATION, ROTATED_180 = 0x0112, 3


DATASET = "fashion-mnist" if os.environ.get("VGG_SEARCH_DATA_DIR") else "sample"


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    return load_test(DATASET)[0][:500, 0]


@pytest.fixture(scope="module")
def images(many: np.ndarray) -> np.ndarray:
    return many[:60]


def grey(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image))


def enlarged(image: np.ndarray, times: int) -> Image.Image:
    return grey(image.repeat(times, 0).repeat(times, 1))


EXACT: dict[str, Callable[[np.ndarray], Image.Image]] = {
    "grey": grey,
    "colour": lambda x: grey(x).convert("RGB"),
    "opaque alpha": lambda x: grey(x).convert("RGBA"),
    "grey and alpha": lambda x: grey(x).convert("LA"),
    "palette": lambda x: grey(x).convert("P"),
    "16 bits": lambda x: Image.fromarray(x.astype(np.uint16) * 257),
    "twice the size": lambda x: enlarged(x, 2),
    "colour, ten times the size": lambda x: enlarged(x, 10).convert("RGB"),
    "alpha where the clothes are": lambda x: Image.merge(
        "LA", (Image.new("L", (28, 28), 255), grey(x))
    ),
}


@pytest.mark.parametrize("kind", EXACT)
def test_light_on_dark_passes_unchanged(kind: str, images: np.ndarray, tmp_path: Path) -> None:
    for image in images:
        EXACT[kind](image).save(tmp_path / "x.png")
        read, assumed = read_image(tmp_path / "x.png")
        np.testing.assert_array_equal(read, image)
        assert (read.dtype, assumed) == (np.uint8, LIGHT)


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *(("bmp", mode) for mode in ("L", "P", "RGB", "RGBA")),
        *(("webp", mode) for mode in ("L", "RGB", "RGBA")),
        *(("gif", mode) for mode in ("L", "P", "RGB")),
        *(("tiff", mode) for mode in ("L", "P", "RGB", "RGBA", "LA", "CMYK")),
    ],
)
def test_other_formats_pass_unchanged(
    suffix: str, mode: str, images: np.ndarray, tmp_path: Path
) -> None:
    file = tmp_path / f"x.{suffix}"
    settings = {"lossless": True} if suffix == "webp" else {}
    for image in images[:10]:
        grey(image).convert(mode).save(file, **settings)
        np.testing.assert_array_equal(read_image(file)[0], image)


@pytest.mark.parametrize("suffix", ["gif", "tiff", "webp"])
def test_of_several_pictures_in_a_file_the_first_is_read(
    suffix: str, images: np.ndarray, tmp_path: Path
) -> None:
    first, *others = map(grey, images[:3])
    settings = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"x.{suffix}", save_all=True, append_images=others, **settings)
    np.testing.assert_array_equal(read_image(tmp_path / f"x.{suffix}")[0], images[0])


@pytest.mark.parametrize("kind", [k for k in EXACT if k != "alpha where the clothes are"])
def test_dark_on_light_is_inverted(kind: str, images: np.ndarray, tmp_path: Path) -> None:
    for image in images:
        EXACT[kind](255 - image).save(tmp_path / "x.png")
        read, assumed = read_image(tmp_path / "x.png")
        np.testing.assert_array_equal(read, image)
        assert assumed == DARK


def test_real_images_are_seen_as_light_on_dark(many: np.ndarray, tmp_path: Path) -> None:
    sides = set()
    for image in many:
        grey(image).save(tmp_path / "x.png", compress_level=0)
        sides.add(read_image(tmp_path / "x.png")[1])
    assert sides == {LIGHT}


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("side", [20, 28, 61, 280])
def test_other_sizes_stay_near(
    side: int, suffix: str, inverted: bool, images: np.ndarray, tmp_path: Path
) -> None:
    differences = []
    for image in images:
        big = grey(255 - image if inverted else image).resize((side, side)).convert("RGB")
        big.save(tmp_path / f"x.{suffix}")
        read, assumed = read_image(tmp_path / f"x.{suffix}")
        assert assumed == (DARK if inverted else LIGHT)
        differences.append(np.abs(read.astype(int) - image).mean())
    # Measured: 4 to 6 of 255 enlarged, 13 through 20 px, which loses half the pixels.
    assert np.mean(differences) < (16 if side < 28 else 8)


@pytest.mark.parametrize("inverted", [False, True])
def test_a_narrow_image_is_padded_not_stretched(
    inverted: bool, images: np.ndarray, tmp_path: Path
) -> None:
    narrow = [image for image in images if not image[:, :8].any() and not image[:, -8:].any()]
    assert narrow
    for image in narrow:
        shown = enlarged(255 - image if inverted else image, 3)
        shown.crop((18, 0, 66, 84)).save(tmp_path / "x.png")  # columns 6 to 21
        np.testing.assert_array_equal(read_image(tmp_path / "x.png")[0], image)


def test_transparency_shows_the_contrasting_side(images: np.ndarray, tmp_path: Path) -> None:
    """Clothes cut out, light ones kept and dark ones (a catalogue's photo) inverted."""
    for image in (x for x in images if x[x > 0].mean() > 160):
        mask = grey((image > 0).astype(np.uint8) * 255)
        for shown, side in ((image, LIGHT), (255 - image, DARK)):
            Image.merge("LA", (grey(shown), mask)).convert("RGBA").save(tmp_path / "x.png")
            read, assumed = read_image(tmp_path / "x.png")
            if (np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]) == 0).mean() > 0.6:
                assert assumed == side
                np.testing.assert_array_equal(read, image)


def test_camera_orientation_is_followed(images: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = ROTATED_180
    enlarged(images[0][::-1, ::-1], 10).save(tmp_path / "x.jpg", exif=exif, quality=95)
    read = read_image(tmp_path / "x.jpg")[0]
    assert np.abs(read.astype(int) - images[0]).mean() < 3


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def tiff(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "tiff")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", MUST_BE),
        (b"a shirt", MUST_BE),
        (b"%PDF-1.7 a shirt", MUST_BE),
        (b"GIF89a\x01\x00\x01\x00\x80\x00\x00", MUST_BE),
        (tiff(np.ones((9, 9), np.float32)), "must have 8 or 16 bits a channel, got 32"),
        (tiff(np.full((9, 9), 2**20, np.int32)), "must have 8 or 16 bits a channel, got values"),
        (png(Image.effect_noise((64, 64), 90))[:2000], "cannot be read: .*truncated"),
        (png(Image.new("RGBA", (9, 9))), "cannot be read: it is wholly transparent"),
    ],
)
def test_a_wrong_file_says_why(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "x.png")


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read: Is a directory"):
        read_image(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "gif", "tiff"])
def test_damaged_bytes_never_escape_as_another_error(
    suffix: str, images: np.ndarray, tmp_path: Path
) -> None:
    file, rng = tmp_path / f"x.{suffix}", np.random.default_rng(0)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = ROTATED_180
    enlarged(images[0], 2).convert("RGB").save(file, exif=exif)
    whole, refused = file.read_bytes(), 0
    for _ in range(150):
        damaged = np.frombuffer(whole, np.uint8).copy()
        where = rng.integers(0, len(damaged) if rng.random() < 0.5 else 120, 3)
        damaged[where] = rng.integers(0, 256, 3)
        file.write_bytes(damaged.tobytes())
        try:
            assert read_image(file)[0].shape == (28, 28)
        except ImageError:
            refused += 1
    assert refused
