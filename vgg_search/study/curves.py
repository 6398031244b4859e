"""A sampler that learns from learning curves: a Gaussian process of configuration and epoch.

A trial that was stopped early says something about how it would have ended, and the more the
further it was trained. So its value at each rung is explained by the configuration and by the
epoch at which it was seen (as in Swersky et al., "Freeze-Thaw Bayesian Optimization",
arXiv:1406.3896), and the next trial is the one with the largest expected improvement at the last
epoch. What each part is worth, and what was left out: results/2026-11-26_sampler/README.md.
"""

import math
from typing import Any

import numpy as np
import optuna
from optuna.trial import FixedTrial

from vgg_search.space.candidate import BLOCK_DIMENSIONS
from vgg_search.space.dimension import AnySpace, Dim

Array = np.ndarray
STARTUP = 8  # configurations that must have a value; until then trials are random
KEPT, FITTED = 200, 64  # values, half the best, that predictions and parameters derive from
STEPS = {"maxiter": 8}  # of L-BFGS, by which these parameters are found
DRAWN, VARIED, PARENTS = 200, 200, 5  # candidates at random and near the best; how many of these
CLIP = 2.0  # ways from best to median that the lowest score lies below the median
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
        number = self.choices.index(value) if self.choices else self.scale(value)
        return (number - self.low) / self.width

    def value(self, place: float) -> Any:
        number = self.low + place * self.width
        if self.choices:
            return self.choices[round(number)]
        number = math.exp(number) if self.dim.log else number
        number = round(number) if self.dim.kind is int else number
        return min(max(number, self.dim.low), self.dim.high)

    def values(self, places: Array) -> Array:
        """The numbers at these places; NaN where there is none."""
        return np.array([math.nan if math.isnan(x) else self.value(x) for x in places.tolist()])

    def places(self, numbers: Array) -> Array:
        """Where numbers lie, also those that the dimension has not: between two choices, or at an
        end."""
        marks = np.array(self.choices or self.dim.ends, float)
        scale = np.log if self.dim.log else np.asarray
        at = np.linspace(0, 1, len(marks))
        return np.interp(scale(np.maximum(numbers, marks[0])), scale(marks), at)


class Process:
    """Gaussian process of rows (N, D + 1): a place, and the logarithm of an epoch, 1 for the last.

    Covariance: s M(x, x') (w + (1 - w) exp(-|t - t'| / l)), and a mean of its own for each epoch;
    M is Matern's 5/2 with a length a dimension (Rasmussen and Williams, 2006, equations 4.17 and,
    for the gradient, 5.9). `theta`: logarithms of lengths, s, w / (1 - w), l, noise; priors normal.
    """

    MEANS = 0.25, 0.5  # variances of the mean, and of each epoch's

    def __init__(self, rows: Array, y: Array) -> None:
        from scipy.optimize import minimize  # a quarter of a second, of which `--help` has no need

        self.centre = np.log([1.0] * (rows.shape[1] - 1) + [1.0, 1.5, 1.0, 0.02])
        given = {"args": (rows, y), "jac": True, "method": "L-BFGS-B", "options": STEPS}
        bounds = [(middle - 4, middle + 4) for middle in self.centre]  # 4 standard deviations
        self.theta = minimize(self._loss, self.centre, bounds=bounds, **given).x

    def _covariance(self, theta: Array, rows: Array, others: Array) -> tuple[Array, ...]:
        size, fade = np.exp(theta[[-4, -2]])
        share = 1 / (1 + math.exp(-theta[-3]))
        a, b = rows[:, :-1] / np.exp(theta[:-4]), others[:, :-1] / np.exp(theta[:-4])
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        r = np.sqrt(5 * np.maximum(squares, 0))
        apart = np.abs(rows[:, -1:] - others[:, -1]) / fade
        decay, faded = size * np.exp(-r), np.exp(-apart)
        in_space, over_time = (1 + r + r**2 / 3) * decay, share + (1 - share) * faded
        k = in_space * over_time + self.MEANS[0] + self.MEANS[1] * (apart < 1e-9)
        by_share, by_fade = share * (1 - share) * (1 - faded), (1 - share) * faded * apart
        return k, 5 / 3 * (1 + r) * decay * over_time, in_space, over_time, by_share, by_fade

    def _loss(self, theta: Array, rows: Array, y: Array) -> tuple[float, Array]:
        """Negative log posterior of theta, and its gradient."""
        k, by_squares, in_space, *in_time = self._covariance(theta, rows, rows)
        noise = math.exp(theta[-1])
        k += (noise + 1e-6) * np.eye(len(y))
        root, inverse = np.linalg.cholesky(k), np.linalg.inv(k)
        weights = inverse @ y
        by_k = 0.5 * (inverse - np.outer(weights, weights))
        gradient = theta - self.centre  # the priors' standard deviation is 1
        loss = 0.5 * (y @ weights + gradient @ gradient) + np.log(np.diag(root)).sum()
        x, by_squares = rows[:, :-1], by_k * by_squares
        # The sum of by_squares (x_i - x_j)^2, multiplied out
        squares = 2 * (by_squares.sum(1) @ x**2 - (x * (by_squares @ x)).sum(0))
        gradient[:-4] += squares * np.exp(-2 * theta[:-4])
        gradient[-4:-1] += [(by_k * in_space * part).sum() for part in in_time]
        gradient[-1] += np.trace(by_k) * noise
        return loss, gradient

    def observe(self, rows: Array, y: Array) -> None:
        """What predictions are derived from."""
        self.rows, self.y = rows, y
        k = self._covariance(self.theta, rows, rows)[0]
        k += (math.exp(self.theta[-1]) + 1e-6) * np.eye(len(y))
        self.half = np.linalg.inv(np.linalg.cholesky(k))
        self.weights = self.half.T @ (self.half @ y)

    def predict(self, rows: Array) -> tuple[Array, Array]:
        """Mean and standard deviation, without noise."""
        k = self._covariance(self.theta, rows, self.rows)[0]
        variance = math.exp(self.theta[-4]) + sum(self.MEANS) - ((k @ self.half.T) ** 2).sum(1)
        return k @ self.weights, np.sqrt(np.maximum(variance, 1e-9))


