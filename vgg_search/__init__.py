"""Hyperparameter search for VGG-style networks.

`search` runs an experiment, `load` gives a trained network, `Config` is an experiment's fields.
Importing this package imports none of them: each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vgg_search.api import search
    from vgg_search.config import Config
    from vgg_search.finding import load

__all__ = ["Config", "load", "search"]

_MODULES = {"Config": "config", "load": "finding", "search": "api"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
