"""What a reader should know before trusting a study."""

import math
import statistics
from typing import Any, NamedTuple

from vgg_search.records import METRIC
from vgg_search.report.run import TOP_LEAST, Row, Run
from vgg_search.space.dimension import Dim
from vgg_search.space.search_space import dimension_of
from vgg_search.study.convergence import standard_error
from vgg_search.study.sampling import random_candidates

RANDOM_TRIALS = 10  # that Optuna's samplers begin with or learn little from, and `curves` nearly so
DIVERGED_SHARE, TEST_GAP = 0.2, 0.01
EDGE_SHARE, EDGE_MARGIN = 0.6, 0.05
# Random networks of a space; what fewer than one study in twenty would have anywhere is no chance
DRAWN, BY_CHANCE = 300, 0.05


class Edge(NamedTuple):
    """How many of the best trials lie at one end of a dimension."""

    name: str
    side: str
    """lower or upper"""
    trials: int
    """Of the best ones, those that have the dimension."""
    at_end: int
    """Of these, those at this end."""
    holds_best: bool
    """Whether the best one is at this end."""
    natural: bool
    """Whether the dimension ends here by nature, so that nobody can widen it."""
    chance: float
    """That of as many random networks of the space as many lie at this end: its limits leave more
    of them at one end. Equal values of a range count once."""


def _position(dim: Dim, value: Any) -> float | None:
    """Where a value lies between a dimension's ends, 0 to 1; None if it has no inside."""
    low, high = dim.ends
    few = len(dim.choices) < 3 if dim.choices else dim.kind is int and high - low < 2
    if dim.kind in (bool, str) or few or not low <= value <= high:  # a given arch may lie outside
        return None
    if dim.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return float((value - low) / (high - low))


def edges(run: Run) -> list[Edge]:
    """Both ends of each sampled dimension that has an inside and enough of the best trials."""
    candidates = random_candidates(run.space, seed=0, count=DRAWN)
    drawn = [{**candidate.params(), **candidate.block_params()} for candidate in candidates]
    best = [run.params[row["number"]] for row in run.top]
    table = []
    for name, dim in run.space.sampled().items():
        places = _places(dim, name, best)
        if len(places) < TOP_LEAST:
            continue
        low, high = dim.ends
        is_floor = low == dimension_of(name).floor
        is_ceiling = name == "num_blocks" and high == run.space.blocks()[-1]
        for side, natural in (("lower", is_floor), ("upper", is_ceiling)):
            hits, random = (_at_end(side, where) for where in (places, _places(dim, name, drawn)))
            share = sum(random) / max(1, len(random))
            # Samplers try a good value again: of a range, its copies tell nothing new
            told = hits if dim.choices else _at_end(side, list(dict.fromkeys(places)))
            chance = _tail(len(told), sum(told), share)
            table.append(Edge(name, side, len(hits), sum(hits), hits[0], natural, chance))
    return table


def _places(dim: Dim, name: str, networks: list[dict[str, Any]]) -> list[float]:
    values = [network[name] for network in networks if name in network]
    return [place for value in values if (place := _position(dim, value)) is not None]


def _at_end(side: str, places: list[float]) -> list[bool]:
    return [(place if side == "lower" else 1 - place) <= EDGE_MARGIN for place in places]


def _tail(trials: int, hits: int, share: float) -> float:
    """That of `trials` at least `hits` hit, each with probability `share` (binomial)."""
    from scipy.special import bdtrc  # its sum's terms are no floats with a thousand trials

    return float(bdtrc(hits - 1, trials, share)) if hits else 1.0


