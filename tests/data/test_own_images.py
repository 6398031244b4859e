"""A user's own images: folders of files as people have them, and arrays in an .npz."""

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vgg_search.data import cache, folder, own_images
from vgg_search.data.source import DataError, Reading
from vgg_search.data.splits import load_splits, load_test

RNG = np.random.default_rng(0)
COLOURS = {"blue": (20, 40, 220), "green": (20, 200, 40), "red": (220, 30, 20)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(own_images, "_announced", set())
    return tmp_path / "cache" / "vgg_search" / "images"


def picture(colour: tuple[int, ...], size: tuple[int, int] = (40, 40)) -> Image.Image:
    noise = RNG.integers(-20, 20, (*size[::-1], 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def photos(root: Path, each: int = 12, test: int = 0) -> Path:
    """Three classes, four sizes."""
    sizes = ((40, 40), (60, 40), (40, 90), (33, 48))
    for part, count in (("train" if test else "", each), ("test", test)):
        for name, colour in COLOURS.items():
            for i in range(count):
                (root / part / name).mkdir(parents=True, exist_ok=True)
                suffix = ("png", "jpg", "webp", "bmp")[i % 4]
                picture(colour, sizes[i % 4]).save(root / part / name / f"{i}.{suffix}")
    return root


def load(path: Path, **reading: Any) -> Any:
    return load_splits(str(path), reading=Reading(**reading))


# Folders


def test_a_folder_of_class_folders_is_split_by_content(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = photos(tmp_path / "photos")
    splits = load(root)
    images, labels = load_test(str(root))
    assert splits.info.classes == ("blue", "green", "red")
    assert (splits.info.side, splits.info.channels, splits.info.drawn_test) == (40, 3, True)
    assert (len(splits.train_labels), len(splits.val_labels), len(labels)) == (25, 5, 6)
    assert np.bincount(labels).tolist() == [2, 2, 2]
    assert set(splits.val_labels) == {0, 1, 2}
    for image, label in zip(images, labels, strict=True):
        np.testing.assert_allclose(image.mean((1, 2)), list(COLOURS.values())[label], atol=12)
    (line,) = caplog.messages
    assert line == (
        f"{root} has no test split: 6 of 36 images were drawn for it, the same ones each time"
    )
    # Under other names and in another order of the file system, the same
    for i, file in enumerate(sorted(root.rglob("*.*"), reverse=True)):
        file.rename(file.with_name(f"{i:03} {file.name}"))
    moved = shutil.copytree(root, tmp_path / "moved")
    again = load(moved)
    assert again.digest == splits.digest
    np.testing.assert_array_equal(again.val_images, splits.val_images)
    np.testing.assert_array_equal(load_test(str(moved))[0], images)


def test_a_test_part_is_the_test_split(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", test=3)
    copy = root / "test" / "red" / "0.png"
    shutil.copy(copy, root / "train" / "red" / "copy of one in the test part.png")
    splits = load(root)
    assert not splits.info.drawn_test
    assert len(load_test(str(root))[1]) == 9
    assert len(splits.whole()[1]) == 36  # the copy is not trained on


def test_a_class_may_lack_test_images_but_not_training_images(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", test=3)
    shutil.rmtree(root / "test" / "green")
    splits, (_, labels) = load(root), load_test(str(root))
    assert splits.info.classes == ("blue", "green", "red")
    assert np.bincount(splits.whole()[1]).tolist() == [12, 12, 12]
    assert np.bincount(labels).tolist() == [3, 0, 3]
    shutil.rmtree(root / "train" / "red")
    with pytest.raises(DataError, match=rf"^{root}/train/red must hold images, found none \(--"):
        load(root)
    left = load(root, skip_broken=True)
    assert left.info.classes == ("blue", "green")
    assert "red must hold images, found none" in left.notes[0]
    assert np.bincount(load_test(str(root), None, left.info.reading)[1]).tolist() == [3]


def test_an_empty_test_part_is_as_none(tmp_path: Path) -> None:
    photos(tmp_path / "photos" / "train")
    (tmp_path / "photos" / "test").mkdir()
    assert load(tmp_path / "photos").info.drawn_test


def test_a_drawn_test_split_is_refused_once_its_folder_has_changed(tmp_path: Path) -> None:
    """Drawn anew, it would hold images that the network was trained on."""
    root = photos(tmp_path / "photos")
    for resolution in (None, 16):
        splits = load(root, resolution=resolution)
        reading, digest = splits.info.reading, splits.digest
        assert len(load_test(str(root), None, reading, digest)[1]) == 6
    picture(COLOURS["blue"]).save(root / "blue" / "new.png")
    rule = rf"^{root} must be what the network was trained on \({digest}\), got [0-9a-f]{{16}}: .*$"
    with pytest.raises(DataError, match=rule) as caught:
        load_test(str(root), None, reading, digest)
    assert "\n" not in str(caught.value)
    assert len(load_test(str(root), None, reading)[1]) == 6


def test_a_test_split_of_its_own_does_not_change_with_the_training_images(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", test=3)
    digest, before = load(root).digest, load_test(str(root))[0]
    picture(COLOURS["blue"]).save(root / "train" / "blue" / "new.png")
    assert load(root).digest != digest
    np.testing.assert_array_equal(load_test(str(root), digest=digest)[0], before)


def test_a_grey_folder_has_one_channel_and_a_size_is_followed(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    assert load(root, resolution=16).train_images.shape[1:] == (3, 16, 16)
    for file in root.rglob("*.*"):
        Image.open(file).convert("L").save(file.with_suffix(".png"))
        if file.suffix != ".png":
            file.unlink()
    assert load(root).train_images.shape[1:] == (1, 40, 40)
    assert len(load(root, max_images=24).whole()[1]) == 20  # and 4 of them for the test


def test_same_pixels_are_never_on_both_sides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = photos(tmp_path / "photos")
    for file in list(root.rglob("*.*")):
        for i in range(2):
            shutil.copy(file, file.with_name(f"copy {i} of {file.name}"))
    splits = load(root)
    assert f"{root}: 72 copies of other images are left out" in caplog.messages
    everything = np.concatenate([splits.whole()[0], load_test(str(root))[0]])
    assert len(everything) == 36 == len({image.tobytes() for image in everything})


# The cache


def test_images_are_decoded_once(tmp_path: Path, own_cache: Path) -> None:
    root = photos(tmp_path / "photos")
    first = load(root)
    for file in root.rglob("*.*"):  # what is read again now cannot be an image
        status = file.stat()
        file.write_bytes(bytes(status.st_size))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load(root).digest == first.digest
    assert load(root, resolution=40).digest == first.digest  # as a resumed study asks for it
    (place,) = (path for path in own_cache.iterdir() if path.is_dir())
    assert sorted(f.name for f in place.iterdir()) == [cache.CARD, cache.IMAGES, cache.LABELS]


def test_a_damaged_entry_is_made_anew(tmp_path: Path, own_cache: Path) -> None:
    root = photos(tmp_path / "photos")
    first = load(root)
    for file in own_cache.glob(f"*/{cache.IMAGES}"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    assert load(root).digest == first.digest


def test_many_images_are_announced_once_in_the_log(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Standard output is for a command's result."""
    root, line = photos(tmp_path / "photos"), "decoding 36 images of {}, once"
    monkeypatch.setattr(folder, "MANY", 36)
    for _ in range(2):
        load(root)
    said = [(r.levelname, r.getMessage()) for r in caplog.records if "decoding" in r.getMessage()]
    assert said == [("WARNING", line.format(root))]
    monkeypatch.setattr(folder, "MANY", 37)
    load(shutil.copytree(root, tmp_path / "few"))
    assert line.format(tmp_path / "few") not in caplog.messages
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", ["mean", "[]", "5", ""])
def test_a_card_that_is_damaged_is_made_anew(damage: str, tmp_path: Path, own_cache: Path) -> None:
    """It says how images are scaled, and where the test split begins."""
    root = photos(tmp_path / "photos")
    before = load(root)
    (card,) = own_cache.rglob(cache.CARD)
    text = card.read_text()
    card.write_text(text.replace('"mean": [0.', '"mean": [1.') if damage == "mean" else damage)
    assert card.read_text() != text
    assert load(root).info == before.info
    assert card.read_text() == text


def test_the_cache_is_bounded(
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "vgg_search")
    root = photos(tmp_path / "photos")
    monkeypatch.setattr(cache, "MOST_BYTES", 200_000)
    for resolution in (28, 32, 36):
        load(root, resolution=resolution)
    assert len([path for path in own_cache.iterdir() if path.is_dir()]) == 1
    line = [text for text in caplog.messages if text.startswith("decoded images are kept")][-1]
    assert line.endswith(f"0.1 MB in all (at most 0 MB): rm -r {own_cache}")


def test_what_was_not_used_for_longest_leaves_the_cache_first(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: dict[str, Path] = {}
    for age, name in enumerate(("often", "once")):
        load(photos(tmp_path / name))
        (places[name],) = {p for p in own_cache.iterdir() if p.is_dir()} - {*places.values()}
        os.utime(places[name], (age, age))
    load(tmp_path / "often")
    monkeypatch.setattr(cache, "MOST_BYTES", 400_000)  # two entries of 36 x 3 x 40 x 40
    load(photos(tmp_path / "new"))
    assert {name: place.exists() for name, place in places.items()} == {
        "often": True,
        "once": False,
    }


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, own_cache: Path) -> None:
    root = photos(tmp_path / "photos")
    own_cache.parent.parent.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=rf"^{own_cache} cannot be written: .*; XDG_CACHE_HOME can"):
        load(root)


# What is wrong with a folder

BROKEN: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no image": (
        lambda red: (red / "x.png").write_text("a red thing"),
        "red/x.png",
        "must be a PNG, JPEG, WEBP, BMP, TIFF or GIF image",
    ),
    "empty": (lambda red: (red / "x.png").touch(), "red/x.png", "got an empty file"),
    "half": (
        lambda red: (red / "x.png").write_bytes((red / "0.png").read_bytes()[:900]),
        "red/x.png",
        "cannot be read: ",
    ),
    "nested": (lambda red: (red / "dark").mkdir(), "red/dark", "got a folder in a class folder"),
    "circle": (
        lambda red: (red / "x.png").symlink_to(red / "x.png"),
        "red/x.png",
        "cannot be read: Too many levels of symbolic links",
    ),
    "nowhere": (
        lambda red: (red / "x.png").symlink_to(red / "y.png"),
        "red/x.png",
        "cannot be read: No such file",
    ),
    "pipe": (lambda red: os.mkfifo(red / "x.png"), "red/x.png", "must be a file"),
    "a class without images": (
        lambda red: (red.parent / "white").mkdir(),
        "white",
        "must hold images, found none",
    ),
    "beside the classes": (
        lambda red: (red.parent / "x.png").touch(),
        "x.png",
        "must lie in the folder of its class",
    ),
    "a circle beside the classes": (
        lambda red: (red.parent / "x.png").symlink_to("x.png"),
        "x.png",
        "must lie in the folder of its class",
    ),
    "two classes": (
        lambda red: shutil.copy(red / "0.png", red.parent / "blue" / "x.png"),
        "red/0.png",
        "must be of one class, got a copy: blue/x.png",
    ),
    "bomb": (
        lambda red: Image.new("1", (20_000, 20_000)).save(red / "x.png"),
        "red/x.png",
        "decompression bomb",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_named_or_left_out_and_counted(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = photos(tmp_path / "photos")
    damage, file, rule = BROKEN[kind]
    damage(root / "red")
    with pytest.raises(DataError) as caught:
        load(root)
    (line,) = str(caught.value).splitlines()
    assert file in line
    assert rule in line
    assert line.endswith("(--skip-broken true leaves it out)")
    splits = load(root, skip_broken=True)
    assert len(splits.whole()[1]) + len(load_test(str(root), None, splits.info.reading)[1]) == 36
    assert any(f"{root}: " in text and rule in text for text in caplog.messages)


def test_what_systems_leave_is_passed_over(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / name).touch()
        (root / "red" / name).touch()
    (root / ".git").mkdir()
    (root / "README.txt").write_text("my photos")
    assert len(load(root).info.classes) == 3


@pytest.mark.parametrize("name", ["loop", "train", "test"])
def test_a_link_in_a_circle_beside_the_classes_is_passed_over(name: str, tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    (root / name).symlink_to(name)
    assert load(root).info.classes == ("blue", "green", "red")


@pytest.mark.parametrize("suffix", ["", ".npz"])
def test_a_path_that_is_too_long_is_one_line(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300 + suffix)
    with pytest.raises(DataError, match=rf"^dataset must be an? [^\n]*, got {path}$"):
        load(path)


def test_a_file_that_changes_meanwhile_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photos(tmp_path / "photos")
    listed = folder.list_images

    def then_it_grows(*args: Any) -> Any:
        found = listed(*args)
        with (root / "red" / "0.png").open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(folder, "list_images", then_it_grows)
    with pytest.raises(DataError, match=r"red/0\.png must stay as it is while it is read, and has"):
        load(root)


def test_too_few_images_are_counted(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    for i in range(2, 12):
        next((root / "red").glob(f"{i}.*")).unlink()
    with pytest.raises(DataError, match=r"class red must have >= 3 different images to train, va"):
        load(root)
    shutil.rmtree(root / "red")
    assert load(root).info.classes == ("blue", "green")
    shutil.rmtree(root / "green")
    with pytest.raises(DataError, match=r"must hold >= 2 folders of a class each, got \['blue'\]"):
        load(root)
    with pytest.raises(DataError, match=r"^dataset must be a folder of class folders, got "):
        load(tmp_path / "nowhere")


def test_ten_thousand_classes(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(10_000), 3)
    images = np.arange(30_000, dtype=np.uint32).view(np.uint8).reshape(-1, 2, 2)
    np.savez(tmp_path / "many.npz", x_train=images, y_train=labels)
    splits = load(tmp_path / "many.npz")
    assert len(splits.info.classes) == len(splits.val_labels) == 10_000
    assert splits.train_labels.max() == 9_999


def test_more_than_memory_bears_is_refused_with_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = photos(tmp_path / "photos")
    monkeypatch.setattr(own_images, "SHARE_OF_MEMORY", 1e-9)
    with pytest.raises(DataError, match=r"got 36 of 3x40x40, 0.0 GB: lower resolution or max_im"):
        load(root)


# Arrays


def arrays(**changes: Any) -> dict[str, Any]:
    given = {
        "x_train": RNG.integers(0, 256, (60, 20, 20, 3), dtype=np.uint8),
        "y_train": np.arange(60) % 3,
        "x_test": RNG.integers(0, 256, (12, 20, 20, 3), dtype=np.uint8),
        "y_test": np.arange(12) % 3,
    } | changes
    return {key: array for key, array in given.items() if array is not None}


def test_an_npz_is_read(tmp_path: Path) -> None:
    given = arrays(classes=np.array(["a", "b", "c"]))
    np.savez(tmp_path / "a.npz", **given)
    splits = load(tmp_path / "a.npz")
    assert splits.info.classes == ("a", "b", "c")
    assert (splits.info.side, splits.info.channels) == (20, 3)
    assert (len(splits.train_labels), len(splits.val_labels)) == (50, 10)
    by_pixels = {x.tobytes(): y for x, y in zip(given["x_train"], given["y_train"], strict=True)}
    for image, label in zip(*splits.whole(), strict=True):
        assert by_pixels[np.moveaxis(image, 0, 2).tobytes()] == label
    np.testing.assert_allclose(splits.info.mean, splits.whole()[0].mean((0, 2, 3)) / 255, atol=1e-4)
    assert len(load_test(str(tmp_path / "a.npz"))[1]) == 12


@pytest.mark.parametrize("max_images", [None, 68])
def test_images_of_an_npz_are_named_by_their_index_in_the_file(
    max_images: int | None, tmp_path: Path
) -> None:
    given = arrays()
    given["x_train"][50] = given["x_train"][10]
    np.savez(tmp_path / "a.npz", **given)
    rule = r"a\.npz image 50 must be of one class, got a copy: [^ ]*/a\.npz image 10 \("
    with pytest.raises(DataError, match=rule):
        load(tmp_path / "a.npz", max_images=max_images)


@pytest.mark.parametrize("shape", [(60, 30, 20), (60, 30, 20, 1), (60, 1, 30, 20)])
def test_grey_arrays_in_any_order_become_squares(shape: tuple[int, ...], tmp_path: Path) -> None:
    x = RNG.integers(0, 256, shape, dtype=np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x_train=x, y_train=np.arange(60)[:, None] % 3)
    splits = load(tmp_path / "a.npz")
    assert splits.train_images.shape[1:] == (1, 20, 20)
    assert splits.info.drawn_test


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "float": ({"x_train": np.zeros((60, 20, 20, 3))}, "x_train must be uint8 .*, got float64; mul"),
    "shape": ({"x_train": np.zeros((60, 4, 20, 5), np.uint8)}, r"x_train must be \(N, H, W\), .*"),
    "count": ({"y_train": np.arange(59)}, r"y_train must be 60 integers, got int64 \(59,\)"),
    "kind": ({"y_train": np.zeros(60)}, r"y_train must be 60 integers, got float64 \(60,\)"),
    "negative": ({"y_train": np.arange(60) - 1}, "y_train must be >= 0, got -1"),
    "test label": ({"y_test": np.arange(12)}, "y_test must be < 3, got 11"),
    "no name": ({"classes": np.array(["a", "b"])}, "y_train must be < 2, got 2"),
    "gap": ({"y_train": np.arange(60) % 2 * 2, "y_test": None, "x_test": None}, "class 1 must"),
    "far": ({"y_train": np.arange(60) * 10**8}, "y_train must use each number from 0 on, got 59"),
    "one class": ({"y_train": np.zeros(60, int), "y_test": np.zeros(12, int)}, ">= 2 classes, got"),
    "no labels": ({"y_train": None}, "must hold y_train, got only x_train, x_test, y_test"),
    "objects": ({"x_train": np.array([{}], object)}, "must be a whole .npz file of plain arrays"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_arrays_are_named(kind: str, tmp_path: Path) -> None:
    changes, rule = WRONG[kind]
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(DataError, match=rule) as caught:
        load(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_archive_and_a_bomb_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    with pytest.raises(DataError, match=r"^dataset must be an \.npz file, got "):
        load(file)
    file.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"must be a whole \.npz file of plain arrays"):
        load(file)
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x_train.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(100):
            member.write(bytes(10**7))
    own = own_images.SHARE_OF_MEMORY
    try:
        own_images.SHARE_OF_MEMORY = 1e-3
        with pytest.raises(DataError, match=r"got 1,000,000,000 of 1x1x1, 1.0 GB"):
            load(file)
    finally:
        own_images.SHARE_OF_MEMORY = own
