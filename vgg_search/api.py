"""The search from Python: in a script, in a notebook, with a Ray that is already initialised."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_search.cli.arguments import resumed_config
from vgg_search.config import Changes, Config, validated
from vgg_search.errors import SearchError
from vgg_search.machine import lasting_output
from vgg_search.storage.folder import LOG, REPORT, local_folder, new_name

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

SEARCH = "search"  # names of studies without one begin so


@dataclass(frozen=True)
class Result:
    """What a search has found. It reads the run folder, so it is as good after a resume."""

    folder: Path
    summary: dict[str, Any]
    """As in summary.json, and `unsent` rows, `warnings`."""

    @cached_property
    def trials(self) -> "pd.DataFrame":
        """A row a proposal, indexed by number; the columns are those of trials.csv."""
        import pandas as pd

        from vgg_search.study.record import read_trials
        from vgg_search.study.tables import trial_rows

        rows = trial_rows(read_trials(self.folder))
        return pd.DataFrame(rows or {"number": []}).set_index("number")

    @cached_property
    def epochs(self) -> "pd.DataFrame":
        """A row an epoch of a trial; the columns are those of epochs.csv."""
        import pandas as pd

        from vgg_search.records import EPOCH_COLUMNS
        from vgg_search.study.record import read_trials
        from vgg_search.study.tables import epoch_rows

        return pd.DataFrame(epoch_rows(read_trials(self.folder)), columns=list(EPOCH_COLUMNS))

    @cached_property
    def champion(self) -> "nn.Module | None":
        """The champion, ready for use: uint8 (N, C, H, W) -> logits (N, classes); or None."""
        from vgg_search.finding import load

        return load(self.folder) if self.summary["champion"] else None

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of the report by name, of plotly: a notebook shows each as it is."""
        from vgg_search.report.page import plots

        return plots(self.folder)


def search(
    config: Config | None = None,
    *,
    resume: str | None = None,
    quiet: bool = False,
    **fields: Any,
) -> Result:
    """Search, train and test the champion; the fields are those of an experiment file.

    `dataset` may also be images in memory: (x_train, y_train) or (x_train, y_train, x_test,
    y_test), arrays or tensors of uint8 with labels from 0 on, or torchvision-style Datasets, whose
    items are (image, label), one or (training, test). They are kept in the user's cache.

    `resume` names a study to go on with, as `--resume` does. With `quiet` nothing is printed.
    Ctrl-C (a notebook's "interrupt") stops the search in order: the result says `interrupted`, and
    `resume` goes on. A Ray that is initialised is used and left running. No process, signal handler
    or environment variable stays behind.

    Raises ConfigError or another InputError before anything is trained, and SearchError where no
    trial was completed or the champion failed.
    """
    if not isinstance(fields.get("dataset", ""), str | Path):
        from vgg_search.data.in_memory import keep

        fields["dataset"] = keep(fields["dataset"])
    given = (config.model_dump(exclude_unset=True) if config else {}) | fields
    config, resumed = _experiment(given, resume)
    from vgg_search import session

    with lasting_output(), _messages(quiet):
        _, summary = session.run(config, resumed, quiet, in_python=True)
    folder = local_folder(config.storage_path, str(config.name))
    if summary["state"] == "failed":
        raise SearchError(_reason(summary, folder))
    return Result(folder, summary)


def _experiment(fields: dict[str, Any], resume: str | None) -> tuple[Config, bool]:
    """The experiment, with a name, and whether it goes on with a study."""
    if resume is not None:
        return resumed_config(validated(Changes, fields), resume)
    config = validated(Config, fields)
    if config.name is None:
        config = validated(Config, fields | {"name": new_name(SEARCH, config.storage_path)})
    return config, False


@contextmanager
def _messages(quiet: bool) -> Iterator[None]:
    """Warnings of this package go to stderr, unless `quiet` or the user's own logging takes them;
    everything goes to log.txt."""
    log, handler = logging.getLogger("vgg_search"), logging.StreamHandler()
    handler.setLevel(logging.CRITICAL + 1 if quiet else logging.WARNING)
    root, propagate = logging.getLogger(), log.propagate
    before, level = [*root.handlers], root.level
    # Libraries that a search imports configure logging too: their handlers print every line, also
    # of the next search
    log.propagate = bool(before) and not quiet
    if not log.propagate:
        log.addHandler(handler)
    try:
        yield
    finally:
        log.propagate = propagate
        log.removeHandler(handler)
        root.handlers[:] = before
        root.setLevel(level)


def _reason(summary: dict[str, Any], folder: Path) -> str:
    what = summary.get("none_completed") or "the champion failed"
    return f"study {summary['study']}: {what}; see {folder / LOG} and {folder / REPORT}"
