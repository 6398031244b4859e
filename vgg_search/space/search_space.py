"""The search space: what the experiment file's `space` means, sampled define-by-run.

`num_convs` and `out_channels` hold for every block unless `num_convs_2` or `out_channels_2` says
otherwise for one. Impossible networks cannot be sampled: `num_blocks` is bounded by the resolution
when the space is read, and with `non_decreasing` (the default) a block is never narrower than the
one before it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from vgg_search.errors import did_you_mean
from vgg_search.space.arch import Arch, block_values, check_arch, most_blocks, network_costs
from vgg_search.space.candidate import BLOCK_DIMENSIONS, DIMENSIONS, Candidate, Dimension
from vgg_search.space.data_shape import ASSUMED, DataShape
from vgg_search.space.dimension import Dim, Suggester, as_number, is_number, parse_dim

LIMITS = ("max_params", "max_flops")
OTHERS = (*LIMITS, "non_decreasing")
NUM_BLOCKS = Dimension(int, ">= 1", lambda v: v >= 1, floor=1)
RULES = {"num_blocks": NUM_BLOCKS, **BLOCK_DIMENSIONS, **DIMENSIONS}


@dataclass(frozen=True)
class Space:
    """A parsed `space`. Raises ValueError (rule and received value) where it makes no sense."""

    spec: Mapping[str, Any]
    resolution: int
    batch_size: int
    data: DataShape = ASSUMED
    kind: ClassVar = Candidate

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
        """max_params and max_flops, where the space has them."""
        limits = {n: as_number(self.spec[n]) for n in LIMITS if self.spec.get(n) is not None}
        for name, limit in limits.items():
            if not (is_number(limit) and 1 <= limit < math.inf):
                raise ValueError(f"space.{name} must be >= 1, got {limit!r}")
        return {name: int(limit) for name, limit in limits.items()}

    @cached_property
    def dims(self) -> dict[str, Dim]:
        """Every dimension by name, those of blocks for each block (num_convs_1, ...) too."""
        names = [*RULES, *(f"{name}_{i}" for name in BLOCK_DIMENSIONS for i in self.blocks())]
        self._check_names(names)
        dims = {n: parse_dim(n, dimension_of(n), self.spec[n]) for n in names if n in self.spec}
        for name, row in DIMENSIONS.items():
            default = self.batch_size if name == "batch_size" else row.default
            dims.setdefault(name, Dim(row.kind, (default,)))  # type: ignore[arg-type]
        most = int(dims["num_blocks"].ends[1])
        # A number with too many digits is refused before it fills the memory
        check_arch(((1, 1),) * min(most, 1000), self.resolution)
        for i in range(1, most + 1):
            for name, row in BLOCK_DIMENSIONS.items():
                shared = dims.get(name) or (Dim(row.kind, (row.default,)) if row.default else None)
                dim = dims.get(f"{name}_{i}", shared)
                if dim is None:
                    raise ValueError(f"space must say {name} or {name}_{i}, got neither")
                dims[f"{name}_{i}"] = dim
        return dims

    def blocks(self) -> range:
        """Numbers of the blocks that there may be at this resolution."""
        return range(1, most_blocks(self.resolution) + 1)

    def _check_names(self, names: list[str]) -> None:
        spec = [name for name in self.spec if name not in OTHERS]
        for name in spec:
            if name not in names:
                hint = did_you_mean(str(name), [*names, *OTHERS])
                raise ValueError(f"space has no dimension {name!r}{hint}")
        for needed in ("num_blocks", "lr", "out_channels"):  # the last perhaps block by block
            if not any(name.startswith(needed) for name in spec):
                raise ValueError(
                    f"space must say {needed}, got only {', '.join(spec) or 'nothing'}"
                )

    def sampled(self) -> dict[str, Dim]:
        """The dimensions that a sampler decides, by the names it sees."""
        return {n: d for n, d in self.dims.items() if n not in BLOCK_DIMENSIONS and not d.fixed}

    def sample(self, trial: Suggester, arch: Arch | None = None) -> Candidate:
        """Ask `trial` for every dimension that exists but those of an `arch` that is passed."""
        if arch is None:
            blocks: list[tuple[int, int]] = []
            for i in range(1, self.dims["num_blocks"].suggest(trial, "num_blocks") + 1):
                num_convs, out_channels = (
                    self.dims[f"{name}_{i}"].suggest(trial, f"{name}_{i}")
                    for name in BLOCK_DIMENSIONS
                )
                if self.non_decreasing and blocks:
                    # A sampler knows no bound that moves within a trial: the value
                    # stands for "at least", so no proposal is wasted.
                    out_channels = max(out_channels, blocks[-1][1])
                blocks.append((num_convs, out_channels))
            arch = tuple(blocks)
        values = {name: self.dims[name].suggest(trial, name) for name in DIMENSIONS}
        return Candidate(arch=arch, **values)

    def enqueued(self, trial: Mapping[str, Any]) -> tuple[dict[str, Any], Arch | None]:
        """(values by name, the arch if it lies outside the space) of a trial asked for by hand.

        `trial` may hold an `arch` and any dimension; a sampled one that it leaves out is at its
        centre. Raises ValueError for a value outside the space.
        """
        values = dict(trial)
        arch: Arch | None = values.pop("arch", None)
        if arch is not None and (inside := self._within(arch)):
            values, arch = inside | values, None
        params: dict[str, Any] = {name: dim.centre() for name, dim in self.sampled().items()}
        for name, value in values.items():
            match = self.dims[name].match(value) if name in self.dims else None
            if match is None:
                raise ValueError(f"an enqueued {name} must lie in the space, got {value!r}")
            if name in params:
                params[name] = match
        return params, arch

    def _within(self, arch: Arch) -> dict[str, int]:
        """The arch's dimensions by name; empty if this space cannot propose it."""
        values = {"num_blocks": len(arch), **block_values(arch)}
        widths = [out_channels for _, out_channels in arch]
        can_propose = (not self.non_decreasing or widths == sorted(widths)) and all(
            name in self.dims and self.dims[name].match(value) is not None
            for name, value in values.items()
        )
        return values if can_propose else {}

    def network(self, candidate: Candidate) -> dict[str, Any]:
        """Keyword arguments of `training.model.VGG`."""
        return candidate.network(self.resolution) | self.data.network()

    def costs(self, candidate: Candidate) -> tuple[int, int]:
        """(parameters, FLOPs of an image's forward pass), without building the network."""
        return network_costs(**self.network(candidate))

    def describe(self, candidate: Candidate) -> dict[str, Any]:
        """What a trial's record says of the candidate."""
        params, flops = self.costs(candidate)
        costs = {"num_params": params, "flops_per_image": flops}
        return {"candidate": candidate.to_dict(), "arch": candidate.arch} | costs

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
