"""What is raised for whom: bad input, and a search that did not reach its end.

Every other exception is a fault of this program or of its surroundings.
"""


class InputError(ValueError):
    """Bad input: one line, the rule and the received value. A command exits with 2."""


class SearchError(RuntimeError):
    """The work failed: no trial was completed, or the champion failed. A command exits with 1."""
