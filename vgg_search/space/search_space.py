"""The search space: what the experiment file's `space` means, sampled define-by-run.

A single value (or a list of one) is fixed; a list of two numbers is an inclusive range; any other
list is a choice; `{low, high, log, step}` and `{choices: [...]}` say it explicitly. `num_convs` and
`out_channels` hold for every block unless `num_convs_2` or `out_channels_2` says otherwise for one.
Impossible networks cannot be sampled: `num_blocks` is bounded by the resolution when the space is
read, and with `non_decreasing` (the default) a block is never narrower than the one before it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vgg_search.space.arch import Arch, check_arch, count_flops, count_params
from vgg_search.space.dimension import RULES, Dim, Suggester, as_number, is_number, parse_dim

BLOCK_DIMS = ("num_convs", "out_channels")
_LIMITS = ("max_params", "max_flops")


@dataclass(frozen=True)
class Candidate:
    """A resolved proposal: the network and the recipe's sampled part."""

    arch: Arch
    lr: float
    weight_decay: float
    batch_size: int
    dropout: float
    hidden_features: int
    num_hidden: int
    batch_norm: bool

    def network(self, resolution: int) -> dict[str, Any]:
        """Keyword arguments of `model.VGG`."""
        return {
            "arch": self.arch,
            "resolution": resolution,
            "hidden_features": self.hidden_features,
            "num_hidden": self.num_hidden,
            "dropout": self.dropout,
            "batch_norm": self.batch_norm,
        }

    def recipe(self) -> dict[str, Any]:
        """The sampled part of `train.Recipe`."""
        return {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "batch_size": self.batch_size,
        }


@dataclass(frozen=True)
class Space:
    """A parsed `space`. Raises ValueError (rule and received value) where it makes no sense."""

    spec: Mapping[str, Any]
    resolution: int
    batch_size: int
    dims: dict[str, Dim] = field(init=False)
    non_decreasing: bool = field(init=False)
    limits: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        spec = dict(self.spec)
        non_decreasing = spec.pop("non_decreasing", True)
        if not isinstance(non_decreasing, bool):
            raise ValueError(f"space.non_decreasing must be true or false, got {non_decreasing!r}")
        limits = {}
        for name in _LIMITS:
            limit = as_number(spec.pop(name, None))
            if limit is not None and not (is_number(limit) and 1 <= limit < math.inf):
                raise ValueError(f"space.{name} must be >= 1, got {limit!r}")
            if limit is not None:
                limits[name] = int(limit)
        known = self._known(spec)
        missing = [n for n in ("num_blocks", "lr") if n not in spec]
        missing += ["out_channels"] if not any(n.startswith("out_channels") for n in spec) else []
        if missing:
            raise ValueError(
                f"space must say {missing[0]}, got only {', '.join(spec) or 'nothing'}"
            )
        dims = {name: parse_dim(name, spec[name]) for name in known if name in spec}
        for name, (default, kind, *_) in RULES.items():
            if name not in dims and name not in BLOCK_DIMS:
                default = self.batch_size if name == "batch_size" else default
                dims[name] = Dim(kind, (default,))  # type: ignore[arg-type]
        for i in range(1, self._most_blocks(dims["num_blocks"]) + 1):
            for name in BLOCK_DIMS:
                shared = dims.get(name) or (Dim(int, (1,)) if name == "num_convs" else None)
                dim = dims.get(f"{name}_{i}", shared)
                if dim is None:
                    raise ValueError(f"space must say {name} or {name}_{i}, got neither")
                dims[f"{name}_{i}"] = dim
        for attribute, value in (
            ("dims", dims),
            ("non_decreasing", non_decreasing),
            ("limits", limits),
        ):
            object.__setattr__(self, attribute, value)

    def _most_blocks(self, num_blocks: Dim) -> int:
        most = int(max(num_blocks.choices) if num_blocks.choices else num_blocks.high)
        # Not more than cannot be: a slip of the finger is not to fill the memory
        check_arch(((1, 1),) * min(most, 1000), self.resolution)
        return most

    def _known(self, spec: dict[str, Any]) -> list[str]:
        blocks = range(1, self.resolution.bit_length())
        known = [*RULES, *(f"{name}_{i}" for name in BLOCK_DIMS for i in blocks)]
        for name in spec:
            if name not in known:
                from difflib import get_close_matches

                near = get_close_matches(str(name), [*known, *_LIMITS, "non_decreasing"], 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"space has no dimension {name!r}{hint}")
        return known

    def sampled(self) -> dict[str, Dim]:
        """The dimensions that a sampler decides, by the names it sees."""
        return {n: d for n, d in self.dims.items() if n not in BLOCK_DIMS and not d.fixed}

    def sample(self, trial: Suggester, arch: Arch | None = None) -> Candidate:
        """Ask `trial` for every dimension that exists; a given `arch` is taken as it is."""
        values: dict[str, Any] = {}
        if arch is None:
            blocks: list[tuple[int, int]] = []
            for i in range(1, self.dims["num_blocks"].suggest(trial, "num_blocks") + 1):
                num_convs, out_channels = (
                    self.dims[f"{name}_{i}"].suggest(trial, f"{name}_{i}") for name in BLOCK_DIMS
                )
                if self.non_decreasing and blocks:
                    # A sampler cannot be told of a bound that moves within a trial: the value
                    # stands for "at least", so no proposal is wasted.
                    out_channels = max(out_channels, blocks[-1][1])
                blocks.append((num_convs, out_channels))
            arch = tuple(blocks)
        for name in RULES:
            if name != "num_blocks" and name not in BLOCK_DIMS:
                values[name] = self.dims[name].suggest(trial, name)
        return Candidate(arch=arch, **values)

    def enqueued(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], Arch | None]:
        """Names and values of a trial asked for by hand, and its arch if that is outside the space.

        `given` may hold an `arch` and any sampled dimension; what it leaves out is at its centre.
        """
        given = dict(given)
        params: dict[str, Any] = {}
        arch: Arch | None = given.pop("arch", None)
        if arch is not None:
            inside = {"num_blocks": len(arch)}
            for i, (num_convs, out_channels) in enumerate(arch, 1):
                inside |= {f"num_convs_{i}": num_convs, f"out_channels_{i}": out_channels}
            widths = [out_channels for _, out_channels in arch]
            if (not self.non_decreasing or widths == sorted(widths)) and all(
                name in self.dims and self.dims[name].match(value) is not None
                for name, value in inside.items()
            ):
                given, arch = inside | given, None
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

    def costs(self, candidate: Candidate) -> tuple[int, int]:
        """(parameters, FLOPs a forward image) of a candidate's network, without building it."""
        options = candidate.network(self.resolution)
        batch_norm = options.pop("batch_norm")
        del options["dropout"]
        return count_params(batch_norm=batch_norm, **options), count_flops(**options)

    def excess(self, candidate: Candidate) -> dict[str, float]:
        """Constraint values by name, relative; a value <= 0 is feasible."""
        params, flops = self.costs(candidate)
        cost = {"max_params": params, "max_flops": flops}
        return {name: cost[name] / limit - 1 for name, limit in self.limits.items()}
