"""What is raised for whom: bad input, and a search that did not reach its end.

Every other exception is a fault of this program or of its surroundings.
"""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input: one line, the rule and the received value. A command exits with 2."""


class DeviceError(InputError):
    """The cluster, or a process of it, lacks what a trial asks for."""


class SearchError(RuntimeError):
    """The work failed: no trial was completed, or the champion failed. A command exits with 1."""


def last_line(error: BaseException | str) -> str:
    """What it says last, which of a worker's error, with its traceback, is the error itself."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it came from, and so on."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """What an error says after an unknown word: the nearest of `words`, if one is near."""
    nearest = get_close_matches(word, list(words), 1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
