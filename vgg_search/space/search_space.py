"""The search space: what the experiment file's `space` means, sampled define-by-run.

`num_convs` and `out_channels` hold for every block unless `num_convs_2` or `out_channels_2` says
otherwise for one. Impossible networks cannot be sampled: `num_blocks` is bounded by the resolution
when the space is read, and with `non_decreasing` (the default) a block is never narrower than the
one before it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from vgg_search.space.arch import Arch, check_arch, network_costs
from vgg_search.space.candidate import (
    ARCH_DIMENSIONS,
    BLOCK_DIMENSIONS,
    DIMENSIONS,
    Candidate,
    Dimension,
)
from vgg_search.space.dimension import Dim, Suggester, as_number, is_number, parse_dim

LIMITS = ("max_params", "max_flops")
RULES: dict[str, Dimension] = ARCH_DIMENSIONS | DIMENSIONS
OTHERS = (*LIMITS, "non_decreasing")


@dataclass(frozen=True)
class Space:
    """A parsed `space`. Raises ValueError (rule and received value) where it makes no sense."""

    spec: Mapping[str, Any]
    resolution: int
    batch_size: int

    def __post_init__(self) -> None:
        if not isinstance(self.non_decreasing, bool):
            raise ValueError(
                f"space.non_decreasing must be true or false, got {self.non_decreasing!r}"
            )
        _ = self.limits, self.dims  # checked as they are read

    @property
    def non_decreasing(self) -> bool:
        """Whether a block is at least as wide as the one before it."""
        return self.spec.get("non_decreasing", True)

    @cached_property
    def limits(self) -> dict[str, int]:
        """max_params and max_flops, where they are given."""
        limits = {}
        for name in LIMITS:
            limit = as_number(self.spec.get(name))
            if limit is not None and not (is_number(limit) and 1 <= limit < math.inf):
                raise ValueError(f"space.{name} must be >= 1, got {limit!r}")
            if limit is not None:
                limits[name] = int(limit)
        return limits

    @cached_property
    def dims(self) -> dict[str, Dim]:
        """Every dimension by name, those of blocks for each block (num_convs_1, ...) too."""
        spec = {name: value for name, value in self.spec.items() if name not in OTHERS}
        blocks = [f"{name}_{i}" for name in BLOCK_DIMENSIONS for i in self.blocks()]
        self._check_names(spec, [*RULES, *blocks])
        dims = {n: parse_dim(n, dimension_of(n), spec[n]) for n in (*RULES, *blocks) if n in spec}
        for name, row in DIMENSIONS.items():
            default = self.batch_size if name == "batch_size" else row.default
            dims.setdefault(name, Dim(row.kind, (default,)))  # type: ignore[arg-type]
        for i in range(1, self._most_blocks(dims["num_blocks"]) + 1):
            for name, row in BLOCK_DIMENSIONS.items():
                shared = dims.get(name) or (Dim(row.kind, (row.default,)) if row.default else None)
                dim = dims.get(f"{name}_{i}", shared)
                if dim is None:
                    raise ValueError(f"space must say {name} or {name}_{i}, got neither")
                dims[f"{name}_{i}"] = dim
        return dims

    def blocks(self) -> range:
        """Numbers of the blocks that there may be at this resolution."""
        return range(1, self.resolution.bit_length())

    def _most_blocks(self, num_blocks: Dim) -> int:
        most = int(num_blocks.ends[1])
        # Not more than there can be: a slip of the finger is not to fill the memory
        check_arch(((1, 1),) * min(most, 1000), self.resolution)
        return most

    def _check_names(self, spec: Mapping[str, Any], names: list[str]) -> None:
        for name in spec:
            if name not in names:
                near = get_close_matches(str(name), [*names, *OTHERS], 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"space has no dimension {name!r}{hint}")
        missing = [n for n in ("num_blocks", "lr") if n not in spec]
        missing += ["out_channels"] if not any(n.startswith("out_channels") for n in spec) else []
        if missing:
            raise ValueError(
                f"space must say {missing[0]}, got only {', '.join(spec) or 'nothing'}"
            )

    def sampled(self) -> dict[str, Dim]:
        """The dimensions that a sampler decides, by the names it sees."""
        return {n: d for n, d in self.dims.items() if n not in BLOCK_DIMENSIONS and not d.fixed}

    def sample(self, trial: Suggester, arch: Arch | None = None) -> Candidate:
        """Ask `trial` for every dimension that exists; a given `arch` is taken as it is."""
        if arch is None:
            blocks: list[tuple[int, int]] = []
            for i in range(1, self.dims["num_blocks"].suggest(trial, "num_blocks") + 1):
                num_convs, out_channels = (
                    self.dims[f"{name}_{i}"].suggest(trial, f"{name}_{i}")
                    for name in BLOCK_DIMENSIONS
                )
                if self.non_decreasing and blocks:
                    # A sampler cannot be told of a bound that moves within a trial: the value
                    # stands for "at least", so no proposal is wasted.
                    out_channels = max(out_channels, blocks[-1][1])
                blocks.append((num_convs, out_channels))
            arch = tuple(blocks)
        values = {name: self.dims[name].suggest(trial, name) for name in DIMENSIONS}
        return Candidate(arch=arch, **values)

    def enqueued(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], Arch | None]:
        """Names and values of a trial asked for by hand, and its arch if that is outside the space.

        `given` may hold an `arch` and any sampled dimension; what it leaves out is at its centre.
        Raises ValueError for a value outside the space.
        """
        given = dict(given)
        arch: Arch | None = given.pop("arch", None)
        if arch is not None and (inside := self._within(arch)):
            given, arch = inside | given, None
        params: dict[str, Any] = {}
        for name, dim in self.sampled().items():
            value = given.pop(name, dim.centre())
            params[name] = dim.match(value)
            if params[name] is None:
                raise ValueError(f"an enqueued {name} must lie in the space, got {value!r}")
        wrong = [n for n in given if n not in self.dims or self.dims[n].match(given[n]) is None]
        if wrong:
            raise ValueError(
                f"an enqueued {wrong[0]} must lie in the space, got {given[wrong[0]]!r}"
            )
        return params, arch

    def _within(self, arch: Arch) -> dict[str, int]:
        """The arch's dimensions by name; empty if this space cannot propose it."""
        values = {"num_blocks": len(arch)}
        for i, block in enumerate(arch, 1):
            values |= {f"{n}_{i}": v for n, v in zip(BLOCK_DIMENSIONS, block, strict=True)}
        widths = [out_channels for _, out_channels in arch]
        fits = (not self.non_decreasing or widths == sorted(widths)) and all(
            name in self.dims and self.dims[name].match(value) is not None
            for name, value in values.items()
        )
        return values if fits else {}

    def costs(self, candidate: Candidate) -> tuple[int, int]:
        """(parameters, FLOPs of an image's forward pass), without building the network."""
        return network_costs(**candidate.network(self.resolution))

    def excess(self, candidate: Candidate) -> dict[str, float]:
        """Constraint values by name, relative; a value <= 0 is feasible."""
        costs = dict(zip(LIMITS, self.costs(candidate), strict=True))
        return {name: costs[name] / limit - 1 for name, limit in self.limits.items()}

    def feasible(self, candidate: Candidate) -> bool:
        """Whether the candidate is within the limits."""
        return all(value <= 0 for value in self.excess(candidate).values())


def dimension_of(name: str) -> Dimension:
    """What may be said of a dimension, by its name; that of a block (num_convs_1) too."""
    return RULES[name.rstrip("0123456789").rstrip("_")]
