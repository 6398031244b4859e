"""Other libraries' searches, each driven by its own ask and tell, with its defaults.

All have the product's rungs (1, 3 and 9 epochs of 9, one in three goes on) and no prior. A lost
training reports chance to them and ends. Optuna is asked dimension by dimension and so knows that
num_convs_3 exists in some trials only; the others have no such conditions, or not for all of their
models, and see every dimension always. Whoever wants a network trained further goes on from where
it stopped, also where the library would begin anew.
"""

import datetime
import logging
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vgg_search.space.dimension import Dim
from vgg_search.study.sampling import trial_seed
from vgg_search.study.segment import Segment

CHANCE, ETA = 0.1, 3


class Proposal(dict[str, Any]):
    """Values by name, for a space that asks for each."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        return min(max(int(self[name]), low), high)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        return min(max(float(self[name]), low), high)

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return choices[int(self[name])]  # choices are passed around by their index


class Peer:
    """What all have in common: the dimensions of a world's space, and trainings by number."""

    def __init__(self, world: Any, seed: int) -> None:
        self.space, self.epochs, self.seed = world.space, world.epochs, seed
        self.dims: dict[str, Dim] = world.space.sampled()

    def segment(self, number: int, candidate: Any, until: int = 0, known: int = 0) -> Segment:
        seed = trial_seed(self.seed, number)
        return Segment(number, candidate, seed, until or self.epochs, known, 0.0)


class Optuna(Peer):
    def __init__(self, world: Any, seed: int, sampler: str = "TPE", pruner: str = "") -> None:
        import optuna

        super().__init__(world, seed)
        self.optuna, pruners = optuna, optuna.pruners
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruning = {
            "": pruners.NopPruner,
            "hyperband": lambda: pruners.HyperbandPruner(1, self.epochs, ETA),
            "halving": lambda: pruners.SuccessiveHalvingPruner(1, ETA, 0),
        }
        chosen = getattr(optuna.samplers, f"{sampler}Sampler")(seed=seed)
        self.study = optuna.create_study(
            study_name=str(seed), direction="maximize", sampler=chosen, pruner=pruning[pruner]()
        )
        self.trials: dict[int, Any] = {}

    def ask(self) -> Segment:
        trial = self.study.ask()
        self.trials[trial.number] = trial
        return self.segment(trial.number, self.space.sample(trial))

    def tell(self, segment: Segment, epoch: int, value: float) -> bool:
        trial, lost = self.trials[segment.number], not math.isfinite(value)
        trial.report(CHANCE if lost else value, epoch)
        if epoch == self.epochs and not lost:
            self.study.tell(trial, value)
            return False
        if lost or trial.should_prune():
            self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)
            return False
        return True


class SyneTune(Peer):
    """`every`: models are fitted anew after so many new trials; Syne Tune's default is 1."""

    def __init__(self, world: Any, seed: int, kind: str, every: int = 1) -> None:
        from syne_tune.optimizer import baselines

        logging.getLogger().setLevel(logging.ERROR)
        super().__init__(world, seed)
        rungs = {"time_attr": "epoch", "max_t": self.epochs, "reduction_factor": ETA}
        self.scheduler = getattr(baselines, kind)(
            {name: self.domain(dim) for name, dim in self.dims.items()},
            metric="value",
            do_minimize=False,
            random_seed=seed,
            **(rungs if self.epochs > 1 else {}),
        )
        if every > 1:
            self.scheduler.searcher.update_frequency = every
        self.trials: list[Any] = []

    @staticmethod
    def domain(dim: Dim) -> Any:
        from syne_tune import config_space

        if dim.choices:
            ordered = dim.kind in (int, float)
            of = config_space.ordinal if ordered else config_space.choice
            return of([*range(len(dim.choices))])
        scale = "log" if dim.log else ""
        if dim.kind is int:
            return getattr(config_space, f"{scale}randint")(int(dim.low), int(dim.high))
        return getattr(config_space, f"{scale}uniform")(dim.low, dim.high)

    def ask(self) -> Segment | None:
        from syne_tune.backend.trial_status import Trial

        suggestion = self.scheduler.suggest()
        if suggestion is None:
            return None
        number = len(self.trials)
        trial = Trial(number, suggestion.config, datetime.datetime.now())
        self.trials.append(trial)
        self.scheduler.on_trial_add(trial)
        return self.segment(number, self.space.sample(Proposal(suggestion.config)))

    def tell(self, segment: Segment, epoch: int, value: float) -> bool:
        trial, lost = self.trials[segment.number], not math.isfinite(value)
        result = {"value": CHANCE if lost else value, "epoch": epoch}
        if self.epochs == 1:
            self.scheduler.on_trial_complete(trial, result)
            return False
        decision = self.scheduler.on_trial_result(trial, result)
        if lost or decision != "CONTINUE":
            self.scheduler.on_trial_remove(trial)
            return False
        return True


