"""What a study tells its workers (segments) and its listeners (events)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from vgg_search.records import EpochRow
from vgg_search.space.candidate import Candidate


@dataclass(frozen=True)
class Segment:
    """Work for one worker: train trial `number` until epoch `until`, from its checkpoint if any."""

    number: int
    candidate: Candidate
    seed: int
    until: int
    known: int  # last epoch in the record; rows after it are to be reported
    keep_above: float  # a best checkpoint is worth keeping from this val_accuracy on
    alone: bool = False

    def __deepcopy__(self, memo: object) -> "Segment":
        """Itself, for nothing in it can change: of each Ray would keep three copies."""
        return self


EventKind = Literal["started", "epoch", "waiting", "promoted", "ended", "retried", "skipped"]


@dataclass(frozen=True)
class Event:
    """What happened to a trial; `attrs` are its user attributes in the record."""

    kind: EventKind
    number: int
    attrs: dict[str, Any]
    row: EpochRow | None = None


Listener = Callable[[Event], None]
