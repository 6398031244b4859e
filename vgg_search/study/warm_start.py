"""Another study's trials as knowledge of this study's sampler, and as nothing else.

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
from vgg_search.study.record import candidate_of, read_study, value_of

DIGEST, KNOWN = "digest", "known_trials"  # attributes of a study in its journal
# What a machine could not do, or a limit forbade, may be possible here.
TRANSFERABLE = ("completed", "pruned", "diverged")

log = logging.getLogger("vgg_search")


def knowledge(config: Config, digest: str, folder: Path) -> list[dict[str, Any]] | None:
    """What `warm_start` names, as plain data for the journal; None once `folder` has it there.

    Raises ConfigError if there is no such study, or if it saw other data than `digest` names.
    """
    name = config.warm_start
    if name is None or ((own := read_study(folder)) and KNOWN in own.user_attrs):
        return None
    places = [local_folder(config.storage_path, name), Path(name)]
    place = next((place for place in places if (place / JOURNAL).is_file()), None)
    if place is None or place.resolve() == folder.resolve():
        raise ConfigError(
            f"warm_start must be another study in {config.storage_path} or its run folder, "
            f"got {name!r}"
        )
    study = read_study(place)
    data = study and study.user_attrs.get(DIGEST)
    if study is None or data != digest:
        raise ConfigError(
            f"warm_start must be a study on the same data ({digest}), "
            f"got {name} ({data or 'it does not say which'})"
        )
    rows, left_out = _matching_rows(config, study.get_trials(deepcopy=False))
    why = f"; left out, for this space has no such value: {', '.join(left_out)}" if left_out else ""
    log.warning("warm start from %s: the sampler knows %d of its trials%s", name, len(rows), why)
    return rows


def _matching_rows(
    config: Config, trials: Iterable[FrozenTrial]
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each trial that tells something about this space, and what was left out, in words.

    A value that this space cannot propose is left out of its trial; the whole trial is, if that is
    its number of blocks or is fixed here.
    """
    space, rows = config.search_space, []
    trials_left_out, values_left_out = Counter[str](), Counter[str]()
    for trial in trials:
        if trial.user_attrs.get("state") not in TRANSFERABLE:
            continue
        candidate = candidate_of(trial.user_attrs)
        values = {"num_blocks": len(candidate.arch), **candidate.block_params()}
        values |= candidate.values() | trial.params
        matches = {n: space.dims[n].match(v) for n, v in values.items() if n in space.dims}
        wrong = [name for name, match in matches.items() if match is None]
        decisive = [name for name in wrong if name == "num_blocks" or space.dims[name].fixed]
        if decisive:
            trials_left_out[decisive[0]] += 1
            continue
        values_left_out.update(wrong)
        # Short of this study's last epoch, a value is no result here but an intermediate one
        last_epoch = trial.last_step or 0
        complete = trial.state is TrialState.COMPLETE and last_epoch >= config.max_epochs
        sampled = [name for name in matches if name in space.sampled() and name not in wrong]
        infeasible = trial.user_attrs["state"] == "diverged" or not space.feasible(candidate)
        rows.append(
            {
                "params": {name: matches[name] for name in sampled},
                "value": value_of(trial) if complete else None,
                "values": [[e, v] for e, v in sorted(trial.intermediate_values.items())],
                "infeasible": infeasible,
            }
        )
    left_out = [f"{count} trials with another {name}" for name, count in trials_left_out.items()]
    return rows, left_out + [f"{name} of {count} trials" for name, count in values_left_out.items()]


def as_trials(space: Space, rows: Sequence[dict[str, Any]]) -> list[FrozenTrial]:
    """The rows of `knowledge` as trials for a sampler, oldest first. All have Optuna's number for
    trials of no study, -1: older than this study's first, and Optuna has seen none lower."""
    trials = []
    for row in rows:
        fixed_trial = optuna.trial.FixedTrial(row["params"])
        for name in row["params"]:
            space.dims[name].suggest(fixed_trial, name)
        trials.append(
            optuna.trial.create_trial(
                state=TrialState.PRUNED if row["value"] is None else TrialState.COMPLETE,
                value=row["value"],
                params=row["params"],
                distributions=fixed_trial.distributions,
                intermediate_values=dict(row["values"]),
                constraints={"infeasible": 1.0} if row["infeasible"] else None,
            )
        )
    return trials
