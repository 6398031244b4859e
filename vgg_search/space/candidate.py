"""A proposal of the sampler: the network and the sampled part of its recipe.

`Candidate` is also the table of dimensions: to add one, add a field. A dimension of the network is
an argument of `training.model.VGG` of that name, one of the recipe a field of
`training.recipe.Recipe`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vgg_search.space.arch import Arch, as_arch, block_values, depth, describe

Value = bool | int | float | str
NETWORK, RECIPE = "network", "recipe"


@dataclass(frozen=True)
class Dimension:
    """What may be said of one dimension in an experiment's `space`."""

    kind: type
    rule: str  # in words, for an error
    holds: Callable[[Any], bool]
    default: Value | None = None  # where the space is silent; None: the space must name a value
    log: bool = False  # scale of a range that does not say
    floor: Value | None = None  # where the dimension ends by nature: nobody can widen it
    part: str = NETWORK


def dimension(kind: type, rule: str, holds: Callable[[Any], bool], **options: Any) -> Any:
    """A field of Candidate with its row of the table."""
    row = Dimension(kind, rule, holds, **options)
    default: dict[str, Any] = {} if row.default is None else {"default": row.default}
    return field(metadata={"dimension": row}, **default)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A resolved proposal. Two that are equal are the same training but for the seed."""

    arch: Arch
    hidden_features: int = dimension(int, ">= 1", lambda v: v >= 1, default=4096, log=True)
    num_hidden: int = dimension(int, ">= 0", lambda v: v >= 0, default=2, floor=0)
    batch_norm: bool = dimension(
        bool, "true or false", lambda v: isinstance(v, bool), default=False
    )
    kernel_size: int = dimension(
        int, "odd and >= 1", lambda v: v >= 1 and v % 2 == 1, default=3, floor=1
    )
    dropout: float = dimension(float, "in [0, 1)", lambda v: 0 <= v < 1, default=0.5, floor=0.0)
    lr: float = dimension(float, "> 0", lambda v: v > 0, log=True, part=RECIPE)
    weight_decay: float = dimension(
        float, ">= 0", lambda v: v >= 0, default=0.0, log=True, floor=0.0, part=RECIPE
    )
    batch_size: int = dimension(int, ">= 1", lambda v: v >= 1, log=True, part=RECIPE)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Candidate":
        """From `to_dict`, perhaps by way of JSON; a dimension that is missing has its default."""
        return cls(**{**stored, "arch": as_arch(stored["arch"])})

    def to_dict(self) -> dict[str, Any]:
        """Its fields as plain data."""
        return asdict(self)

    def values(self) -> dict[str, Any]:
        """Its dimensions but for the arch, by name."""
        return {name: getattr(self, name) for name in DIMENSIONS}

    def network(self, resolution: int) -> dict[str, Any]:
        """Keyword arguments of `training.model.VGG`, but for those that the data says."""
        return {"arch": self.arch, "resolution": resolution, **self._of(NETWORK)}

    def recipe(self) -> dict[str, Any]:
        """The sampled part of `training.recipe.Recipe`."""
        return self._of(RECIPE)

    def _of(self, part: str) -> dict[str, Any]:
        return {n: getattr(self, n) for n, row in DIMENSIONS.items() if row.part == part}

    def params(self) -> dict[str, Any]:
        """What describes a trial, in MLflow and in tables: the arch in short, its depth and width,
        then every dimension."""
        return {
            "arch": describe(self.arch),
            "depth": depth(self.arch),
            "width": max(out_channels for _, out_channels in self.arch),
            "num_blocks": len(self.arch),
            **self.values(),
        }

    def block_params(self) -> dict[str, int]:
        """The arch's dimensions by the names that a sampler sees."""
        return block_values(self.arch)


DIMENSIONS: dict[str, Dimension] = {
    f.name: f.metadata["dimension"] for f in fields(Candidate) if f.metadata
}
# Dimensions of each block
BLOCK_DIMENSIONS = {
    "num_convs": Dimension(int, ">= 1", lambda v: v >= 1, default=1, floor=1),
    "out_channels": Dimension(int, ">= 1", lambda v: v >= 1, log=True),
}
