"""A command line is read: flags over environment over experiment file over defaults, and over the
stored experiment of a study that is resumed. Every mistake is a ConfigError of one line.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import create_model
from pydantic_settings import CliSettingsSource, EnvSettingsSource

from vgg_search.cli.help import Flag, help_text
from vgg_search.config import (
    ENV_PREFIX,
    RESUMABLE,
    SETTLED,
    Changes,
    Config,
    ConfigError,
    Fields,
    validated,
)
from vgg_search.errors import did_you_mean
from vgg_search.storage.addresses import check_tracker
from vgg_search.storage.checksums import check_text
from vgg_search.storage.folder import (
    CONFIG,
    OUTBOX,
    expanded,
    in_use,
    local_folder,
    new_name,
    plain_name,
)
from vgg_search.storage.mirror import bring
from vgg_search.storage.place import Place
from vgg_search.tracking.outbox import Outbox


def flag(name: str, **settings: Any) -> Flag:
    return name, settings


def path(text: str) -> Path:
    """The type of a flag that names a file or folder."""
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must {error}, got {text!r}") from None


COMMON_FLAGS = [
    flag("--json", action="store_true", help="print the result as one JSON line, last"),
    flag("--debug", action="store_true", help="show tracebacks"),
]
RESUME_HELP = "go on with a study after any end; with --name NAME too: or start it"
RUN_FLAGS = [
    flag("--config", type=path, metavar="FILE", help="experiment file (YAML); its fields as below"),
    flag("--resume", metavar="NAME", help=RESUME_HELP),
    flag("--dry-run", action="store_true", help="show config, sampled networks and forecast"),
    flag("--quiet", action="store_true", help="print warnings and the result only"),
]
# What Kubernetes sets for each service; that of a cluster named vgg-search begins as our variables
SERVICE = re.compile(r"_SERVICE_(HOST|PORT\w*)$|_PORT(_\d+_(TCP|UDP)\w*)?$")


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, without its usage, which fills a screen."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse(
    prog: str, description: str, flags: Sequence[Flag], schema: type[Fields], argv: Sequence[str]
) -> tuple[dict[str, Any], argparse.Namespace]:
    """(fields of the schema that flags, environment or file set, values of `flags`). Raises
    ConfigError."""
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False)
    flags = [*flags, *COMMON_FLAGS]
    if asked := {"-h", "--help", "--help-all"} & set(argv):
        print(help_text(prog, description, flags, schema, "--help-all" in asked))
        sys.exit(0)
    for name, settings in flags:
        parser.add_argument(name, **settings)
    source: CliSettingsSource[Any] = CliSettingsSource(schema, root_parser=parser)
    options, rest = parser.parse_known_args(argv)
    if rest:
        names = [f"--{field}".replace("_", "-") for field in schema.model_fields]
        names += [*dict(flags), "--help", "--help-all"]
        word = rest[0].partition("=")[0]
        kind = "unknown flag" if word.startswith("-") else "unexpected argument"
        raise ConfigError(f"{kind} {word}{did_you_mean(word, names)}")
    _check_environment(schema)
    file = getattr(options, "config", None)
    environment = EnvSettingsSource(schema, env_ignore_empty=True, env_parse_none_str="null")
    fields = read_yaml(file) if file else {}
    return fields | environment() | source(parsed_args=options)(), options


def _check_environment(schema: type[Fields]) -> None:
    """Raise ConfigError for a variable that no command has, and for an address of no tracker."""
    for variable, value in os.environ.items():
        name = variable.upper()
        field = name.removeprefix(ENV_PREFIX).lower()
        if not value or not name.startswith(ENV_PREFIX) or SERVICE.search(name):
            continue
        if field not in Config.model_fields:
            hint = did_you_mean(field, Config.model_fields)
            raise ConfigError(f"{variable} must name a field, got {field!r}{hint}")
    try:
        if "tracking_uri" in schema.model_fields:
            check_tracker(os.environ.get("MLFLOW_TRACKING_URI"))
    except ValueError as error:
        raise ConfigError(f"MLFLOW_TRACKING_URI must {error}") from None


def parse_options(
    command: Callable[..., Any],
    argv: Sequence[str],
    flags: Sequence[Flag],
    fields: Sequence[str] = (),
    **own: Any,
) -> argparse.Namespace:
    """Values of a command's `flags`, of the `fields` that it shares with an experiment, and of
    those whose default is its `own`: name=(type, default). Raises ConfigError."""
    shared: dict[str, Any] = {
        name: (Config.model_fields[name].annotation, Config.model_fields[name])
        for name in ("storage_path", *fields)
    }
    schema = create_model("Options", __base__=Fields, **shared, **own)
    prog, text = f"vgg-search {command.__name__}", str(command.__doc__)
    values, options = parse(prog, f"{text[0].upper()}{text[1:]}.", flags, schema, argv)
    return argparse.Namespace(**vars(options) | dict(validated(schema, values)))


def load_config(argv: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """(experiment, options: resume, dry_run, quiet, ...) of the command line of a search.

    Of `--resume NAME` it is what is to be changed: see `resumed_config`. Raises ConfigError.
    """
    about = "Search depth, width and learning rate of a VGG-style network."
    fields, options = parse("python -m vgg_search.run", about, RUN_FLAGS, Config, argv)
    config = validated(Config if options.resume is None else Changes, fields)
    if config.name is None and options.resume is None:
        stem = plain_name(options.config.stem if options.config else "", "quick")
        config = validated(Config, fields | {"name": new_name(stem, config.storage_path)})
    return config, options


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields in an experiment file. Raises ConfigError if there are none."""
    import yaml  # 40 ms, of which `--help` has no need

    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"cannot read experiment file {path}: {reason}") from None
    except (yaml.YAMLError, ValueError) as error:  # also a date that there is not
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"experiment file {path}{where} is not valid YAML") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"experiment file {path} must be a map of fields, got {content!r:.60}")
    return content


