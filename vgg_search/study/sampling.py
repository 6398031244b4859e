"""How candidates are drawn from a search space."""

import optuna

from vgg_search.config import Config
from vgg_search.space.search_space import Candidate

DRAWS = 100  # for each feasible candidate, before a space is taken for one without


def random_candidates(config: Config, count: int) -> list[Candidate]:
    """Feasible candidates as random search would propose them; fewer than `count`, or none, where
    the limits of the space leave few."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=config.seed))
    space, candidates = config.search_space, list[Candidate]()
    for _ in range(DRAWS * count):
        candidate = space.sample(study.ask())
        if all(value <= 0 for value in space.excess(candidate).values()):
            candidates.append(candidate)
        if len(candidates) == count:
            break
    return candidates
