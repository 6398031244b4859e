"""A sampler that learns from learning curves: a Gaussian process of configuration and epoch.

A trial that was stopped early says something about how it would have ended, and the more the
further it was trained. So the last value of each trial is explained by the configuration and by
the epoch at which it was seen (as in Swersky et al., "Freeze-Thaw Bayesian Optimization",
arXiv:1406.3896), and the next trial is the one with the largest expected improvement at the last
epoch. All of it follows from the record and a seed. What each part is worth, and what was tried
and left out: results/2026-11-26_sampler/README.md.
"""

import math
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FixedTrial, FrozenTrial

from vgg_search.space.candidate import BLOCK_DIMENSIONS
from vgg_search.space.dimension import Dim
from vgg_search.space.search_space import Space

STARTUP = 10  # trials that are drawn at random before anything is learned
KEPT, FITTED = 200, 64  # values that predictions, and the process's parameters, are derived from
STEPS = 8  # of L-BFGS, by which these parameters are found
DRAWN, VARIED, PARENTS = 200, 200, 5  # candidates at random and near the best; how many of these
FEW = 20  # values up to which an integer counts as a choice
DIGITS = 9  # to which numbers must agree to be equal


class Axis:
    """A dimension on the unit interval; choices at equal steps, in ascending order."""

    def __init__(self, dim: Dim) -> None:
        self.dim, self.choices = dim, sorted(dim.choices)
        self.scale = math.log if dim.log else float
        whole = int(dim.high - dim.low) + 1 if dim.kind is int and not dim.log else 0
        self.count = len(dim.choices) or (whole if whole <= FEW else 0)  # of values; 0: many
        self.low = 0.0 if dim.choices else self.scale(dim.low)
        self.width = self.count - 1.0 if dim.choices else self.scale(dim.high) - self.low

    def place(self, value: Any) -> float:
        """Where a value lies."""
        number = self.choices.index(value) if self.choices else self.scale(value)
        return (number - self.low) / self.width

    def value(self, place: float) -> Any:
        """The value at a place."""
        number = self.low + place * self.width
        if self.choices:
            return self.choices[round(number)]
        number = math.exp(number) if self.dim.log else number
        number = round(number) if self.dim.kind is int else number
        return min(max(number, self.dim.low), self.dim.high)


