"""log.txt of a run folder."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("vgg_search")


class _LogFile(logging.FileHandler):
    """Where the disk takes no more, a line is lost and nothing is said of it: the search says so
    itself."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        return

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def log_file(file: Path) -> Iterator[None]:
    """Everything that this package says goes to `file` too, with its time."""
    handler = _LogFile(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()
