"""A study that is gone on with: its stored experiment, and what may be changed in it."""

from vgg_search.cli.arguments import read_yaml
from vgg_search.config import RESUMABLE, Config, ConfigError, validated
from vgg_search.storage.folder import CONFIG, local_folder
from vgg_search.storage.mirror import bring
from vgg_search.storage.place import Place


def resumed_config(changes: Config, name: str) -> Config | None:
    """The stored experiment of the study `name`, with the fields that `changes` sets over it.

    The run folder is first brought from its bucket, if it has one. None if there is no such study
    and `changes` has its name: it is to be started. Raises ConfigError if there is none otherwise,
    or if a field differs that makes it another study.
    """
    fields = changes.model_dump(exclude_unset=True) | {"name": name}
    path = validated(Config, fields).storage_path
    folder, place = local_folder(path, name), Place.of(path, name)
    if place.remote:  # perhaps of a driver on another machine
        bring(place, folder)
    if not (folder / CONFIG).is_file():
        if changes.name == name:
            return None
        raise ConfigError(f"no study named {name} in {path}")
    stored = validated(Config, read_yaml(folder / CONFIG))
    config = validated(Config, stored.model_dump() | fields)
    _check_same_study(stored, config)
    return config


def _check_same_study(stored: Config, config: Config) -> None:
    """Raise ConfigError if a field differs that is not RESUMABLE."""
    for field in sorted(Config.model_fields.keys() - RESUMABLE):
        old, new = getattr(stored, field), getattr(config, field)
        if old == new:
            continue
        if field == "space":  # name what differs in it
            part = next(name for name in old | new if old.get(name) != new.get(name))
            field, old, new = f"space.{part}", old.get(part), new.get(part)
        raise ConfigError(f"{field} must stay {old!r} when a study is resumed, got {new!r}")
