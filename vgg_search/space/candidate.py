"""A proposal of the sampler: the network and the sampled part of its recipe.

`Candidate` is also the table of dimensions: to add one, add a field. A dimension of the network is
an argument of `training.model.VGG` of that name, one of the recipe a field of
`training.recipe.Recipe`.
"""

from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any

from vgg_search.space.arch import Arch, as_arch, depth, describe, width

Value = bool | int | float | str
NETWORK, RECIPE = "network", "recipe"


@dataclass(frozen=True)
class Dimension:
    """What may be said of one dimension in an experiment's `space`."""

    kind: type
    default: Value | None
    """The value where the space is silent; None: it must be said."""
    rule: str
    """In words, for an error."""
    holds: Callable[[Any], bool]
    log: bool = False
    """Whether a range is on a log scale unless it says otherwise."""
    floor: Value | None = None
    """Where the dimension ends by nature, so that nobody can widen it."""
    part: str = NETWORK


def dimension(kind: type, rule: str, holds: Callable[[Any], bool], **given: Any) -> Any:
    """A field of Candidate with its row of the table."""
    row = Dimension(kind, given.pop("default", None), rule, holds, **given)
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
    dropout: float = dimension(float, "in [0, 1)", lambda v: 0 <= v < 1, default=0.5, floor=0.0)
    lr: float = dimension(float, "> 0", lambda v: v > 0, log=True, part=RECIPE)
    weight_decay: float = dimension(
        float, ">= 0", lambda v: v >= 0, default=0.0, log=True, floor=0.0, part=RECIPE
    )
    batch_size: int = dimension(int, ">= 1", lambda v: v >= 1, log=True, part=RECIPE)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Candidate":
        """The candidate that `to_dict` gave, perhaps by way of JSON. A record from before a
        dimension was added lacks it, and has its default."""
        return cls(**{**stored, "arch": as_arch(stored["arch"])})

    def to_dict(self) -> dict[str, Any]:
        """Its fields as plain data."""
        return asdict(self)

    def values(self) -> dict[str, Any]:
        """Its dimensions but for the arch, by name."""
        return {name: getattr(self, name) for name in DIMENSIONS}

    def network(self, resolution: int) -> dict[str, Any]:
        """Keyword arguments of `training.model.VGG`."""
        return {"arch": self.arch, "resolution": resolution, **self._of(NETWORK)}

    def recipe(self) -> dict[str, Any]:
        """The sampled part of `training.recipe.Recipe`."""
        return self._of(RECIPE)

    def _of(self, part: str) -> dict[str, Any]:
        return {n: getattr(self, n) for n, row in DIMENSIONS.items() if row.part == part}

    def params(self) -> dict[str, Any]:
        """What a trial is described by, in MLflow and in tables: the arch in short, its depth and
        width, then every dimension."""
        shape = {"arch": describe(self.arch), "depth": depth(self.arch), "width": width(self.arch)}
        return {**shape, "num_blocks": len(self.arch), **self.values()}

    def block_params(self) -> dict[str, int]:
        """num_convs_1, out_channels_1, num_convs_2, ... by the names that a sampler sees."""
        return {
            f"{name}_{i}": value
            for i, block in enumerate(self.arch, 1)
            for name, value in zip(BLOCK_DIMENSIONS, block, strict=True)
        }


def _row(of: "Field[Any]") -> Dimension | None:
    row: Dimension | None = of.metadata.get("dimension")
    return row


DIMENSIONS: dict[str, Dimension] = {
    of.name: row for of in fields(Candidate) if (row := _row(of)) is not None
}
# Of the arch: `num_blocks`, and the other two for each block
BLOCK_DIMENSIONS = {
    "num_convs": Dimension(int, 1, ">= 1", lambda v: v >= 1, floor=1),
    "out_channels": Dimension(int, None, ">= 1", lambda v: v >= 1, log=True),
}
ARCH_DIMENSIONS = {
    "num_blocks": Dimension(int, None, ">= 1", lambda v: v >= 1, floor=1),
    **BLOCK_DIMENSIONS,
}
