"""What the commands beside `run` are given: flags over environment over defaults, as there."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vgg_search.cli.arguments import parser
from vgg_search.config import ENV_PREFIX, ConfigError, check_tracker
from vgg_search.records import AUTO, DATASETS
from vgg_search.storage.folder import JOURNAL, OUTBOX, RUNS, local_folder

MODEL = "a run or champion folder, or models:/NAME@ALIAS; without it, the latest champion"
# Fields of an experiment that other commands have too, where they have them
FROM_ENVIRONMENT = ("storage_path", "tracking_uri", "experiment", "dataset", "data_dir")


def parser_of(
    command: Callable[..., Any], data: bool = False, model: bool = True
) -> argparse.ArgumentParser:
    """A command's parser; a command is a function, its help its docstring."""
    made = parser(f"vgg-search {command.__name__}", f"{command.__doc__}".capitalize() + ".")
    if data:
        made.add_argument("--data-dir", type=Path, help="folder with Fashion-MNIST")
        made.add_argument("--dataset", choices=(AUTO, *DATASETS))
    if model:
        made.add_argument("--model", help=MODEL)
        made.add_argument("--tracking-uri", type=_tracker, help="MLflow, for models:/")
    made.add_argument("--storage-path", default=RUNS, help="where run folders are (runs)")
    made.add_argument("--json", action="store_true", help="print the result as one JSON line")
    made.add_argument("--debug", action="store_true", help="show tracebacks")
    return made


def parse(made: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """A command line's options, as if what the environment says stood before them. Raises
    ConfigError."""
    given = []
    for action in made._actions:
        value = os.environ.get(f"{ENV_PREFIX}{action.dest.upper()}")
        if action.dest in FROM_ENVIRONMENT and value:
            given.append(f"{action.option_strings[0]}={value}")
    return made.parse_args([*given, *argv])


def count(text: str) -> int:
    """A flag's type: an integer >= 1. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)


def _tracker(text: str) -> str | None:
    try:
        return check_tracker(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must {error}, got {text!r}") from None


def study_of(command: Callable[..., Any], argv: Sequence[str]) -> tuple[Path, argparse.Namespace]:
    """The run folder that a command line names, by default the latest. Raises ConfigError."""
    made = parser_of(command, model=False)
    made.add_argument(
        "name", nargs="?", metavar="NAME", help="of the study; without it, the latest"
    )
    sends = command.__name__ == "sync"
    if sends:
        made.add_argument("--timeout", type=float, default=600.0, help="seconds to try (600)")
    options = parse(made, argv)
    runs = local_folder(options.storage_path, "")
    mark = OUTBOX if sends else JOURNAL
    folders = sorted(runs.glob(f"*/{mark}"), key=lambda file: file.stat().st_mtime)
    if not options.name and not folders:
        raise ConfigError(f"no study found under {runs}")
    folder = runs / options.name if options.name else folders[-1].parent
    if not (folder / mark).is_file():
        raise ConfigError(f"no study named {options.name} in {runs}")
    return folder, options
