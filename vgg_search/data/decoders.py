"""Image files decoded side by side, in processes that load numpy and Pillow alone.

Not in threads, which would wait for Python's lock: with images of 28 px most of the work holds it.
Not by multiprocessing either: it would run a script again that has no `if __name__ == "__main__"`,
and refuses to work in a daemon. A process gets a line, a part of the files, and answers with a
line; what it decodes it writes to a file. It ends when its standard input does, so
also when this process is killed.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import numpy as np

from vgg_search.data.decoding import ImageError, opened, size_and_channels, square
from vgg_search.data.source import Array, DataError
from vgg_search.machine import cores

FEW = 100  # files for which no process is worth its start
PART = 100  # files in a line, at most
SMALL = 2**20  # bytes of a file that is read at once
SCRIPT = "import sys; sys.path[:] = sys.argv[1:]; import vgg_search.data.decoders as d; d.serve()"

File = tuple[str, int, int]  # path, bytes, time of change in ns, as it was when it was listed
Head = tuple[int, int]  # px of the shorter side, channels


class Decoders:
    """Processes that decode, one a core; few files are decoded by this process."""

    def __init__(self, count: int) -> None:
        """`count` of files."""
        self.count = min(cores(), count // FEW)
        self.threads = ThreadPoolExecutor(max(1, self.count))  # each waits for a process
        self.idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        self.processes: list[subprocess.Popen[str]] = []
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  by __exit__

    def __enter__(self) -> "Decoders":
        for _ in range(self.count):
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", SCRIPT, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                process_group=0,  # a terminal's Ctrl-C is for this process, which ends them
            )
            self.processes.append(process)
            self.idle.put(process)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
        self.threads.shutdown(cancel_futures=True)
        for process in self.processes:
            with suppress(OSError), process:  # a line that it will not read
                pass
        self.errors.close()

    def decode(
        self, files: Sequence[File], shape: Head | None = None, pixels: Path | None = None
    ) -> Iterator[Head | ImageError]:
        """What each file's head says, or what is wrong with the file, in order.

        With `shape`, (px, channels), the images are written to the file `pixels`, one after the
        other. Raises DataError if a process ends.
        """
        size = max(1, min(PART, len(files) // (8 * max(1, self.count))))
        name = str(pixels) if pixels else None
        tasks = [(files[row : row + size], shape, name, row) for row in range(0, len(files), size)]
        work = self.threads.map(self._ask, tasks) if self.count else (answer(*t) for t in tasks)
        for answers in work:
            yield from (ImageError(x) if isinstance(x, str) else (x[0], x[1]) for x in answers)

    def _ask(self, task: tuple[Any, ...]) -> list[Any]:
        process = self.idle.get()
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            return list(json.loads(process.stdout.readline()))
        except (OSError, ValueError) as error:
            files = f"{task[0][0][0]} and the {len(task[0]) - 1} files after it"
            reason = f"a process that reads them ended with {process.wait()}"
            raise DataError(f"{files} cannot be decoded: {reason}{self._last_words()}") from error
        finally:
            self.idle.put(process)

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").split("\n")
        return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")


def serve() -> None:
    """Answer each line of standard input."""
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)


def answer(
    files: Sequence[File], shape: Head | None, pixels: str | None, row: int
) -> list[Head | str]:
    """As `Decoders.decode`, with an error's text; `row` is the first image's place."""
    side, channels = shape or (0, 0)
    images = np.zeros((len(files), channels, side, side), np.uint8)
    answers: list[Head | str] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata, large images
        for file, target in zip(files, images, strict=True):
            try:
                answers.append(_read(file, target))
            except ImageError as error:
                answers.append(str(error))
    if pixels:  # not by a map, which costs a fault a page
        with open(pixels, "r+b") as out:
            out.seek(row * images[0].nbytes)
            out.write(images.data)
    return answers


def _read(file: File, target: Array) -> Head:
    """Of a file; its image goes to `target` (C, H, W), unless that is empty. Raises ImageError."""
    path, size, changed = file
    if not size:
        raise ImageError("must be an image, got an empty file")
    is_small = size < SMALL
    try:
        with open(path, "rb", buffering=0 if is_small else -1) as stream:
            content = BytesIO(stream.read()) if is_small else stream
            with opened(content) as image:
                head = size_and_channels(image)
                if target.size:
                    target[:] = square(image, target.shape[1], len(target))
            status = os.fstat(stream.fileno())
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error
    if (status.st_size, status.st_mtime_ns) != (size, changed):
        raise ImageError("must stay as it is while it is read, and has changed")
    return head
