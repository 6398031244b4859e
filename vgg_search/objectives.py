"""What a search is for: its objectives, and which of the networks it found become champions."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

from vgg_search.records import METRIC

COSTS = (
    "num_params",
    "flops_per_image",
)  # of a network, known before it is trained; less is better
ACCURACY, KNEE = "accuracy", "knee"
_LIMIT = re.compile(rf"({'|'.join(COSTS)})\s*<=\s*(\d[\d_]*)")


def _split(value: Any) -> Any:
    """A flag's or a variable's text as names; what a file holds is not text."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    """Raises ValueError unless they are val_accuracy and some of what a network costs."""
    if names[:1] != (METRIC,) or len({*names}) < len(names) or not {*names[1:]} <= {*COSTS}:
        raise ValueError(f"be {METRIC}, or that first and then {' or '.join(COSTS)} or both")
    return names


def _a_rule(pick: str) -> str:
    """Raises ValueError unless it is a rule by which champions are picked."""
    if pick not in (ACCURACY, KNEE) and not _LIMIT.fullmatch(pick):
        limits = " or ".join(f"{name}<=N" for name in COSTS)
        raise ValueError(f"be {ACCURACY}, {KNEE}, {limits}")
    return pick


def within(pick: str, attrs: Mapping[str, Any]) -> bool:
    """Whether a rule lets a trial with these attributes become a champion."""
    limit = _LIMIT.fullmatch(pick)
    return not limit or attrs[limit[1]] <= int(limit[2])


Objectives = Annotated[
    tuple[str, ...], "NAME,NAME", NoDecode, BeforeValidator(_split), AfterValidator(_known)
]
Pick = Annotated[str, "RULE", AfterValidator(_a_rule)]
Sampler = Literal["curves", "tpe", "tpe-joint", "random", "gp", "cmaes"]


def sampler_for(fields: Mapping[str, Any]) -> Sampler:
    """Who proposes unless somebody is named, by a `Config`'s fields: `curves` knows no fronts."""
    return "tpe" if len(fields["objectives"]) > 1 else "curves"


def check_together(config: Any) -> None:
    """Raises ValueError where fields of a `Config` cannot work together."""
    several, named = len(config.objectives) > 1, ", ".join(config.objectives)
    sampler = config.sampler
    if config.warm_start is not None and sampler in ("random", "cmaes"):
        raise ValueError(f"warm_start must have sampler curves, tpe or gp, got {sampler}")
    if several and sampler in ("curves", "cmaes"):  # they know one value of a trial
        raise ValueError(f"sampler must be tpe, tpe-joint, gp or random for {named}, got {sampler}")
    if several and config.warm_start is not None:
        raise ValueError(f"warm_start must have one objective, got {named}")
    if several and config.stop_when_converged:
        raise ValueError(f"stop_when_converged must have one objective, got {named}")
    if config.pick == KNEE and not several:
        raise ValueError("pick must be knee with several objectives only")
