"""Who proposes: the samplers by name, and the seeds of a study."""

import warnings
from itertools import islice

import numpy as np
import optuna

from vgg_search.space.candidate import Candidate
from vgg_search.space.dimension import AnySpace
from vgg_search.space.search_space import Space
from vgg_search.study.curves import CurveSampler

DRAWS = 100  # for each feasible candidate, before a space is taken for one without
TRAINING, PROPOSING = 0, 1  # independent streams of a trial's seed
VALUES_ONLY = ("gp", "cmaes")  # samplers that learn from complete trials alone


def trial_seed(seed: int, number: int, purpose: int = TRAINING) -> int:
    """Seed of trial `number` of a study with that seed."""
    return int(np.random.SeedSequence((seed, number, purpose)).generate_state(1)[0])


def make_sampler(
    kind: str, seed: int, space: AnySpace, rungs: tuple[int, ...]
) -> optuna.samplers.BaseSampler:
    """The sampler of that name. Made anew for each proposal, so that a proposal depends on the
    record and its own seed alone: a resumed study goes on as if never stopped."""
    if kind == "curves":
        return CurveSampler(space, rungs, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if kind in ("tpe", "tpe-joint"):
            # Each dimension by itself finds more than all at once, by 0.5 points of val_accuracy
            # with 2 and 8 workers (results/2026-11-24_search_efficiency). group, where they are
            # taken at once: num_convs_3 exists in some trials only
            joint = kind == "tpe-joint"
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=joint, group=joint, constant_liar=True
            )
        if kind == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        if kind == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        return optuna.samplers.RandomSampler(seed=seed)


def random_candidates(space: Space, seed: int, count: int) -> list[Candidate]:
    """Feasible candidates as random search would propose them; fewer than `count`, or none, where
    the limits of the space leave few."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    draws = (space.sample(study.ask()) for _ in range(DRAWS * count))
    return list(islice(filter(space.feasible, draws), count))