class Process:
    """Gaussian process of places x (N, D) and times t (N,), log epochs of which the last is 1.

    Covariance: s M(x, x') (w + (1 - w) exp(-|t - t'| / l)), and a mean of its own for each epoch;
    M is the Matern kernel 5/2 with a length for each dimension (Rasmussen and Williams, "Gaussian
    Processes for Machine Learning", equations 4.17, and 5.9 for the gradient). `theta` holds the
    logarithms of lengths, s, w / (1 - w), l and noise, each with a normal prior.
    """

    MEAN, EPOCH = 0.25, 0.5  # variances of the mean, and of each epoch's

    def __init__(self, x: np.ndarray, t: np.ndarray, y: np.ndarray) -> None:
        from scipy.optimize import minimize  # a quarter of a second, of which `--help` has no need

        d = x.shape[1]
        self.space, self.size, self.share, self.fade, self.noise = slice(d), d, d + 1, d + 2, d + 3
        self.centre = np.log([1.0] * d + [1.0, 1.5, 1.0, 0.02])
        squares = (x.T[:, :, None] - x.T[:, None, :]) ** 2
        data, options = (squares.reshape(d, -1), x, t, y), {"maxiter": STEPS}
        found = minimize(self._loss, self.centre, data, "L-BFGS-B", True, options=options)
        self.theta = found.x

    def _covariance(
        self, theta: np.ndarray, x: np.ndarray, t: np.ndarray, x2: np.ndarray, t2: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """The covariance, and what its gradient is made of."""
        a, b = x / np.exp(theta[self.space]), x2 / np.exp(theta[self.space])
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        r = np.sqrt(5 * np.maximum(squares, 0))
        decay, apart = np.exp(-r), np.abs(t[:, None] - t2)
        faded = np.exp(-apart / math.exp(theta[self.fade]))
        share = 1 / (1 + math.exp(-theta[self.share]))
        in_space = math.exp(theta[self.size]) * (1 + r + r**2 / 3) * decay
        over_time = share + (1 - share) * faded
        means = self.MEAN + self.EPOCH * (apart < 1e-9)
        slope = math.exp(theta[self.size]) * (5 / 3) * (1 + r) * decay * over_time
        return in_space * over_time + means, in_space, over_time, slope, faded, apart

    def _loss(
        self, theta: np.ndarray, squares: np.ndarray, x: np.ndarray, t: np.ndarray, y: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Negative log posterior of theta, and its gradient."""
        k, in_space, over_time, slope, faded, apart = self._covariance(theta, x, t, x, t)
        noise, share = math.exp(theta[self.noise]), 1 / (1 + math.exp(-theta[self.share]))
        root = np.linalg.cholesky(k + (noise + 1e-6) * np.eye(len(y)))
        half = np.linalg.inv(root)
        inverse = half.T @ half
        weights = inverse @ y
        by_k = 0.5 * (inverse - np.outer(weights, weights))
        by_time = by_k * in_space
        gradient = theta - self.centre  # the priors' standard deviation is 1
        loss = 0.5 * (y @ weights + gradient @ gradient) + np.log(np.diag(root)).sum()
        gradient[self.space] += squares @ (by_k * slope).ravel() * np.exp(-2 * theta[self.space])
        gradient[self.size] += (by_time * over_time).sum()
        gradient[self.share] += (by_time * (1 - faded)).sum() * share * (1 - share)
        gradient[self.fade] += (
            (by_time * faded * apart).sum() * (1 - share) / math.exp(theta[self.fade])
        )
        gradient[self.noise] += np.trace(by_k) * noise
        return loss, gradient

    def observe(self, x: np.ndarray, t: np.ndarray, y: np.ndarray) -> None:
        """What predictions are derived from."""
        self.x, self.t, self.y = x, t, y
        noise = math.exp(self.theta[self.noise]) + 1e-6
        k = self._covariance(self.theta, x, t, x, t)[0] + noise * np.eye(len(y))
        self.half = np.linalg.inv(np.linalg.cholesky(k))
        self.weights = self.half.T @ (self.half @ y)

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation at the last epoch, without noise."""
        k = self._covariance(self.theta, x, np.ones(len(x)), self.x, self.t)[0]
        variance = math.exp(self.theta[self.size]) + self.MEAN + self.EPOCH
        variances = variance - ((k @ self.half.T) ** 2).sum(1)
        return k @ self.weights, np.sqrt(np.maximum(variances, 1e-9))


class CurveSampler(optuna.samplers.BaseSampler):
    """Proposes whole configurations; made anew for each, it depends on record and seed alone."""

    def __init__(self, space: Space, max_epochs: int, seed: int) -> None:
        self.space, self.span = space, math.log(max(2, max_epochs))
        self.axes = {name: Axis(dim) for name, dim in space.sampled().items()}
        self.counts = np.array([axis.count for axis in self.axes.values()])
        self.rng = np.random.default_rng(seed)
        self.random = optuna.samplers.RandomSampler(seed=seed)
        self.params: dict[str, Any] = {}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        by_hand = "fixed_params" in trial.system_attrs  # nothing to propose
        proposal = None if by_hand else self._propose(study, trial.number)
        self.params = proposal.params if proposal else {}
        return proposal.distributions if proposal else {}

    def sample_relative(self, study, trial, search_space):  # type: ignore[no-untyped-def]
        return self.params

    def sample_independent(self, *asked):  # type: ignore[no-untyped-def]
        return self.random.sample_independent(*asked)

    def _propose(self, study: optuna.Study, number: int) -> FixedTrial | None:
        """The most promising candidate; None before there is something to learn from."""
        places, times, values, pending = self._observations(study, number)
        if len(values) < STARTUP or np.isfinite(values).sum() < 2 or not self.axes:
            return None
        x, y = self._resolved(places), _scores(values)
        some = self._best_and_others(y, FITTED)
        process = Process(x[some], times[some], y[some])
        kept = self._best_and_others(y, KEPT)
        process.observe(x[kept], times[kept], y[kept])
        if len(pending):  # taken to turn out as expected, so that nobody proposes them again
            x2 = self._resolved(pending)
            guess = np.r_[process.y, process.predict(x2)[0]]
            process.observe(np.r_[process.x, x2], np.r_[process.t, np.ones(len(x2))], guess)
            x = np.r_[x, x2]
        means = process.predict(x[kept])[0].round(DIGITS)
        best = kept[np.argsort(-means, kind="stable")]
        candidates = self._candidates(places[best])
        resolved = self._resolved(candidates)
        gain = _expected_improvement(*process.predict(resolved), means.max()).round(DIGITS)
        known = {row.tobytes() for row in x.round(DIGITS)}
        for i in np.argsort(-gain, kind="stable"):
            if resolved[i].round(DIGITS).tobytes() not in known:
                axes = zip(self.axes.items(), candidates[i].tolist(), strict=True)
                proposal = FixedTrial({name: axis.value(place) for (name, axis), place in axes})
                if self.space.feasible(self.space.sample(proposal)):
                    return proposal
        return None

    def _observations(self, study: optuna.Study, number: int) -> tuple[np.ndarray, ...]:
        """(places, times, values) of trials that have a last value, NaN for one that failed, and
        the places of those that have none yet. What was not trained is left out, and so is an
        architecture that this space cannot propose."""
        rows, pending = [], []
        for trial in study.get_trials(deepcopy=False):
            failed = "infeasible" in trial.constraints
            if (
                not trial.params
                or {"duplicate_of", "given_arch"} & trial.user_attrs.keys()
                or (trial.constraints and not failed)
                or (trial.number == number and not trial.state.is_finished())
            ):
                continue
            params = trial.params
            place = [a.place(params[n]) if n in params else math.nan for n, a in self.axes.items()]
            if failed:
                rows.append((place, 1.0, math.nan))
            elif trial.last_step is not None:
                value = trial.intermediate_values[trial.last_step]
                rows.append((place, math.log(trial.last_step) / self.span, value))
            elif not trial.state.is_finished():
                pending.append(place)
        columns = zip(*rows, strict=True) if rows else ([], [], [])
        return *map(np.array, columns), np.array(pending)

    def _resolved(self, places: np.ndarray) -> np.ndarray:
        """What of a configuration makes a difference: a block that is not there lies at 0, and one
        that must not be narrower than the last is not."""
        names, places, before = list(self.axes), places.copy(), None
        blocks = np.full(len(places), math.inf)
        if "num_blocks" in names:
            low, high = self.space.dims["num_blocks"].ends
            blocks = low + (high - low) * places[:, names.index("num_blocks")]
        for j, name in enumerate(names):
            kind, _, block = name.rpartition("_")
            if kind not in BLOCK_DIMENSIONS:
                continue
            if kind == "out_channels" and self.space.non_decreasing:
                if before is not None:
                    places[:, j] = np.fmax(places[:, j], places[:, before])
                before = j
            places[blocks < int(block) - 0.5, j] = 0.0
        return np.nan_to_num(places)

    def _best_and_others(self, y: np.ndarray, most: int) -> np.ndarray:
        """Where the best are, and as many others by chance; all, where there are no more."""
        order = np.argsort(-y, kind="stable")
        others = self.rng.permutation(order[most // 2 :])[: most - most // 2]
        return np.r_[order[: most // 2], others]

    def _candidates(self, best: np.ndarray) -> np.ndarray:
        """Places anywhere and near the best: some dimensions of one of these, moved a little or,
        of a choice, drawn anew."""
        rng, shape = self.rng, (VARIED, len(self.axes))
        parents = best[np.arange(VARIED) % min(PARENTS, len(best))]
        parents = np.where(np.isnan(parents), rng.random(shape), parents)
        moved = rng.random(shape) < rng.choice([0.1, 0.2, 0.4], (VARIED, 1))
        moved[np.arange(VARIED), rng.integers(shape[1], size=VARIED)] = True
        steps = rng.choice([0.05, 0.1, 0.3], (VARIED, 1)) * rng.standard_normal(shape)
        near = 1 - np.abs(1 - np.abs(parents + steps))  # mirrored at both ends
        near = np.where(self.counts > 0, rng.random(shape), near)
        drawn = rng.random((DRAWN, len(self.axes)))
        places = np.clip(np.r_[drawn, np.where(moved, near, parents)], 0, 1 - 1e-9)
        few = np.maximum(self.counts, 2)
        return np.where(self.counts > 0, np.floor(places * few) / (few - 1), places)


def _scores(values: np.ndarray) -> np.ndarray:
    """Normal quantiles of the ranks: how far a collapsed network fell is of no interest."""
    from scipy.special import ndtri

    values = np.nan_to_num(values, nan=-math.inf)
    order = np.sort(values)
    ranks = np.searchsorted(order, values, "left") + np.searchsorted(order, values, "right")
    return ndtri(ranks / (2 * len(values)))


def _expected_improvement(mean: np.ndarray, std: np.ndarray, best: float) -> np.ndarray:
    """Its logarithm, which tells candidates apart that are all but hopeless."""
    from scipy.special import ndtr

    z = (mean - best) / std
    improvement = std * (z * ndtr(z) + np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi))
    return np.log(np.maximum(improvement, 1e-300))
