"""Where the data comes from, what is refused, and how it is split.

The whole set is needed for the tests marked `needs_real`; VGG_SEARCH_DATA_DIR says where it is.
"""

import gzip
import hashlib
import os
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from vgg_search.data import download
from vgg_search.data.bundled import SAMPLE
from vgg_search.data.fashion_mnist import SOURCE, find_split
from vgg_search.data.source import DataError, Reading, Source
from vgg_search.data.splits import SPLIT_SEED, load_splits, load_test, stratified_order
from vgg_search.records import DATASETS

REAL = os.environ.get("VGG_SEARCH_DATA_DIR", "")
needs_real = pytest.mark.skipif(not REAL, reason="VGG_SEARCH_DATA_DIR is not set")
FILES = [f"{s}-{k}-ubyte" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
LOUD = "USING THE BUNDLED SAMPLE"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No data but the sample, which nobody has heard of: an empty cache, no folder named, and a
    proxy that refuses."""
    monkeypatch.setattr("vgg_search.data.splits._sample_announced", False)
    monkeypatch.delenv("VGG_SEARCH_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    return tmp_path / "cache" / "vgg_search"


def published(name: str) -> Path:
    folder = find_split(Path(REAL), "train" if name.startswith("train") else "test")
    assert folder is not None
    return folder / name


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the four files as published."""
    folder = tmp_path_factory.mktemp("packed")
    for name in FILES:
        if not published(f"{name}.gz").exists():
            pytest.skip("VGG_SEARCH_DATA_DIR holds unpacked files only")
        shutil.copyfile(published(f"{name}.gz"), folder / f"{name}.gz")
    return folder


@pytest.fixture(scope="session")
def unpacked(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, unpacked."""
    folder = tmp_path_factory.mktemp("unpacked")
    for name in FILES:
        (folder / name).write_bytes(gzip.decompress((packed / f"{name}.gz").read_bytes()))
    return folder


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[str], bytes]], None]]:
    """Puts a proxy between the download and the network that answers with what it is given."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Callable[[str], bytes]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = answer(self.path.rsplit("/", 1)[1])
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{servers[-1].server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def idx(shape: tuple[int, ...], content: bytes | None = None) -> bytes:
    body = bytes(int(np.prod(shape))) if content is None else content
    return struct.pack(f">BBBB{len(shape)}i", 0, 0, 8, len(shape), *shape) + body


# The bundled sample


def test_sample_is_stratified_and_cut() -> None:
    splits = load_splits("sample")
    assert (splits.name, len(splits.train_labels), len(splits.val_labels)) == ("sample", 5000, 1000)
    assert np.bincount(splits.train_labels).tolist() == [500] * 10
    assert np.bincount(splits.val_labels).tolist() == [100] * 10
    images, labels = load_test("sample")
    assert images.shape == (2000, 1, 28, 28)
    assert np.bincount(labels).tolist() == [200] * 10
    assert len(load_splits("sample", train_images=50_000).train_labels) == 5000
    for array in (splits.train_images, splits.val_images, images, labels):
        assert array.dtype == np.uint8
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_sample_fits_the_package() -> None:
    folder = SAMPLE.parent
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4_000_000
    assert "MIT" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert "arXiv:1708.07747" in (folder / "README.md").read_text(encoding="utf-8")


def test_sample_says_one_line_on_stderr_and_imports_no_torch() -> None:
    code = "import sys; from vgg_search.data.splits import load_splits;"
    code += "load_splits('sample', val_images=500);"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert done.stderr.startswith(LOUD)
    assert done.stderr.count("\n") == 1
    assert "6,000 training images, 500 of them for validation (dataset is sample)" in done.stderr


def test_sample_ignores_data_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VGG_SEARCH_DATA_DIR", str(tmp_path))
    assert load_splits("sample", data_dir=tmp_path / "nowhere").name == "sample"


@needs_real
def test_sample_is_what_its_script_makes() -> None:
    script = Path(__file__).parents[2] / "experiments" / "make_sample.py"
    made = runpy.run_path(str(script))["make_sample"](Path(REAL))
    with np.load(SAMPLE, allow_pickle=False) as bundled:
        assert sorted(made) == sorted(bundled.files)
        for key in made:
            np.testing.assert_array_equal(made[key], bundled[key])


# The split


def test_split_is_the_same_every_time() -> None:
    first, second = load_splits("sample"), load_splits("sample", val_images=300, train_images=40)
    np.testing.assert_array_equal(first.val_images[:300], second.val_images)
    np.testing.assert_array_equal(first.val_labels[:300], second.val_labels)
    # Fixed for all versions of NumPy: studies are compared over years.
    assert hashlib.sha256(first.val_images).hexdigest()[:16] == "719d0a3bf35323e4"
    assert first.digest == second.digest == "606b1cfeea4fdbcf"


def test_train_and_val_share_no_image_and_lose_none() -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 60)
    order = stratified_order(labels, 0)
    assert sorted(order) == list(range(600))
    splits = load_splits("sample")
    with np.load(SAMPLE) as arrays:
        whole = np.concatenate([splits.val_images, splits.train_images])
        given = stratified_order(arrays["train_labels"], SPLIT_SEED)
        np.testing.assert_array_equal(whole[:, 0], arrays["train_images"][given])


def test_every_prefix_is_stratified() -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10, dtype=np.uint8), 30))
    ordered = labels[stratified_order(labels, 3)]
    for size in range(1, 301):
        counts = np.bincount(ordered[:size], minlength=10)
        assert counts.max() - counts.min() <= 1
    uneven = np.array([0] * 80 + [1] * 20, np.uint8)
    assert np.bincount(uneven[stratified_order(uneven, 3)][:50]).tolist() == [40, 10]


