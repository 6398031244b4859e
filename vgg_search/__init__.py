"""Search depth, width and learning rate of VGG-style networks.

    import vgg_search

    result = vgg_search.search(num_trials=40, time_budget="15m")
    network = vgg_search.load("models:/vgg-search@champion")

Importing the package imports nothing heavy: each name below is fetched when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vgg_search.machine import unsupported

if TYPE_CHECKING:
    from vgg_search.api import Result as Result
    from vgg_search.api import search as search
    from vgg_search.config import Config as Config
    from vgg_search.errors import InputError as InputError
    from vgg_search.errors import SearchError as SearchError
    from vgg_search.finding import load as load

_HOMES = {
    "search": "api",
    "Result": "api",
    "load": "finding",
    "Config": "config",
    "ConfigError": "config",
    "InputError": "errors",
    "SearchError": "errors",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vgg_search' has no attribute {name!r}")
    if reason := unsupported():
        raise ImportError(reason)
    return getattr(import_module(f"vgg_search.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
