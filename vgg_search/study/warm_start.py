"""What another study found out, as knowledge of this study's sampler, and as nothing else.

The other study's finished trials are copied into this study's record once, when it begins: a
resume sees them as they were. The sampler is shown them among its own; they are no trials of this
study, take nobody's place at a rung, and a proposal equal to one of them is trained.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from vgg_search.config import Config, ConfigError
from vgg_search.space.search_space import Space
from vgg_search.storage.folder import JOURNAL, local_folder
from vgg_search.study.optuna_adapter import first_study, numbered
from vgg_search.study.record import candidate_of

DIGEST, KNOWN = "digest", "known_trials"  # attributes of a study in its journal
# What a machine could not do, or a limit forbade, may be possible here.
TELLING = ("completed", "pruned", "diverged")

log = logging.getLogger("vgg_search")


def knowledge(config: Config, digest: str, folder: Path) -> list[dict[str, Any]] | None:
    """What `warm_start` names, as plain data for the journal; None once `folder` has it there.

    Raises ConfigError if there is no such study, or if it saw other data than `digest` names.
    """
    if config.warm_start is None or KNOWN in _read(folder)[0]:
        return None
    places = [local_folder(config.storage_path, config.warm_start), Path(config.warm_start)]
    other = next((place for place in places if (place / JOURNAL).is_file()), None)
    if other is None or other.resolve() == folder.resolve():
        raise ConfigError(
            f"warm_start must be another study in {config.storage_path} or its run folder, "
            f"got {config.warm_start!r}"
        )
    attrs, trials = _read(other)
    if attrs.get(DIGEST) != digest:
        raise ConfigError(
            f"warm_start must be a study on the same data ({digest}), "
            f"got {config.warm_start} ({attrs.get(DIGEST, 'it does not say which')})"
        )
    known, left_out = _fitting(config.search_space, config.max_epochs, trials)
    log.warning(
        "warm start from %s: the sampler knows %d of its trials%s",
        config.warm_start,
        len(known),
        f"; left out, for this space has no such value: {', '.join(left_out)}" if left_out else "",
    )
    return known


def _read(folder: Path) -> tuple[dict[str, Any], list[FrozenTrial]]:
    """(attributes, trials) of the study in a run folder, whatever the folder is called now."""
    path = folder / JOURNAL
    return first_study(path) if path.is_file() else ({}, [])


def _fitting(
    space: Space, max_epochs: int, trials: Iterable[FrozenTrial]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The trials that tell something about `space`, and what of them does not fit in, in words.

    A value that this space cannot propose is left out of a trial; the trial is, if that is its
    number of blocks or is fixed here.
    """
    known, whole, parts = [], Counter[str](), Counter[str]()
    for trial in trials:
        if trial.user_attrs.get("state") not in TELLING:
            continue
        fits = {n: space.dims[n].match(v) for n, v in _values(trial).items() if n in space.dims}
        wrong = [name for name, value in fits.items() if value is None]
        decisive = [name for name in wrong if name == "num_blocks" or space.dims[name].fixed]
        if decisive:
            whole[decisive[0]] += 1
            continue
        parts.update(wrong)
        params = {n: v for n, v in fits.items() if v is not None and n in space.sampled()}
        # Short of this study's last epoch, a value is no result here but an intermediate one
        complete = trial.state is TrialState.COMPLETE and (trial.last_step or 0) >= max_epochs
        too_much = not space.feasible(candidate_of(trial.user_attrs))
        known.append(
            {
                "params": params,
                "value": trial.value if complete else None,
                "values": [[e, v] for e, v in sorted(trial.intermediate_values.items())],
                "infeasible": too_much or trial.user_attrs["state"] == "diverged",
            }
        )
    left_out = [f"{count} trials with another {name}" for name, count in whole.items()]
    return known, left_out + [f"{name} of {count} trials" for name, count in parts.items()]


def _values(trial: FrozenTrial) -> dict[str, Any]:
    """Every dimension of a trial by the name a sampler sees, those that were fixed there too."""
    candidate = candidate_of(trial.user_attrs)
    blocks = {"num_blocks": len(candidate.arch)} | candidate.block_params()
    return blocks | candidate.values() | trial.params


def as_trials(space: Space, known: Sequence[dict[str, Any]]) -> list[FrozenTrial]:
    """The known trials as a sampler takes them, oldest first, all with the number -1."""
    trials = []
    for row in known:
        given = optuna.trial.FixedTrial(row["params"])
        for name in row["params"]:
            space.dims[name].suggest(given, name)
        complete = row["value"] is not None
        trial = optuna.trial.create_trial(
            state=TrialState.COMPLETE if complete else TrialState.PRUNED,
            value=row["value"],
            params=row["params"],
            distributions=given.distributions,
            intermediate_values=dict(row["values"]),
            constraints={"infeasible": 1.0} if row["infeasible"] else None,
        )
        # Older than this study's first, 0; a lower one Optuna would take for one it has seen
        trials.append(numbered(trial, -1, -1))
    return trials
