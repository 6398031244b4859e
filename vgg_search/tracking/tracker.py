"""What a search says to a tracker. `Tracker` itself does nothing: it is a search without one.

To write another, subclass it in a file of its own and name it in `TRACKERS` of
`storage/addresses.py`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vgg_search.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

# Of a champion folder: a network from uint8 (N, 1, 28, 28) to probabilities (N, 10), and an
# example of N >= 2 images (from a single one torch.export fixes the batch size at 1).
Servable = Callable[[Path], "tuple[torch.nn.Module, np.ndarray]"]

Status = Literal["FINISHED", "FAILED", "KILLED"]
ANSWERS = ("model_uri", "run_id", "alias_text")  # of `results`, what a champion's summary tells
SEND_SECONDS = 60.0  # to wait at the end for a tracker that answers
STOPPED_SECONDS = 3.0  # the same after a signal, which is to end all within 10 s


class TrackerError(InputError):
    """A tracker that cannot take a study, and what would cure it; one line."""


class Tracker:
    """The runs of one study. Each has a key, unique in the study: "study", "trial/7".

    A subclass is made of what `connect` gives it (choice.py), and sends nothing before its `start`.

    No call waits for a server or raises because of one. `run` comes before any other call for its
    key. A resumed search repeats calls: a run that exists is opened again, a repeated step dropped.
    """

    uri = ""  # its address, as the user is told it
    error: str | None = None  # of the last attempt to send, one line; None if that worked

    @classmethod
    def check(cls, tracking_uri: str | None, experiment: str) -> None:
        """The look at a tracker before anything is trained. Raises TrackerError if it cannot take a
        study, and not if it is away."""

    @property
    def viewed_by(self) -> str:
        """An address or a command that shows the runs, without secrets."""
        return self.uri

    def run(
        self,
        key: str,
        name: str,
        tags: Mapping[str, Any],
        params: Mapping[str, Any],
        parent: str | None = None,
    ) -> None:
        """Creates the run, or opens it again. `parent` is the key of an earlier run.

        Three tags have a special meaning: `description` (Markdown), `source` (a command) and
        `parent_id`, the run_id of a parent in another study.
        """

    def log(self, key: str, metrics: Mapping[str, float], step: int) -> None:
        """One row of metrics. Steps of the same set of metrics only grow; a value that is not
        finite is left out, and the tag `non_finite` names it."""

    def tag(self, key: str, **tags: Any) -> None:
        """Sets tags of the run, in place of older ones of the same names."""

    def end(self, key: str, status: Status) -> None:
        """Closes the run, at the time of this call."""

    def artifact(self, key: str, path: Path, artifact_path: str | None = None) -> None:
        """A file, into the folder `artifact_path`, or a folder's content. It is read later, and
        must stay as it is until then."""

    def delete_artifact(self, key: str, artifact_path: str) -> None:
        """Removes a file or folder, sent or not. Call it before the local one is removed: then it
        is repeated if the process is killed between the two."""

    def dataset(self, key: str, name: str, digest: str, profile: Mapping[str, Any]) -> None:
        """The data that a run trains on; `profile` says how much of it."""

    def register(self, key: str, name: str, folder: Path) -> None:
        """Makes a champion folder a version of the registered model `name`; the alias moves to it
        if it is better. `results` tells the outcome."""

    def results(self, key: str) -> dict[str, Any]:
        """What the tracker has answered: run_id, and of a registered champion model_uri, version,
        alias_moved and alias_text (why). Empty until there is an answer."""
        return {}

    @property
    def keys(self) -> list[str]:
        """Keys of all runs."""
        return []

    @property
    def open_runs(self) -> list[str]:
        """Keys of the runs that have not ended: after a crash, those that it left running."""
        return []

    @property
    def unsent(self) -> int:
        return 0

    @property
    def refused(self) -> int:
        """Rows that the tracker will never take."""
        return 0

    @property
    def refusals(self) -> list[str]:
        """A line for each of these rows: which, and why."""
        return []

    def start(self, after: float = 0.0) -> None:
        """Begins to send, in `after` s. Until then everything is only kept."""

    def flush(self, timeout: float) -> int:
        """Waits until all is sent, at most `timeout` s; returns the number of rows unsent."""
        return self.unsent

    def close(self, timeout: float) -> int:
        """Flushes and stops sending; the last call. Returns the number of rows unsent."""
        return self.flush(timeout)