def _of_the_trials(run: Run) -> list[str]:
    texts, total = [], len(run.trained)
    if run.summary["state"] != "completed":
        texts.append(f"The study is {run.summary['state']}: this is what it had until then.")
    if run.summary["dataset"] == "sample":
        texts.append("Trained on the bundled sample: no number compares with a published one.")
    if not run.completed:
        texts.append("No trial was completed: all that is here was stopped on the way.")
    failed, diverged = (
        sum(row["state"] == state for row in run.trained) for state in ("failed", "diverged")
    )
    if failed:
        texts.append(f"{failed} of {total} trials failed: the report lists their errors.")
    if diverged > DIVERGED_SHARE * total:
        texts.append(f"{diverged} of {total} trials diverged: lower the upper end of lr.")
    dimensions, trials = len(run.space.sampled()), len(run.ranked) + diverged
    # Fewer than one proposal a dimension that the sampler could learn from: a random search
    if dimensions and trials < RANDOM_TRIALS + dimensions:
        texts.append(
            f"The budget is small for the space: {trials} trials for {dimensions} sampled "
            f"dimensions, of which the first {min(trials, RANDOM_TRIALS)} are as good as random. "
            f"Search until there are {RANDOM_TRIALS + dimensions}, or fix what matters least."
        )
    return texts


def _of_the_lead(run: Run, first: Row, second: Row) -> list[str]:
    noise = standard_error(first[METRIC], run.val_images)
    source = f"standard error on {run.val_images:,} validation images"
    seeds = run.card["metrics"]["test_accuracies"] if run.card else []
    if len(seeds) > 1 and statistics.stdev(seeds) > noise:
        noise, source = statistics.stdev(seeds), f"spread over {len(seeds)} champion seeds"
    lead = first[METRIC] - second[METRIC]
    if lead >= 2 * noise:
        return []
    smaller = min(first, second, key=lambda row: row["num_params"])["number"]
    equal = first["num_params"] == second["num_params"]
    return [
        f"Trial {first['number']} leads trial {second['number']} by {lead:.4f}, within "
        f"{2 * noise:.4f} of noise (twice the {source}): their order may be chance"
        + ("." if equal else f", and trial {smaller} is the smaller network.")
    ]


def _of_the_scores(run: Run) -> list[str]:
    texts = []
    best, baseline = run.summary[f"best_{METRIC}"], run.baseline
    alone = len(run.trained) == 1
    if best is not None and baseline is not None and best <= baseline and not alone:
        texts.append(f"Nothing beat the baseline: best {best:.4f}, baseline {baseline:.4f}.")
    if run.card and run.card.get("images", {}).get("drawn_test"):
        texts.append(
            f"{run.summary['dataset']} has no test split: the test images were drawn from it. They "
            "are like the training images, and what the network meets in use may not be."
        )
    if len(run.completed) >= 2:
        texts += _of_the_lead(run, *run.completed[:2])
    score = run.champion_score
    if run.card and score is not None:
        test = run.summary["champion"]["test_accuracy"]
        test_images = sum(map(sum, run.card["metrics"]["confusion"]))
        noise = math.hypot(standard_error(score, run.val_images), standard_error(test, test_images))
        if score - test > max(TEST_GAP, 2 * noise):
            epochs, asked = run.card["epochs"], run.config["max_epochs"]
            why = "the search has fitted the validation images. Trust the test score."
            if alone:  # nothing was chosen by them
                why = "so much do two trainings of this network differ."
            if epochs < asked:
                why = f"the champion had fewer epochs ({epochs}) than its trial ({asked})."
            texts.append(
                f"The search score {score:.4f} is {score - test:.4f} above the test score "
                f"{test:.4f}: {why}"
            )
    return texts


def _of_the_edges(run: Run) -> list[str]:
    texts, seen = [], [edge for edge in edges(run) if not edge.natural]
    for side in ("lower", "upper"):
        names = ", ".join(
            f"{edge.name} ({edge.at_end} of {edge.trials})"
            for edge in seen
            if edge.side == side and edge.holds_best
            if edge.at_end >= EDGE_SHARE * edge.trials
            if edge.chance * len(seen) < BY_CHANCE  # Bonferroni: one of many may well be rare
        )
        if names:
            texts.append(f"The best trials sit at the {side} edge of {names}: widen it.")
    return texts


def warnings(run: Run) -> list[str]:
    """One sentence or two for each, gravest first."""
    return [*_of_the_trials(run), *_of_the_scores(run), *_of_the_edges(run)]
