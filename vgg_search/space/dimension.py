"""One dimension of a search space: fixed, a choice, or an inclusive range."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from vgg_search.space.candidate import Dimension, Value


class Suggester(Protocol):
    """The part of an Optuna trial that sampling needs."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...
    def suggest_categorical(self, name: str, choices: list[Any]) -> Any: ...


@dataclass(frozen=True)
class Dim:
    """Fixed (one choice), a choice (several), or an inclusive range."""

    kind: type
    choices: tuple[Value, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False

    @property
    def fixed(self) -> bool:
        return len(self.choices) == 1

    @property
    def ends(self) -> tuple[Any, Any]:
        """The lowest and the highest value."""
        return (min(self.choices), max(self.choices)) if self.choices else (self.low, self.high)

    def suggest(self, trial: Suggester, name: str) -> Any:
        if self.fixed:
            return self.choices[0]
        if self.choices:
            return trial.suggest_categorical(name, list(self.choices))
        if self.kind is int:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def centre(self) -> Value:
        """Value of a trial that does not search here: the (log) middle, or the first choice."""
        if self.choices:
            return self.choices[0]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return middle if self.kind is float else int(self.low) + round(middle - self.low)

    def match(self, raw: Any) -> Value | None:
        """`raw` as a value of this dimension; None where it is none."""
        value = as_number(raw)
        if self.choices:  # True == 1, but they are different choices
            is_bool = isinstance(value, bool)
            same = (c for c in self.choices if c == value and isinstance(c, bool) == is_bool)
            return next(same, None)
        inside = is_number(value) and self.low <= value <= self.high
        return self.kind(value) if inside and value == self.kind(value) else None


class AnySpace(Protocol):
    """What a study needs of a space; the experiment's is `search_space.Space`."""

    kind: ClassVar[Any]  # class of its candidates: hashable, with `from_dict`

    def sampled(self) -> dict[str, Dim]: ...
    def sample(self, trial: Suggester, arch: Any = None) -> Any: ...
    def enqueued(self, trial: Mapping[str, Any]) -> tuple[dict[str, Any], Any]: ...
    def describe(self, candidate: Any) -> dict[str, Any]: ...
    def excess(self, candidate: Any) -> dict[str, float]: ...


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def as_number(value: Any) -> Any:
    """Text that YAML did not read as the number it is (1e-4 has no dot) as that number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def parse_dim(name: str, row: Dimension, spec: Any) -> Dim:
    """The values that `spec` allows dimension `name`. Raises ValueError.

    A single value (or a list of one) is fixed; a list of two numbers is an inclusive range; any
    other list is a choice; {low, high, log} and {choices} say it explicitly.
    """
    log, log_required = row.log, False
    if isinstance(spec, Mapping):
        numeric = row.kind in (int, float)
        is_range = numeric and {"low", "high"} <= set(spec) <= {"low", "high", "log"}
        if not is_range and set(spec) != {"choices"}:
            forms = "{low, high, log} or {choices}" if numeric else "{choices}"
            raise ValueError(f"space.{name} must be {forms}, got {dict(spec)}")
        log, log_required = bool(spec.get("log", log)), bool(spec.get("log"))
        values = [spec["low"], spec["high"]] if is_range else spec["choices"]
    else:
        values = spec if isinstance(spec, list) else [spec]
        is_range = len(values) == 2 and all(is_number(as_number(value)) for value in values)
    if not isinstance(values, list) or not values:
        raise ValueError(f"space.{name} must name at least one value, got {values!r}")
    values = [_value(name, row, raw) for raw in values]
    low, high = values[0], values[-1]
    if not is_range or low == high:
        return Dim(row.kind, tuple(dict.fromkeys(values)))
    if low > high:
        raise ValueError(f"space.{name} must have low <= high, got [{low}, {high}]")
    if row.kind is int and not row.holds(low + 1):
        raise ValueError(f"space.{name} must be {row.rule}, got {low + 1} in a range")
    if log_required and low <= 0:
        raise ValueError(f"space.{name} on a log scale must have low > 0, got {low}")
    return Dim(row.kind, (), low, high, log and low > 0)


def _value(name: str, row: Dimension, raw: Any) -> Any:
    try:
        number = float(raw) if row.kind in (int, float) else raw
        value = row.kind(number)
        typed = isinstance(raw, bool) == (row.kind is bool) and value == number
        finite = row.kind is str or math.isfinite(number)
        if typed and finite and row.holds(value):
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    what = "an integer " if row.kind is int else ""
    raise ValueError(f"space.{name} must be {what}{row.rule}, got {raw!r}")
