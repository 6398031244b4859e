"""How a network is trained: the recipe and its learning rate."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from vgg_search.config import Config
from vgg_search.space.candidate import DIMENSIONS, Candidate

# px of the images in which a recipe counts pixels: in others they are as large a share
RECIPE_SIDE = 28


def _default(name: str) -> Any:
    """Of the experiment's field: a default stands there alone."""
    return Config.model_fields[name].default


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Rates are per step, pixels those of an image of RECIPE_SIDE.

    A field that the experiment has too is set by it, one that Candidate has too is sampled.
    """

    max_epochs: int
    batch_size: int
    lr: float
    weight_decay: float = Candidate.weight_decay
    momentum: float = _default("momentum")
    schedule: Literal["one-cycle", "constant"] = _default("schedule")
    warmup: float = 0.25
    """Share of the steps in which one-cycle goes up."""
    label_smoothing: float = _default("label_smoothing")
    flip: bool = True
    crop: int = _default("crop")
    erase: int = _default("erase")
    ema: bool = _default("ema")
    precision: Literal["auto", "fp32", "bf16"] = _default("precision")


# Fields that the experiment sets for all its trials
RECIPE_FIELDS = tuple(
    field.name
    for field in fields(Recipe)
    if field.name in Config.model_fields.keys() - DIMENSIONS.keys() - {"max_epochs"}
)


def recipe_of(config: Config, candidate: Candidate, max_epochs: int) -> Recipe:
    """The experiment's recipe with what was sampled."""
    settings = {name: getattr(config, name) for name in RECIPE_FIELDS}
    if settings["flip"] is None:
        settings["flip"] = config.data.flip
    return Recipe(max_epochs=max_epochs, **settings, **candidate.recipe())


def lr_at(step: int, total_steps: int, recipe: Recipe) -> float:
    """Learning rate of step `step` in 0..total_steps-1.

    One-cycle (Smith, arXiv:1708.07120): up in a straight line over the `warmup` share of the steps,
    then down in a straight line to almost nothing.
    """
    if recipe.schedule == "constant":
        return recipe.lr
    top = int(recipe.warmup * total_steps)
    return recipe.lr * min((step + 1) / (top + 1), (total_steps - step) / (total_steps - top))