class CurveSampler(optuna.samplers.RandomSampler):
    """Proposes whole configurations; made anew for each, it depends on record and seed alone."""

    def __init__(self, space: AnySpace, rungs: tuple[int, ...], seed: int) -> None:
        super().__init__(seed)
        self.space, self.rungs, self.span = space, rungs, math.log(max(2, rungs[-1]))
        self.axes = {name: Axis(dim) for name, dim in space.sampled().items()}
        self.counts = np.array([axis.count for axis in self.axes.values()])
        self.rng = np.random.default_rng(seed)
        self.proposal: FixedTrial | None = None

    def infer_relative_search_space(self, study, trial):  # type: ignore[no-untyped-def]
        by_hand = "fixed_params" in trial.system_attrs  # nothing to propose
        self.proposal = None if by_hand else self._propose(study, trial.number)
        return self.proposal.distributions if self.proposal else {}

    def sample_relative(self, *asked):  # type: ignore[no-untyped-def]
        return self.proposal.params if self.proposal else {}

    def _propose(self, study: optuna.Study, number: int) -> FixedTrial | None:
        """The most promising candidate; None before there is something to learn from."""
        observed, values, pending = self._observations(study, number)
        if np.isfinite(values).sum() < 2 or not self.axes:
            return None
        rows, y = self._resolved(observed), _scores(values)
        if len(np.unique(rows[:, :-1].round(DIGITS), axis=0)) < STARTUP:
            return None
        some, kept = self._best_and_others(y, FITTED), self._best_and_others(y, KEPT)
        process = Process(rows[some], y[some])
        process.observe(rows[kept], y[kept])
        if len(pending):  # taken to turn out as expected, so that nobody proposes them again
            pending = self._resolved(pending)
            guess = process.predict(pending)[0]
            process.observe(np.r_[process.rows, pending], np.r_[process.y, guess])
        known, first = np.unique(process.rows[:, :-1].round(DIGITS), axis=0, return_index=True)
        first, there = kept[first[first < len(kept)]], {row.tobytes() for row in known}
        means = process.predict(np.c_[rows[first, :-1], np.ones(len(first))])[0].round(DIGITS)
        best = first[np.argsort(-means, kind="stable")[:PARENTS]]
        candidates = self._candidates(observed[best, :-1])
        at_end = np.c_[self._resolved(candidates), np.ones(len(candidates))]
        gains = _expected_improvement(*process.predict(at_end), means.max()).round(DIGITS)
        for candidate in candidates[np.argsort(-gains, kind="stable")].tolist():
            axes = zip(self.axes.items(), candidate, strict=True)
            proposal = FixedTrial({name: axis.value(place) for (name, axis), place in axes})
            if max(self.space.excess(self.space.sample(proposal)).values(), default=0.0) <= 0:
                # By its values, for an integer has many places
                row = self._resolved(np.array([self._place(proposal.params)]))[0].round(DIGITS)
                if row.tobytes() not in there:
                    return proposal
        return None

    def _place(self, params: dict[str, Any]) -> list[float]:
        return [a.place(params[n]) if n in params else math.nan for n, a in self.axes.items()]

    def _observations(self, study: optuna.Study, number: int) -> tuple[Array, ...]:
        """Rows and values of trials at each rung and at their last epoch, NaN for one that failed,
        and rows of those that have no value yet; none of what this space cannot propose."""
        rows, values, pending = [], [], []
        for trial in study.get_trials(deepcopy=False):
            running, steps = not trial.state.is_finished(), trial.intermediate_values
            elsewhere = {"duplicate_of", "given_arch"} & trial.user_attrs.keys()
            untrained = trial.constraints and "infeasible" not in trial.constraints
            if not trial.params or elsewhere or untrained or (running and trial.number == number):
                continue
            place = self._place(trial.params)
            if trial.constraints:
                rows.append([*place, 1.0])
                values.append(math.nan)
            elif running and not steps:
                pending.append([*place, 1.0])
            else:
                epochs = sorted({*self.rungs, trial.last_step or 0} & steps.keys())
                rows += [[*place, math.log(epoch) / self.span] for epoch in epochs]
                values += [steps[epoch] for epoch in epochs]
        return np.array(rows), np.array(values), np.array(pending)

    def _resolved(self, places: Array) -> Array:
        """What of a configuration makes a difference: a block that is not there lies at 0, and one
        that must not be narrower than the last is not."""
        places, widest = places.copy(), np.zeros(len(places))
        blocks = np.full(len(places), math.inf)
        for j, (name, axis) in enumerate(self.axes.items()):
            kind, _, block = name.rpartition("_")
            if name == "num_blocks":  # before any block's
                blocks = axis.values(places[:, j])
            if kind not in BLOCK_DIMENSIONS:
                continue
            if kind == "out_channels" and getattr(self.space, "non_decreasing", False):
                widest = np.fmax(widest, axis.values(places[:, j]))
                places[:, j] = axis.places(widest)
            places[blocks < int(block), j] = 0.0
        return np.nan_to_num(places)

    def _best_and_others(self, y: Array, most: int) -> Array:
        order = np.argsort(-y, kind="stable")
        others = self.rng.permutation(order[most // 2 :])[: most - most // 2]
        return np.r_[order[: most // 2], others]

    def _candidates(self, best: Array) -> Array:
        """Places anywhere and near the best: some dimensions of one of these, moved a little or,
        of a choice, drawn anew."""
        rng, shape = self.rng, (VARIED, len(self.axes))
        parents = best[np.arange(VARIED) % len(best)]
        parents = np.where(np.isnan(parents), rng.random(shape), parents)
        moved = rng.random(shape) < rng.choice([0.1, 0.2, 0.4], (VARIED, 1))
        moved[np.arange(VARIED), rng.integers(shape[1], size=VARIED)] = True
        steps = rng.choice([0.05, 0.1, 0.3], (VARIED, 1)) * rng.standard_normal(shape)
        mirrored = 1 - np.abs(1 - np.abs(parents + steps))
        near = np.where(self.counts > 0, rng.random(shape), mirrored)
        places = np.r_[rng.random((DRAWN, shape[1])), np.where(moved, near, parents)]
        places, few = np.clip(places, 0, 1 - 1e-9), np.maximum(self.counts, 2)
        return np.where(self.counts > 0, np.floor(places * few) / (few - 1), places)


def _scores(values: Array) -> Array:
    """Standardised -log of the error: a point near the top counts for more than one far below, and
    what failed (NaN) or fell further from the best than CLIP says counts as that."""
    scores = -np.log(1.0001 - values)
    middle, top = np.nanmedian(scores), np.nanmax(scores)
    scores = np.fmax(scores, middle - CLIP * (top - middle))
    return (scores - scores.mean()) / max(scores.std(), 1e-9)


def _expected_improvement(mean: Array, std: Array, best: float) -> Array:
    """Its logarithm, which tells candidates apart that are all but hopeless."""
    from scipy.special import ndtr

    z = (mean - best) / std
    improvement = std * (z * ndtr(z) + np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi))
    return np.log(np.maximum(improvement, 1e-300))
