"""An experiment from a command line: flags over environment over file over defaults.

Every mistake is a ConfigError of one line that names the rule and what was received.
"""

import argparse
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError
from pydantic_settings import CliSettingsSource, EnvSettingsSource, SettingsError

from vgg_search.config import RESUMABLE, Config, ConfigError, check_tracker
from vgg_search.storage.folder import CONFIG, local_folder, new_name
from vgg_search.storage.mirror import bring
from vgg_search.storage.place import Place


class _Parser(argparse.ArgumentParser):
    """argparse that reports in one line, with the nearest flag, instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        flag = re.search(r"unrecognized arguments: (\S+)", message)
        if flag:
            given = flag[1].split("=")[0]
            near = get_close_matches(given, self._option_string_actions, 1)
            what = "unknown flag" if given.startswith("-") else "unexpected argument"
            message = f"{what} {given}" + (f"; did you mean {near[0]}?" if near else "")
        raise ConfigError(message)


def _plain(value: Any) -> str:
    return repr(value) if isinstance(value, str) or value is None else str(value)


def _explain(error: ValidationError, names: Iterable[str]) -> str:
    """Pydantic's first complaint as "field must be RULE, got VALUE"."""
    first = error.errors()[0]
    context = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in first.get("ctx", {}).items()
    }
    loc = [str(part) for part in first["loc"]]
    kind, value = first["type"], first["input"]
    if kind == "extra_forbidden":
        near = get_close_matches(loc[0], names, 1)
        return f"unknown field {loc[0]!r}" + (f"; did you mean {near[0]}?" if near else "")
    if not loc:  # a check across fields, worded where it is made
        return str(context["error"])
    field = loc[0]
    rules = {
        "greater_than_equal": "be >= {ge}",
        "greater_than": "be > {gt}",
        "less_than_equal": "be <= {le}",
        "less_than": "be < {lt}",
        "literal_error": "be one of {expected}",
        "string_too_short": "not be empty",
        "value_error": "{error}",
    }
    if kind in rules:
        rule = rules[kind].format(**context)
    elif kind.startswith(("int_", "float_", "bool_")):
        names_of_kinds = {"int": "an integer", "float": "a number", "bool": "true or false"}
        rule = "be " + names_of_kinds[kind.split("_")[0]]
    elif field == "baseline":
        rule = "be a list of [num_convs, out_channels] pairs"
    else:
        rule = "be " + re.sub("^Input should be ", "", first["msg"])
    return f"{field} must {rule}, got {_plain(value)}"


def parser(prog: str, description: str) -> argparse.ArgumentParser:
    """An argument parser whose complaints are ConfigErrors of one line."""
    return _Parser(prog=prog, description=description, allow_abbrev=False)


RUN_OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("--config", {"metavar": "FILE", "help": "experiment file (YAML); its fields as below"}),
    (
        "--resume",
        {
            "metavar": "NAME",
            "help": "go on with a study after any end; with --name NAME too: or start it",
        },
    ),
    ("--dry-run", {"action": "store_true", "help": "show config, sampled networks and forecast"}),
    ("--json", {"action": "store_true", "help": "print the result as one JSON line, last"}),
    ("--quiet", {"action": "store_true", "help": "print warnings and the result only"}),
    ("--debug", {"action": "store_true", "help": "show tracebacks"}),
]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in an experiment file. Raises ConfigError if there is none."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"cannot read experiment file {path}: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"experiment file {path}{where} is not valid YAML") from None
    if not isinstance(content or {}, dict) or not all(
        isinstance(key, str) for key in content or {}
    ):
        raise ConfigError(f"experiment file {path} must be a map of fields, got {content!r:.60}")
    return content or {}


def build_config(given: Mapping[str, Any]) -> Config:
    """The experiment with these fields. Raises ConfigError."""
    try:
        return Config(**given)
    except ValidationError as error:
        raise ConfigError(_explain(error, Config.model_fields)) from None


def _layered(file: Path | None, flags: CliSettingsSource[Any]) -> dict[str, Any]:
    """What was asked for: flags over environment over the file."""
    given = read_yaml(file) if file else {}
    try:
        return given | EnvSettingsSource(Config)() | flags()
    except SettingsError as error:
        field = re.search(r'field "(\w+)"', str(error))
        raise ConfigError(f"{field[1] if field else 'a field'} must be valid JSON") from None


def load_config(
    argv: Sequence[str], prog: str = "python -m vgg_search.run"
) -> tuple[Config, argparse.Namespace]:
    """(experiment, options of RUN_OPTIONS) of a command line. Raises ConfigError."""
    made = parser(prog, "Search depth, width and learning rate of a VGG-style network.")
    for option in RUN_OPTIONS:
        made.add_argument(option[0], **option[1])
    source: CliSettingsSource[Any] = CliSettingsSource(Config, root_parser=made)
    options = made.parse_args(argv)
    try:
        flags = source(parsed_args=options)
    except SettingsError as error:
        reason = str(error).removeprefix("Parsing error encountered for ")
        raise ConfigError(f"cannot read --{reason}") from None
    try:
        check_tracker(os.environ.get("MLFLOW_TRACKING_URI"))
    except ValueError as error:
        raise ConfigError(f"MLFLOW_TRACKING_URI must {error}") from None
    file = Path(options.config) if options.config else None
    given = _layered(file, flags)
    if options.resume is not None:
        config = resumed_config(options.resume, given)
        if config is not None:
            return config, options
        options.resume = None  # the same command starts a study and goes on with it
    config = build_config(given)
    if config.name is None:
        stem = re.sub(r"[^A-Za-z0-9._-]", "-", file.stem) if file else "quick"
        config = build_config(given | {"name": new_name(stem, config.storage_path)})
    return config, options


def resumed_config(name: str, given: dict[str, Any]) -> Config | None:
    """The stored experiment of a study with what is given anew laid over it. If there is none,
    None where `given` has the name for a new one."""
    storage_path = build_config(given | {"name": name}).storage_path
    folder, place = local_folder(storage_path, name), Place.of(storage_path, name)
    if place.remote:  # perhaps of a driver on another machine
        bring(place, folder)
    stored_file = folder / CONFIG
    if not stored_file.is_file():
        if given.get("name") == name:
            return None
        raise ConfigError(f"no study named {name} in {storage_path}")
    before = build_config(read_yaml(stored_file))
    config = build_config(before.model_dump() | given | {"name": name})
    for field in sorted(Config.model_fields.keys() - RESUMABLE):
        old, new = getattr(before, field), getattr(config, field)
        if old != new:
            if field == "space":  # name what differs in it
                name = next(n for n in old | new if old.get(n) != new.get(n))
                field, old, new = f"space.{name}", old.get(name), new.get(name)
            raise ConfigError(
                f"{field} must stay {_plain(old)} when a study is resumed, got {_plain(new)}"
            )
    return config
