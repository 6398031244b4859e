"""Which tracker a study has: the class that its address stands for.

It is looked at once before anything is trained. A tracker that is merely away is none: what it is
to get waits.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

from vgg_search.storage.addresses import tracker_at
from vgg_search.tracking.tracker import Servable, Tracker

CHECK_SECONDS = 25.0  # for a tracker to be asked; it is away if that takes longer


def named(tracking_uri: str | None) -> tuple[type[Tracker], str | None]:
    """The class of trackers at an address, by default at that of MLFLOW_TRACKING_URI, and the
    address; without one the class has a default of its own."""
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None
    return resolve_name(tracker_at(uri or "")), uri


def connect(
    folder: Path, tracking_uri: str | None, experiment: str, study: str, servable: Servable
) -> Tracker:
    """The tracker of the study in `folder`. Nothing is sent before its `start`."""
    kind, uri = named(tracking_uri)
    made_of: Callable[..., Tracker] = kind  # Tracker itself takes nothing
    return made_of(folder, uri, experiment, study, servable)


class Check:
    """The look at a tracker, in a thread, so that nobody waits for it before its `result`."""

    def __init__(self, tracking_uri: str | None, experiment: str) -> None:
        kind, uri = named(tracking_uri)  # here: two threads are not to import the same packages
        self._error: Exception | None = None
        given = kind, uri, experiment
        self._thread = threading.Thread(target=self._run, args=given, daemon=True)
        self._thread.start()

    def _run(self, kind: type[Tracker], uri: str | None, experiment: str) -> None:
        try:
            kind.check(uri, experiment)
        except Exception as error:  # told by `result`
            self._error = error

    def result(self, seconds: float = CHECK_SECONDS) -> None:
        """Waits for the answer, at most so long; a tracker that gives none by then is away. Raises
        TrackerError if it cannot take the study."""
        self._thread.join(seconds)
        if self._error:
            raise self._error