class NePS(Peer):
    def __init__(self, world: Any, seed: int, kind: str = "priorband") -> None:
        import neps
        import torch
        from neps.space import HPOCategorical, HPOFloat, HPOInteger, SearchSpace

        logging.getLogger().setLevel(logging.ERROR)
        super().__init__(world, seed)
        elements: dict[str, Any] = {}
        for name, dim in self.dims.items():
            if dim.choices:
                elements[name] = HPOCategorical([*range(len(dim.choices))])
            elif dim.kind is int:
                elements[name] = HPOInteger(int(dim.low), int(dim.high), log=dim.log)
            else:
                elements[name] = HPOFloat(dim.low, dim.high, log=dim.log)
        if self.epochs > 1:
            elements["epoch"] = HPOInteger(1, self.epochs, is_fidelity=True)
        np.random.seed(seed)  # NePS has no seed of its own: it draws from the global generators
        torch.manual_seed(seed)
        self.neps = neps.AskAndTell(getattr(neps.algorithms, kind)(SearchSpace(elements)))
        self.trials: dict[int, Any] = {}
        self.known: dict[int, int] = {}

    def ask(self) -> Segment:
        trial = self.neps.ask()
        number = int(trial.id.split("_")[0])
        self.trials[number] = trial
        until, known = int(trial.config.get("epoch", 1)), self.known.get(number, 0)
        return self.segment(number, self.space.sample(Proposal(trial.config)), until, known)

    def tell(self, segment: Segment, epoch: int, value: float) -> bool:
        lost = not math.isfinite(value)
        if epoch < segment.until and not lost:
            return True
        self.known[segment.number] = epoch
        self.neps.tell(self.trials[segment.number], 1 - (CHANCE if lost else value))
        return False


def _never_called(config: Any, seed: int = 0, budget: float = 0.0) -> float:
    """What SMAC asks for also where it is driven by ask and tell; it looks at the signature."""
    raise AssertionError(f"{config}, {seed}, {budget}")


class SMAC(Peer):
    def __init__(self, world: Any, seed: int) -> None:
        import ConfigSpace
        import smac

        super().__init__(world, seed)
        self.smac = smac
        space = ConfigSpace.ConfigurationSpace(seed=seed)
        space.add([self.parameter(name, dim) for name, dim in self.dims.items()])
        budgets = {"min_budget": 1, "max_budget": self.epochs} if self.epochs > 1 else {}
        self.folder = tempfile.TemporaryDirectory()
        scenario = smac.Scenario(
            space,
            deterministic=True,
            n_trials=100_000,
            seed=seed,
            output_directory=Path(self.folder.name),
            **budgets,
        )
        kind = smac.MultiFidelityFacade if budgets else smac.HyperparameterOptimizationFacade
        self.facade = kind(
            scenario,
            _never_called,
            initial_design=kind.get_initial_design(scenario, n_configs=10),
            logging_level=False,
            overwrite=True,
        )
        self.numbers: dict[Any, int] = {}
        self.infos: dict[int, Any] = {}
        self.known: dict[int, int] = {}

    @staticmethod
    def parameter(name: str, dim: Dim) -> Any:
        from ConfigSpace import Categorical, Float, Integer

        if dim.choices:
            indices = [*range(len(dim.choices))]
            return Categorical(name, indices, ordered=dim.kind in (int, float))
        of: Callable[..., Any] = Integer if dim.kind is int else Float
        return of(name, (dim.kind(dim.low), dim.kind(dim.high)), log=dim.log)

    def ask(self) -> Segment:
        info = self.facade.ask()
        number = self.numbers.setdefault(info.config, len(self.numbers))
        self.infos[number] = info
        until, known = round(info.budget or 1), self.known.get(number, 0)
        candidate = self.space.sample(Proposal(info.config))
        return self.segment(number, candidate, until, min(known, until - 1))

    def tell(self, segment: Segment, epoch: int, value: float) -> bool:
        lost = not math.isfinite(value)
        if epoch < segment.until and not lost:
            return True
        self.known[segment.number] = epoch
        cost = 1 - (CHANCE if lost else value)
        self.facade.tell(self.infos[segment.number], self.smac.runhistory.TrialValue(cost=cost))
        return False