def resumed_config(changes: Config, name: str) -> tuple[Config, bool]:
    """(the stored experiment of the study `name`, with the fields that `changes` sets over it,
    whether there is one): if there is none and `changes` has its name, it is to be started.

    It keeps its tracker, wherever the command runs, unless flag, file or environment name another.
    The run folder is first brought from its bucket, if it has one. Raises ConfigError if there is
    no such study otherwise, or if a field differs that makes it another study.
    """
    fields = changes.model_dump(exclude_unset=True) | {"name": name}
    fields = {n: x for n, x in fields.items() if not (n in SETTLED and x is None)}
    path = validated(Changes, fields).storage_path
    folder, place = local_folder(path, name), Place.of(path, name)
    if place.remote and not in_use(folder):  # perhaps of a driver on another machine
        bring(place, folder)
    if not (folder / CONFIG).is_file():
        if changes.name == name:
            return validated(Config, changes.model_dump(exclude_unset=True)), False
        raise ConfigError(f"no study named {name} in {path}")
    check_text(folder / CONFIG)
    # A run folder that was renamed is the study of its new name
    try:
        stored = validated(Config, read_yaml(folder / CONFIG) | {"name": name})
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}; restore it (MLflow has a copy)") from None
    kept = (folder / OUTBOX).is_file() and not os.environ.get("MLFLOW_TRACKING_URI")
    if kept and (own := Outbox.stored(folder)):  # empty, if the driver was killed as it made it
        fields = {"tracking_uri": own["tracking_uri"]} | fields
    config = validated(Config, stored.model_dump() | fields)
    _check_same_study(stored, config)
    return config, True


def _check_same_study(stored: Config, config: Config) -> None:
    """Raise ConfigError if a field differs that is not RESUMABLE."""
    for field in sorted(Config.model_fields.keys() - RESUMABLE):
        old, new = getattr(stored, field), getattr(config, field)
        if old == new:
            continue
        if field == "space":  # name what differs in it; a limit of null is none
            part = next((name for name in old | new if old.get(name) != new.get(name)), None)
            if part is None:
                continue
            field, old, new = f"space.{part}", old.get(part), new.get(part)
        raise ConfigError(f"{field} must stay {old!r} when a study is resumed, got {new!r}")
