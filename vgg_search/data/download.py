"""A download by torchvision that ends in bounded time, with whole files or with none."""

import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vgg_search.data.source import UnavailableError

# The whole download may take the first; one connection may be silent for the second.
DOWNLOAD_SECONDS, SILENCE_SECONDS = 180, 5

# torchvision verifies checksums and knows the mirrors, but has no time-out (a dropped packet hangs
# it), unpacks beside what it downloads, and imports torch: so it runs in a process that can be
# ended, in a temporary folder.
SCRIPT = """
import json, socket, sys
socket.setdefaulttimeout(float(sys.argv[3]))
import torchvision.datasets
for options in json.loads(sys.argv[4]):
    getattr(torchvision.datasets, sys.argv[1])(sys.argv[2], download=True, **options)
"""

log = logging.getLogger("vgg_search")


def download(
    dataset: str,
    subfolder: str,
    pattern: str,
    cache: Path,
    options: Sequence[dict[str, Any]] = ({},),
) -> Path:
    """Put a data set's files into `cache`/`subfolder`, which is returned.

    `dataset` is a class of torchvision.datasets, called once with each of `options`; `subfolder` is
    where it puts its files, `pattern` which of them are kept. Raises UnavailableError.
    """
    folder = cache / subfolder
    log.info("Downloading %s to %s", dataset, folder)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as temporary:
            subprocess.run(
                [
                    *(sys.executable, "-P", "-c", SCRIPT, dataset, temporary),
                    *(str(SILENCE_SECONDS), json.dumps(options)),
                ],
                timeout=DOWNLOAD_SECONDS,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
            )
            folder.mkdir(parents=True, exist_ok=True)
            for file in Path(temporary, subfolder).glob(pattern):
                _put(file, folder / file.name)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"download took more than {DOWNLOAD_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").split("\n")
        reason = next((line for line in reversed(lines) if line.strip()), "no reason given")
        raise UnavailableError(f"download failed: {reason.strip()}") from error
    except OSError as error:
        raise UnavailableError(f"download cannot be kept: {error}") from error
    return folder


def _put(file: Path, target: Path) -> None:
    if target.is_dir():  # of a damaged copy, whose place a folder cannot take
        shutil.rmtree(target)
    file.replace(target)
