"""How a network is trained: the recipe and its learning rate."""

from vgg_search.config import Config, RecipeFields
from vgg_search.space.candidate import Candidate

# px of the images in which a recipe counts pixels: in others they are as large a share
RECIPE_SIDE = 28


class Recipe(RecipeFields):
    """How a network is trained: the experiment's fields, and what is settled or sampled. Rates are
    per step, pixels those of an image of RECIPE_SIDE."""

    max_epochs: int
    batch_size: int
    lr: float
    weight_decay: float = Candidate.weight_decay
    warmup: float = 0.25
    """Share of the steps in which one-cycle goes up."""
    flip: bool = True


# What the experiment and its data set for all trials
RECIPE_FIELDS = (*RecipeFields.model_fields, "flip")


def recipe_of(config: Config, candidate: Candidate, max_epochs: int) -> Recipe:
    """The experiment's recipe with what was sampled."""
    settings = config.model_dump(include={*RECIPE_FIELDS})
    if config.flip is None:
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
