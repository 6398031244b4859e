"""What the data settles in an experiment: nothing is known of 28 px, one channel or ten classes."""

from pathlib import Path

import numpy as np
import pytest

from vgg_search.config import Config, ConfigError
from vgg_search.data.splits import load
from vgg_search.space import default_space
from vgg_search.space.candidate import Candidate
from vgg_search.study.sampling import random_candidates
from vgg_search.training.model import VGG
from vgg_search.training.recipe import recipe_of

CANDIDATE = Candidate(arch=((1, 8), (1, 8)), lr=0.1, batch_size=32, hidden_features=16)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """720 colour images of 32 px in 12 classes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (720, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x_train=x, y_train=np.arange(720) % 12)
    return tmp_path / "x.npz"


def test_the_data_settles_what_was_not_asked_for(file: Path) -> None:
    config, splits = load(Config(dataset=str(file), num_trials=3))
    assert (config.resolution, config.val_images, config.flip) == (32, 100, True)
    assert (config.data.side, config.data.channels, config.data.classes) == (32, 3, 12)
    assert (config.data.train_images, config.data.val_images) == (500, 100)
    assert config.num_trials == 3
    assert Config(**config.model_dump()).dump() == config.dump()
    options = config.search_space.network(CANDIDATE)
    network = VGG(**options)
    costs = (network.num_params, network.flops_per_image)
    assert (options["in_channels"], options["num_classes"]) == (3, 12)
    assert config.search_space.costs(CANDIDATE) == costs
    assert recipe_of(config, CANDIDATE, 1).flip
    asked, _ = load(Config(dataset=str(file), resolution=16, val_images=50, flip=False))
    assert (asked.resolution, asked.val_images, asked.flip) == (16, 50, False)
    assert splits.shape == config.data


def test_a_space_too_deep_for_the_images_is_refused(tmp_path: Path, file: Path) -> None:
    with np.load(file) as arrays:
        np.savez(
            tmp_path / "y.npz", x_train=arrays["x_train"][:, ::8, ::8], y_train=arrays["y_train"]
        )
    space = {"num_blocks": [1, 3], "out_channels": 8, "lr": 0.1}
    with pytest.raises(ConfigError, match="num_blocks must be <= 2 at resolution 4, got 3"):
        load(Config(dataset=str(tmp_path / "y.npz"), baseline=None, space=space))
    config, _ = load(Config(dataset=str(tmp_path / "y.npz")))  # the default's own fit
    assert config.baseline == default_space.BASELINE | {"arch": ((1, 16), (1, 32))}
    assert config.space == default_space.SPACE | {"num_blocks": [1, 2], "max_flops": 408_163}
    assert all(len(c.arch) <= 2 for c in random_candidates(config.search_space, 0, 5))


def test_a_deep_space_waits_for_the_images(file: Path) -> None:
    """Five blocks do not fit Fashion-MNIST, which is what an experiment is checked for first."""
    space = {"num_blocks": 5, "out_channels": 8, "lr": 0.1}
    config, _ = load(Config(dataset=str(file), baseline=None, space=space))
    assert config.search_space.resolution == 32
    with pytest.raises(ValueError, match="num_blocks must be <= 4 at resolution 28, got 5"):
        Config(baseline=None, space=space)