def test_smaller_training_set_is_a_prefix() -> None:
    few, more = (load_splits("sample", train_images=n) for n in (100, 1000))
    np.testing.assert_array_equal(few.train_images, more.train_images[:100])
    assert np.bincount(few.train_labels).tolist() == [10] * 10


def test_whole_is_train_then_val() -> None:
    splits = load_splits("sample", val_images=10, train_images=20)
    images, labels = splits.whole()
    assert images.shape == (30, 1, 28, 28)
    np.testing.assert_array_equal(labels, np.r_[splits.train_labels, splits.val_labels])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"val_images": 9}, "val_images must be >= 10, got 9"),
        ({"val_images": -1}, "val_images must be >= 10, got -1"),
        ({"train_images": 0}, "train_images must be >= 10, got 0"),
    ],
)
def test_sizes_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}$"):
        load_splits("sample", **sizes)  # type: ignore[arg-type]


@needs_real
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train_images": 60_000}, "train_images must be <= 50000, got 60000"),
        ({"val_images": 60_000}, "val_images must be <= 59990, got 60000"),
    ],
)
def test_sizes_refused_by_the_whole_set(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}$"):
        load_splits("fashion-mnist", REAL, **sizes)  # type: ignore[arg-type]


# Folders and files


@needs_real
@pytest.mark.parametrize("form", ["packed", "unpacked"])
@pytest.mark.parametrize("place", ["FashionMNIST/raw", "raw", "."])
def test_layouts(form: str, place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source: Path = request.getfixturevalue(form)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    # Without the test split: the search must not need it.
    for name in os.listdir(source):
        if name.startswith("train"):
            (tmp_path / place / name).symlink_to(source / name)
    splits = load_splits("auto", tmp_path)
    assert (splits.name, splits.digest) == ("fashion-mnist", "16d82e2b505296aa")
    assert (len(splits.train_labels), len(splits.val_labels)) == (50_000, 10_000)
    assert np.bincount(splits.val_labels).tolist() == [1000] * 10
    with pytest.raises(DataError, match=r"^data_dir must hold t10k-images-idx3-ubyte\[.gz\] and"):
        load_test("fashion-mnist", tmp_path)


@needs_real
def test_read_only_folder_stays_as_it_is(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in packed.iterdir():
        (tmp_path / file.name).symlink_to(file)
    before = sorted(os.listdir(tmp_path)), tmp_path.stat().st_mtime_ns
    tmp_path.chmod(0o555)
    monkeypatch.setenv("VGG_SEARCH_DATA_DIR", str(tmp_path))
    splits = load_splits()
    images, labels = load_test(splits.name)
    tmp_path.chmod(0o755)
    assert before == (sorted(os.listdir(tmp_path)), tmp_path.stat().st_mtime_ns)
    assert (images.shape, len(labels)) == ((10_000, 1, 28, 28), 10_000)
    pixels = splits.whole()[0]
    assert abs(pixels.mean() / 255 - SOURCE.info.mean[0]) < 1e-4
    assert abs(pixels.std() / 255 - SOURCE.info.std[0]) < 1e-4


@needs_real
def test_split_of_the_whole_set_is_disjoint(unpacked: Path) -> None:
    _, images, labels, _ = SOURCE.load(unpacked, "train", Reading())
    order = stratified_order(labels, SPLIT_SEED)
    assert len(set(order[:10_000]) | set(order[10_000:])) == 60_000
    splits = load_splits("auto", unpacked, train_images=1000)
    np.testing.assert_array_equal(splits.val_images, images[order[:10_000]])
    np.testing.assert_array_equal(splits.train_labels, labels[order[10_000:11_000]])


TRAIN_IMAGES = (60_000, 28, 28)


@pytest.mark.parametrize(
    ("content", "packed_message", "message"),
    [
        (b"", "first bytes must be 00000803, got $", "first bytes must be 00000803, got $"),
        (idx((60_000,)), "00000803, got 00000801", "00000803, got 00000801"),
        (b"\0\0\x08\x03\0\0", r"dims must be \(60000, 28, 28\), got \(0, 0, 0\)", r"got \(0, 0, 0"),
        (idx((10_000, 28, 28)), r"got \(10000, 28, 28\)", r"got \(10000, 28, 28\)"),
        (idx(TRAIN_IMAGES, b"x"), "length must be 47040016 bytes, got 17", "bytes, got 17"),
        (idx(TRAIN_IMAGES) + b"x", "got 47040017", "got 47040017"),
        (idx(TRAIN_IMAGES), "MD5 must be 8d4fb7e6c68d591d", "MD5 must be f4a8712d7a061bf5"),
    ],
    ids=["empty", "labels", "header", "test split", "short", "long", "other images"],
)
def test_damaged_content_names_file_and_fault(
    content: bytes, packed_message: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx((60_000,)))
    name = "train-images-idx3-ubyte"
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content, 1))
    begin = rf"^{tmp_path}/{name}{{}} is damaged \(wrong checksum\): .*"
    with pytest.raises(DataError, match=begin.format(r"\.gz") + packed_message):
        load_splits("auto", tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=begin.format("") + message):
        load_splits("auto", tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"<html>", gzip.compress(b"x" * 99)[:-9], gzip.compress(b"x" * 99)[:-5] + b"12345"],
    ids=["not gzip", "cut", "crc"],
)
def test_damaged_packing_names_file(content: bytes, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / f"{name}.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is damaged \(wrong check"):
        load_splits("fashion-mnist", tmp_path)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz is damaged \(wrong checksum"):
        load_test("fashion-mnist", tmp_path)


@needs_real
@pytest.mark.parametrize("name", [f"{n}{end}" for n in FILES for end in (".gz", "")])
def test_one_wrong_byte_is_found(name: str, packed: Path, unpacked: Path, tmp_path: Path) -> None:
    source = packed if name.endswith(".gz") else unpacked
    for file in source.iterdir():
        (tmp_path / file.name).symlink_to(file)
    content = bytearray((source / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(content)
    load = load_splits if name.startswith("train") else load_test
    with pytest.raises(DataError, match=rf"/{name} is damaged \(wrong checksum\)"):
        load("fashion-mnist", tmp_path)


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train-images-idx3-ubyte cannot be read: No such file"):
        SOURCE.load(tmp_path, "train", Reading())


# Sources


@pytest.mark.parametrize("dataset", ["auto", "fashion-mnist"])
def test_named_folder_is_never_passed_over(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "nowhere"
    rule = r"must hold train-images-idx3-ubyte\[.gz\] and train-labels-idx1-ubyte\[.gz\], "
    rule += f"or FashionMNIST/raw, got {nowhere}$"
    with pytest.raises(DataError, match=f"^data_dir {rule}"):
        load_splits(dataset, nowhere)
    monkeypatch.setenv("VGG_SEARCH_DATA_DIR", str(nowhere))
    with pytest.raises(DataError, match=f"^VGG_SEARCH_DATA_DIR {rule}"):
        load_splits(dataset)
    with pytest.raises(DataError, match=r"^VGG_SEARCH_DATA_DIR must hold t10k-images"):
        load_test(dataset)


@needs_real
def test_argument_beats_environment(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VGG_SEARCH_DATA_DIR", str(tmp_path))
    assert load_splits("auto", packed, 10, 10).name == "fashion-mnist"


@pytest.mark.parametrize("name", DATASETS)
def test_each_data_set_of_the_table_is_a_source_of_that_name(name: str) -> None:
    source = import_module(f"vgg_search.data.{DATASETS[name]}").SOURCES[name]
    assert isinstance(source, Source)


def test_refused_download_falls_back_or_is_an_error(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_splits("auto").name == "sample"
    load_test("auto")  # said once a process
    (line,) = caplog.messages
    assert line.startswith(LOUD)
    assert "Connection refused" in line
    assert "data_dir or VGG_SEARCH_DATA_DIR can name a folder" in line
    with pytest.raises(DataError, match=r"^fashion-mnist is not here: download failed: .*refused"):
        load_test("fashion-mnist")
    assert list(cache.iterdir()) == []


def test_silent_server_is_given_up(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(download, "SILENCE_SECONDS", 0.5)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert len(load_test("auto")[1]) == 2000
    assert "2,000 test images (download failed: " in caplog.text
    assert "timed out" in caplog.text
    assert list(cache.iterdir()) == []


def test_download_has_an_end(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "DOWNLOAD_SECONDS", 0.5)
    with pytest.raises(DataError, match=r"download took more than 0\.5 s; data_dir or VGG_SEARCH"):
        load_splits("fashion-mnist")
    assert list(cache.iterdir()) == []


def test_cache_that_cannot_be_written(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"^fashion-mnist is not here: download cannot be kept: "):
        load_splits("fashion-mnist")


def test_wrong_bytes_are_not_kept(
    cache: Path, serve: Callable[[Callable[[str], bytes]], None]
) -> None:
    serve(lambda _: b"<html>log in to this network</html>")
    with pytest.raises(DataError, match=r"download failed: .*corrupted"):
        load_splits("fashion-mnist")
    assert list(cache.iterdir()) == []


@needs_real
def test_download_fills_the_cache(
    cache: Path,
    packed: Path,
    serve: Callable[[Callable[[str], bytes]], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    serve(lambda name: (packed / name).read_bytes())
    assert load_splits("auto").digest == "16d82e2b505296aa"
    assert sorted(p.name for p in cache.rglob("*") if p.is_file()) == sorted(os.listdir(packed))
    assert os.listdir(cache) == ["FashionMNIST"]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert load_test("fashion-mnist")[0].shape == (10_000, 1, 28, 28)
    assert LOUD not in caplog.text


@needs_real
def test_a_download_takes_the_place_of_a_damaged_folder(
    cache: Path, packed: Path, serve: Callable[[Callable[[str], bytes]], None]
) -> None:
    """As of the data sets whose folder is kept whole."""
    kept = cache / "FashionMNIST" / "raw"
    kept.mkdir(parents=True)
    (kept / f"{FILES[0]}.gz").write_bytes(b"cut")
    serve(lambda name: (packed / name).read_bytes())
    download.download("FashionMNIST", "", "*", cache)
    for name in os.listdir(packed):
        assert (kept / name).read_bytes() == (packed / name).read_bytes()
    assert os.listdir(cache) == ["FashionMNIST"]


def test_class_names() -> None:
    classes = load_splits("sample").info.classes
    assert classes == SOURCE.info.classes
    assert len(classes) == 10
    assert (classes[0], classes[9]) == ("T-shirt/top", "Ankle boot")
