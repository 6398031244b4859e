"""The recipe: who sets its fields and defaults, and its learning rate."""

import pytest

from vgg_search.config import Config
from vgg_search.space.candidate import Candidate
from vgg_search.training.recipe import RECIPE_FIELDS, Recipe, lr_at, recipe_of

ONE_CYCLE = Recipe(max_epochs=3, batch_size=128, lr=0.1)
CONSTANT = ONE_CYCLE.model_copy(update={"schedule": "constant"})
CANDIDATE = Candidate(arch=((1, 8),), lr=0.05, weight_decay=1e-4, batch_size=60)


def test_the_recipe_is_the_experiments_with_what_was_sampled() -> None:
    assert {*Recipe.model_fields} == {*RECIPE_FIELDS, *CANDIDATE.recipe(), "max_epochs", "warmup"}
    recipe = recipe_of(Config(erase=3, flip=False), CANDIDATE, 9)
    assert (recipe.max_epochs, recipe.lr, recipe.erase, recipe.flip) == (9, 0.05, 3, False)
    assert (recipe.batch_size, recipe.weight_decay) == (60, 1e-4)


def test_defaults_are_the_experiments() -> None:
    assert Recipe(max_epochs=9, **CANDIDATE.recipe()) == recipe_of(Config(), CANDIDATE, 9)
    assert set(RECIPE_FIELDS) == {
        *("momentum", "schedule", "label_smoothing", "flip"),
        *("crop", "erase", "ema", "precision"),
    }


def test_one_cycle_goes_up_to_lr_and_down_to_almost_nothing() -> None:
    recipe = ONE_CYCLE.model_copy(update={"lr": 0.4, "warmup": 0.25})
    rates = [lr_at(step, 40, recipe) for step in range(40)]
    assert rates[10] == max(rates) == 0.4
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[0] == pytest.approx(0.4 / 11)
    assert rates[-1] == pytest.approx(0.4 / 30)


@pytest.mark.parametrize("total", [1, 2, 3, 1000])
def test_learning_rates_of_short_and_long_trainings_are_positive(total: int) -> None:
    for warmup in (0.0, 0.25, 0.9):
        recipe = ONE_CYCLE.model_copy(update={"warmup": warmup})
        rates = [lr_at(step, total, recipe) for step in range(total)]
        assert all(0 < rate <= ONE_CYCLE.lr for rate in rates)
        assert max(rates) == ONE_CYCLE.lr
    assert {lr_at(step, total, CONSTANT) for step in range(total)} == {CONSTANT.lr}
