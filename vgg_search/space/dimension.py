"""One dimension of a search space: fixed, a choice, or an inclusive range."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Value = bool | int | float | str
# Dimension -> (value where the space is silent, type, rule in words, rule, log scale as a range)
RULES: dict[str, tuple[Value | None, type, str, Callable[[Any], bool], bool]] = {
    "num_blocks": (None, int, ">= 1", lambda v: v >= 1, False),
    "num_convs": (1, int, ">= 1", lambda v: v >= 1, False),
    "out_channels": (None, int, ">= 1", lambda v: v >= 1, True),
    "hidden_features": (4096, int, ">= 1", lambda v: v >= 1, True),
    "num_hidden": (2, int, ">= 0", lambda v: v >= 0, False),
    "batch_norm": (False, bool, "true or false", lambda v: isinstance(v, bool), False),
    "dropout": (0.5, float, "in [0, 1)", lambda v: 0 <= v < 1, False),
    "lr": (None, float, "> 0", lambda v: v > 0, True),
    "weight_decay": (0.0, float, ">= 0", lambda v: v >= 0, True),
    "batch_size": (None, int, ">= 1", lambda v: v >= 1, True),
}


class Suggester(Protocol):
    """The part of an Optuna trial that sampling needs."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...
    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None, log: bool
    ) -> float: ...
    def suggest_categorical(self, name: str, choices: list[Any]) -> Any: ...


@dataclass(frozen=True)
class Dim:
    """One dimension: fixed (one choice), a choice (several), or an inclusive range."""

    kind: type
    choices: tuple[Value, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None

    @property
    def fixed(self) -> bool:
        return len(self.choices) == 1

    def suggest(self, trial: Suggester, name: str) -> Any:
        if self.fixed:
            return self.choices[0]
        if self.choices:
            return trial.suggest_categorical(name, list(self.choices))
        if self.kind is int:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(name, low, high, step=step, log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def centre(self) -> Value:
        """Value of a trial that does not search here: the (log) middle, or the first choice."""
        if self.choices:
            return self.choices[0]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        if not self.step and self.kind is float:
            return middle
        step = self.step or 1
        return self.kind(self.low + round((middle - self.low) / step) * step)

    def match(self, raw: Any) -> Value | None:
        """`raw` as a value of this dimension; None where it is none."""
        value = as_number(raw)
        if self.choices:
            same = (
                c for c in self.choices if c == value and (type(c) is bool) == (type(value) is bool)
            )
            return next(same, None)
        if not is_number(value) or not self.low <= value <= self.high:
            return None
        steps = (value - self.low) / (self.step or 1)
        whole = abs(steps - round(steps)) < 1e-9 or (self.kind is float and not self.step)
        return self.kind(value) if whole else None


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def parse_dim(name: str, spec: Any) -> Dim:
    _, kind, rule, holds, log = RULES[name.rstrip("0123456789").rstrip("_")]

    def value(raw: Any) -> Any:
        try:
            # YAML reads 1e-4 (no dot) as text: a number is meant
            number = raw if kind is bool else float(raw)
            typed = kind(number)
            ok = (type(raw) is bool) == (kind is bool) and typed == number and holds(typed)
            ok = ok and math.isfinite(number)
        except (TypeError, ValueError, OverflowError):
            ok = False
        if not ok:
            what = "an integer " if kind is int else ""
            raise ValueError(f"space.{name} must be {what}{rule}, got {raw!r}")
        return typed

    step = None
    if isinstance(spec, Mapping):
        is_range = {"low", "high"} <= set(spec) <= {"low", "high", "log", "step"}
        if not is_range and set(spec) != {"choices"}:
            raise ValueError(
                f"space.{name} must be {{low, high, log, step}} or {{choices}}, got {dict(spec)}"
            )
        log, step = bool(spec.get("log", log and not spec.get("step"))), spec.get("step")
        bounds = [spec["low"], spec["high"]] if "low" in spec else None
        choices = spec.get("choices", [])
    else:
        choices = spec if isinstance(spec, list) else [spec]
        is_range = len(choices) == 2 and all(map(is_number, map(as_number, choices)))
        bounds = choices if is_range else None
    if bounds is None:
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"space.{name} must name at least one value, got {choices!r}")
        return Dim(kind, tuple(dict.fromkeys(map(value, choices))))
    low, high = map(value, bounds)
    if low > high:
        raise ValueError(f"space.{name} must have low <= high, got [{low}, {high}]")
    if low == high:
        return Dim(kind, (low,))
    if log and low <= 0:
        if isinstance(spec, Mapping) and spec.get("log"):
            raise ValueError(f"space.{name} on a log scale must have low > 0, got {low}")
        log = False
    if step is not None and not (is_number(step) and step > 0 and step == kind(step) and not log):
        what = "an integer " if kind is int else ""
        raise ValueError(f"space.{name} step must be {what}> 0 without a log scale, got {step!r}")
    if step is not None and Dim(kind, (), low, high, step=step).match(high) is None:
        raise ValueError(
            f"space.{name} must be low plus a number of steps at high, got {dict(spec)}"
        )
    return Dim(kind, (), low, high, log, step)


def as_number(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
