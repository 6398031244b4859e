"""What becomes of trials, and that a study goes on after any end as if there had been none."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_workers import Fault, Workers, experiment, opened, record, row_at, search, value_at
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from vgg_search.config import Config
from vgg_search.space.arch import network_costs
from vgg_search.storage.folder import FolderInUseError
from vgg_search.study.record import StudyError, read_trials, rows_of
from vgg_search.study.segment import Event, Segment
from vgg_search.study.study import FINISHED, RETRIES, Study


@pytest.fixture
def tmp_path(in_memory: Path) -> Path:
    return in_memory


def at(*lrs: float, **more: Any) -> list[dict[str, Any]]:
    """Enqueued trials of one network and these learning rates."""
    return [{"arch": ((1, 8),), "lr": lr} | more for lr in lrs]


def states(study: Study) -> list[str]:
    return [
        f"{trial.state.name} {trial.user_attrs.get('state')}"
        for trial in study.optuna.get_trials(deepcopy=False)
    ]


# ---- states -----------------------------------------------------------------------------------


def test_stopping_leaves_completed_and_pruned_trials_with_every_value(tmp_path: Path) -> None:
    # Rung 1 judges 0.5 (alone: on), 0.9 (1st of 2: on), 0.1 (last of 3), 0.7 (2nd of 4: on, two
    # go on); rung 2 judges 0.5 and 0.9 (on), 0.7 (2nd of 3, one goes on: stopped).
    config = experiment(num_trials=4, enqueue=at(0.5, 0.9, 0.1, 0.7))
    study = search(tmp_path / "a", config, Workers())
    trials = study.optuna.get_trials(deepcopy=False)
    assert [len(trial.intermediate_values) for trial in trials] == [4, 4, 1, 2]
    assert states(study) == ["COMPLETE completed"] * 2 + ["PRUNED pruned"] * 2
    for trial in trials:
        for epoch, value in trial.intermediate_values.items():
            assert value == value_at(trial.params["lr"], epoch)
    assert [trial.value for trial in trials[:2]] == [value_at(0.5, 4), value_at(0.9, 4)]
    assert study.ranking.incumbent == (value_at(0.9, 4), 1)
    assert study.ranking.top() == [1, 3, 0, 2]
    assert study.unfinished == []
    assert study.budget.device_seconds == 11 * 2.0


def test_without_a_scheduler_every_trial_is_completed(tmp_path: Path) -> None:
    config = experiment(num_trials=3, scheduler="none", enqueue=at(0.5, 0.1, 0.9))
    study = search(tmp_path / "a", config, Workers(slots=2))
    assert states(study) == ["COMPLETE completed"] * 3


def test_waiting_trials_are_running_in_the_record_and_pruned_to_the_sampler(tmp_path: Path) -> None:
    config = experiment(num_trials=4, scheduler="asha-promote", enqueue=at(0.5, 0.9, 0.1, 0.7))
    folder, workers = tmp_path / "a", Workers()
    with opened(folder, config) as study:
        workers.run(study, turns=2)  # 0 and 1 have trained an epoch each
        recorded = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
        raw = recorded.get_all_trials(0)
        assert [trial.state for trial in raw[:2]] == [TrialState.RUNNING] * 2
        with study._sampling():
            seen = study.optuna.get_trials(deepcopy=False, states=[TrialState.PRUNED])
        assert [trial.number for trial in seen] == [0, 1]
        assert seen[0].intermediate_values == {1: value_at(0.5, 1)}
        assert seen[0].params == raw[0].params
        assert seen[0].constraints == {}
        assert study.unfinished == [0, 1]


def test_promotion_trains_the_best_on_and_ends_with_a_whole_network(tmp_path: Path) -> None:
    # After two at rung 1 the better (1) goes on to 2; after four two may: 3 too; of 1 and 3 at
    # rung 2 the better, 1, goes on to 4. The rest were never promoted.
    config = experiment(num_trials=4, scheduler="asha-promote", enqueue=at(0.5, 0.9, 0.1, 0.7))
    workers = Workers()
    study = search(tmp_path / "a", config, workers)
    assert [(s.number, s.until) for s in workers.segments] == [
        (0, 1), (1, 1), (1, 2), (2, 1), (3, 1), (3, 2), (1, 4),
    ]  # fmt: skip
    pruned = "PRUNED pruned"
    assert states(study) == [pruned, "COMPLETE completed", pruned, pruned]
    assert max(workers.trained.values()) == 1


def test_promotion_ends_with_a_whole_network_though_the_best_failed(tmp_path: Path) -> None:
    config = experiment(num_trials=3, scheduler="asha-promote", enqueue=at(0.5, 0.9, 0.1))
    study = search(tmp_path / "a", config, Workers(faults={1: Fault("diverged", epoch=2)}))
    assert states(study) == ["COMPLETE completed", "PRUNED diverged", "PRUNED pruned"]


def test_a_lone_trial_is_promoted_to_the_end(tmp_path: Path) -> None:
    config = experiment(num_trials=1, scheduler="asha-promote")
    assert states(search(tmp_path / "a", config, Workers())) == ["COMPLETE completed"]


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_diverged_trial_is_pruned_infeasible_and_takes_nobodys_place(
    tmp_path: Path, epoch: int
) -> None:
    config = experiment(num_trials=2, enqueue=at(0.9, 0.5))
    workers = Workers(faults={0: Fault("diverged", epoch=epoch)})
    study = search(tmp_path / "a", config, workers)
    first = study.optuna.get_trials(deepcopy=False)[0]
    assert states(study) == ["PRUNED diverged", "COMPLETE completed"]
    assert first.constraints == {"infeasible": 1.0}
    assert list(first.intermediate_values) == list(range(1, epoch + 1))
    assert first.user_attrs[f"epoch_{epoch}"]["val_loss"] is None  # JSON knows no NaN
    assert study.ranking.top() == [1]


def test_an_accuracy_that_is_not_finite_is_not_reported_to_the_sampler(tmp_path: Path) -> None:
    with opened(tmp_path / "a", experiment(num_trials=1)) as study:
        segment = study.propose()
        assert isinstance(segment, Segment)
        study.report(
            0, row_at(segment.candidate, 1, diverged=True) | {"val_accuracy": float("nan")}
        )
        study.segment_ended(0, "diverged")
        (trial,) = study.optuna.get_trials()
        assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, {})


def test_what_costs_too_much_is_told_before_any_worker_is_asked(tmp_path: Path) -> None:
    limit = 1_000_000
    space = experiment().space | {"max_flops": limit, "max_params": 30_000}
    workers = Workers()
    study = search(tmp_path / "a", experiment(num_trials=6, space=space, seed=1), workers)
    trials = study.optuna.get_trials()
    infeasible = [t for t in trials if t.user_attrs["state"] == "infeasible"]
    assert len(trials) - len(infeasible) == 6 == len({s.number for s in workers.segments})
    assert infeasible
    for trial in trials:
        arch = tuple(map(tuple, trial.user_attrs["arch"]))
        flops = network_costs(arch, hidden_features=32, num_hidden=1)[1]
        params = network_costs(arch, hidden_features=32, num_hidden=1)[0]
        expected = {"max_flops": flops / limit - 1, "max_params": params / 30_000 - 1}
        if trial in infeasible:
            assert trial.state is TrialState.PRUNED
            assert trial.constraints == pytest.approx(expected)
            assert max(trial.constraints.values()) > 0
        else:
            assert max(expected.values()) <= 0


@pytest.mark.parametrize(
    ("lr", "fault", "told"),
    [
        (0.9, None, "COMPLETE"),
        (0.1, None, "PRUNED"),
        (0.1, Fault("failed"), "PRUNED"),
    ],
)
def test_a_proposal_equal_to_a_finished_trial_gets_its_state_and_value(
    tmp_path: Path, lr: float, fault: Fault | None, told: str
) -> None:
    config = experiment(num_trials=3, enqueue=at(0.5, lr, lr))
    workers = Workers(faults={1: fault} if fault else {})
    study = search(tmp_path / "a", config, workers)
    trials = study.optuna.get_trials()
    assert (trials[2].state.name, trials[2].user_attrs["state"]) == (told, "duplicate")
    for field in ("value", "intermediate_values", "constraints", "state"):
        assert getattr(trials[2], field) == getattr(trials[1], field)
    assert trials[2].user_attrs["duplicate_of"] == 1
    assert {s.number for s in workers.segments} == {0, 1, 3}, "a duplicate is not counted"


def test_a_space_that_is_exhausted_ends_the_search(tmp_path: Path) -> None:
    space = experiment().space | {"lr": [0.1, 0.2, 0.3], "num_blocks": 1, "out_channels": 8}
    config = experiment(num_trials=50, space=space | {"num_convs": 1})
    study = search(tmp_path / "a", config, Workers())
    assert study.trained == 3
    resumed = search(tmp_path / "a", config, Workers())
    assert len(resumed.optuna.get_trials()) == len(study.optuna.get_trials())


def test_a_trial_that_fails_keeps_its_error_and_is_not_trained_again(tmp_path: Path) -> None:
    workers = Workers(faults={0: Fault("failed", epoch=2)})
    study = search(tmp_path / "a", experiment(num_trials=2, enqueue=at(0.9, 0.5)), workers)
    first = study.optuna.get_trials()[0]
    assert states(study) == ["PRUNED failed", "COMPLETE completed"]
    assert "RuntimeError: failed" in first.user_attrs["error"]
    assert first.constraints == {"infeasible": 1.0}
    assert [s.number for s in workers.segments].count(0) == 2  # until 1, until 2


def test_out_of_memory_is_tried_once_more_alone_on_the_device(tmp_path: Path) -> None:
    workers = Workers(slots=2, faults={1: Fault("oom", epoch=2)})
    config = experiment(num_trials=5, scheduler="none", enqueue=at(0.5, 0.9))
    study = search(tmp_path / "a", config, workers)
    assert states(study) == ["COMPLETE completed"] * 5
    assert [s.alone for s in workers.segments if s.number == 1] == [False, True]
    # Its first epoch is from its checkpoint; from the second on nobody trains beside it.
    turns = [turn for turn in workers.together if 1 in turn]
    assert turns[-3:] == [{1}] * 3
    assert max(workers.trained.values()) == 1


def test_out_of_memory_when_alone_is_a_failure(tmp_path: Path) -> None:
    class Small(Workers):
        def _steps(self, segment: Segment):  # type: ignore[no-untyped-def]
            if segment.number:
                yield from super()._steps(segment)
            yield "end", ("oom", "OutOfMemoryError: 80 GiB")

    study = search(tmp_path / "a", experiment(num_trials=2), Small(slots=2))
    assert states(study)[0] == "PRUNED failed"
    assert study.optuna.get_trials()[0].user_attrs["error"] == "OutOfMemoryError: 80 GiB"


def test_who_is_to_train_alone_keeps_nobody_behind_it_waiting_in_vain(tmp_path: Path) -> None:
    """It waits until nobody trains; whoever is before it in the queue goes on."""
    config = experiment(num_trials=3, scheduler="none", enqueue=at(0.1, 0.2, 0.3))
    with opened(tmp_path / "a", config) as study:
        segments = [study.propose() for _ in range(3)]
        assert [s.number for s in segments if isinstance(s, Segment)] == [0, 1, 2]
        study.segment_ended(0, "oom", "OutOfMemoryError: 80 GiB")
        study.segment_ended(1, "died")
        replaced = study.propose()
        assert isinstance(replaced, Segment)
        assert (replaced.number, replaced.alone) == (1, False)
        assert study.propose() is None, "0 waits until both have ended"
        study.segment_ended(1, "failed")
        assert study.propose() is None
        study.segment_ended(2, "failed")
        alone = study.propose()
        assert isinstance(alone, Segment)
        assert (alone.number, alone.alone) == (0, True)
        assert study.propose() is None


def test_how_far_a_trial_may_train_is_in_the_record_once_a_segment(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with opened(folder, experiment(num_trials=1)) as study:
        segment = study.propose()
        assert isinstance(segment, Segment)
        assert read_trials(folder)[0].user_attrs["until"] == 1
        lines = len((folder / "study.journal").read_bytes().splitlines())
        study.segment_ended(0, "died")
        assert study.propose() == segment
        assert len((folder / "study.journal").read_bytes().splitlines()) == lines
        study.report(0, row_at(segment.candidate, 1))
        study.segment_ended(0)
        further = study.propose()
        assert isinstance(further, Segment)
        assert (further.until, further.known) == (2, 1)
        assert read_trials(folder)[0].user_attrs["until"] == 2


def test_a_dead_worker_is_replaced_from_the_last_checkpoint(tmp_path: Path) -> None:
    workers = Workers(slots=2, faults={0: Fault("died", epoch=3, times=RETRIES)})
    config = experiment(num_trials=2, scheduler="none", enqueue=at(0.9, 0.5))
    study = search(tmp_path / "a", config, workers)
    assert states(study) == ["COMPLETE completed"] * 2
    assert [s.known for s in workers.segments if s.number == 0] == [0, 2, 2]
    assert max(workers.trained.values()) == 1


def test_a_trial_that_kills_its_worker_every_time_fails(tmp_path: Path) -> None:
    workers = Workers(faults={0: Fault("died", epoch=2)})
    study = search(tmp_path / "a", experiment(num_trials=2), workers)
    assert states(study)[0] == "PRUNED failed"
    assert workers.faults[0].times == 1_000 - RETRIES - 1


# ---- samplers ---------------------------------------------------------------------------------

# Blocks that exist in some trials only, a choice, a switch, a log scale, and what is too large
MIXED = {
    "hidden_features": [32, 64],
    "batch_norm": [True, False],
    "weight_decay": [1e-5, 1e-2],
    "max_params": 60_000,
}


def proposals(folder: Path, trials: int, **fields: Any) -> list[dict[str, Any]]:
    space = experiment().space | MIXED
    study = search(folder, experiment(num_trials=trials, space=space, **fields), Workers(slots=2))
    found = study.optuna.get_trials(deepcopy=False)
    assert {"infeasible", "pruned", "completed"} <= {t.user_attrs["state"] for t in found}
    return [trial.params for trial in found]


@pytest.mark.parametrize(
    ("sampler", "trials"),
    [("random", 20), ("tpe", 20), ("tpe-joint", 20), ("curves", 20), ("gp", 8), ("cmaes", 20)],
)
def test_each_sampler_has_its_seed(tmp_path: Path, sampler: str, trials: int) -> None:
    first, again, other = (
        proposals(tmp_path / name, trials, sampler=sampler, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("sampler", "trials"),
    [("tpe", 24), ("tpe-joint", 24), ("curves", 30), ("gp", 8), ("cmaes", 24)],
)
@pytest.mark.parametrize("scheduler", ["asha", "asha-promote"])
def test_each_sampler_learns_from_trials_that_were_stopped(
    tmp_path: Path, sampler: str, trials: int, scheduler: str
) -> None:
    """Few trials are completed: a sampler that looks at those alone goes on at random."""
    by_random = proposals(tmp_path / "r", trials, sampler="random", scheduler=scheduler)
    found = proposals(tmp_path / "s", trials, sampler=sampler, scheduler=scheduler)
    start = 1 if sampler == "cmaes" else 10  # at random
    assert found[:start] == by_random[:start]
    start += 10 * (sampler == "curves")  # which does not count those that were too large
    assert all(params not in by_random for params in found[start + 2 :])
    if sampler != "cmaes":  # which has had two generations at most
        assert sum(t["lr"] for t in found[-3:]) > sum(t["lr"] for t in by_random[-3:])


# ---- what is enqueued -------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [((1, 8), (2, 32)), ((4, 24),), ((1, 32), (1, 8))])
def test_the_baseline_is_trial_0_inside_and_outside_of_the_space(
    tmp_path: Path, arch: tuple[tuple[int, int], ...]
) -> None:
    study = search(tmp_path / "a", experiment(num_trials=2, baseline=arch), Workers())
    first, second = study.optuna.get_trials()
    assert first.user_attrs["arch"] == [list(block) for block in arch]
    assert first.user_attrs["baseline"] is True
    assert "baseline" not in second.user_attrs
    assert first.params["lr"] == pytest.approx(0.505), "the middle of the space"


def test_a_baseline_has_values_of_its_own(tmp_path: Path) -> None:
    baseline = {"arch": ((1, 8), (2, 32)), "lr": 0.25}
    config = experiment(num_trials=1, baseline=baseline)
    with opened(tmp_path / "a", config) as study:
        Workers().run(study)
    (first,) = read_trials(tmp_path / "a")
    assert first.user_attrs["arch"] == [[1, 8], [2, 32]]
    assert (first.user_attrs["baseline"], first.params["lr"]) == (True, 0.25)


@pytest.mark.parametrize("scheduler", ["asha", "asha-promote"])
def test_the_baseline_is_trained_to_the_end_however_it_stands(
    tmp_path: Path, scheduler: str
) -> None:
    """Also where each of its rungs begins another session."""
    better = at(*(0.9 + 0.01 * i for i in range(6)))
    config = experiment(num_trials=7, scheduler=scheduler, baseline=((1, 8),), enqueue=better)
    trials = search(tmp_path / "a", config, Workers(slots=2)).optuna.get_trials(deepcopy=False)
    assert trials[0].params["lr"] < 0.9
    assert trials[0].user_attrs["state"] == "completed"
    assert sorted(trials[0].intermediate_values) == [1, 2, 3, 4]
    workers, done = Workers(slots=2), False
    while not done:
        with opened(tmp_path / "b", config) as study:
            if done := workers.run(study, turns=1):
                study.close()
    assert sorted(read_trials(tmp_path / "b")[0].intermediate_values) == [1, 2, 3, 4]


@pytest.mark.parametrize("arch", [((4, 24),), ((1, 8),)])  # outside of the space, and inside
def test_a_baseline_is_trained_whatever_it_costs(
    tmp_path: Path, arch: tuple[tuple[int, int], ...]
) -> None:
    space = experiment().space | {"max_params": 30_000, "num_blocks": [1, 2], "out_channels": 8}
    config = experiment(num_trials=1, baseline=arch, space=space)
    assert network_costs(arch, hidden_features=32, num_hidden=1)[0] > 30_000
    assert states(search(tmp_path / "a", config, Workers())) == ["COMPLETE completed"]


def test_trials_have_seeds_of_their_own_that_follow_the_studys(tmp_path: Path) -> None:
    seeds = [
        [s.seed for s in run.segments if s.until == 1]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
        if search(tmp_path / name, experiment(num_trials=3, seed=seed), run := Workers())
    ]
    assert seeds[0] == seeds[1]
    assert len({*seeds[0], *seeds[2]}) == 6


# ---- listeners, budgets and stopping ----------------------------------------------------------


def test_listeners_hear_each_trial_from_start_to_end(tmp_path: Path) -> None:
    heard: list[Event] = []
    config = experiment(num_trials=2, scheduler="asha-promote", enqueue=at(0.5, 0.9))
    with opened(tmp_path / "a", config, [heard.append]) as study:
        Workers().run(study)
        study.close()
    kinds = [event.kind for event in heard if event.number == 0]
    assert kinds == ["started", "epoch", "waiting", "ended"]
    kinds = [event.kind for event in heard if event.number == 1]
    assert kinds == [
        "started", "epoch", "waiting", "promoted", "epoch",
        "waiting", "promoted", "epoch", "epoch", "ended",
    ]  # fmt: skip
    assert heard[-1].attrs["state"] == "pruned"


def test_a_row_that_is_told_twice_counts_once(tmp_path: Path) -> None:
    """A worker that takes up a trial repeats the rows that it finds in the checkpoint."""
    heard: list[Event] = []
    folder = tmp_path / "a"
    with opened(folder, experiment(num_trials=1), [heard.append]) as study:
        segment = study.propose()
        assert isinstance(segment, Segment)
        row = row_at(segment.candidate, 1)
        study.report(0, row)
        lines = len((folder / "study.journal").read_bytes().splitlines())
        study.report(0, row | {"val_accuracy": 0.99})
        assert len((folder / "study.journal").read_bytes().splitlines()) == lines
        assert [event.kind for event in heard] == ["started", "epoch"]
        assert (study.budget.epochs, study.budget.device_seconds) == (1, 2.0)
        assert [row["val_accuracy"] for row in study.rows(0)] == [row["val_accuracy"]]
    with opened(folder, experiment(num_trials=1)) as again:
        again.report(0, row)  # of the session before
        assert (again.budget.epochs, again.budget.device_seconds) == (1, 2.0)
    (trial,) = read_trials(folder)
    assert trial.intermediate_values == {1: row["val_accuracy"]}
    assert [row["val_accuracy"] for row in rows_of(trial)] == [row["val_accuracy"]]


@pytest.mark.parametrize("state", ["died", "oom"])
def test_listeners_hear_of_a_second_try(tmp_path: Path, state: str) -> None:
    heard: list[Event] = []
    with opened(tmp_path / "a", experiment(num_trials=1), [heard.append]) as study:
        study.propose()
        study.segment_ended(0, state, "")
    assert [event.kind for event in heard] == ["started", "retried"]


def test_a_stopped_study_proposes_nothing_and_is_not_finished(tmp_path: Path) -> None:
    with opened(tmp_path / "a", experiment(num_trials=2)) as study:
        assert isinstance(study.propose(), Segment)
        study.stopping = True
        assert study.propose() is None, "one is running"
        study.running.clear()
        assert study.propose() == FINISHED
        assert not study.finished
        assert study.unfinished == [0]


def test_device_hours_are_a_budget_that_survives_a_resume(tmp_path: Path) -> None:
    config = experiment(num_trials=2, scheduler="none", gpu_hours=8 / 3600)
    folder, workers = tmp_path / "a", Workers()
    with opened(folder, config) as study:
        workers.run(study, turns=3)
        assert not study.budget.used_up
    with opened(folder, config) as again:
        assert again.budget.device_seconds == 6.0
        workers.run(again, turns=1)
        assert again.budget.used_up


@pytest.mark.parametrize(
    ("gpus", "workers", "devices"),
    [("auto", 1, 1), (0, 1, 1), (0.25, 1, 0.25), (2, 1, 2), (1, 4, 4), (0, 2, 2)],
)
def test_a_trial_uses_its_share_of_a_device(
    tmp_path: Path, gpus: float | str, workers: int, devices: float
) -> None:
    config = experiment(num_trials=1, gpus_per_trial=gpus, workers_per_trial=workers)
    study = search(tmp_path / "a", config, Workers())
    assert study.budget.device_seconds == 4 * 2.0 * devices


def test_only_the_top_k_are_worth_a_checkpoint(tmp_path: Path) -> None:
    workers = Workers()
    search(tmp_path / "a", experiment(num_trials=3, top_k=1, enqueue=at(0.5, 0.9, 0.1)), workers)
    above = {s.number: s.keep_above for s in workers.segments if s.until == 1}
    assert above == {0: 0.0, 1: value_at(0.5, 4), 2: value_at(0.9, 4)}
    search(tmp_path / "b", experiment(num_trials=1, top_k=0), workers := Workers())
    assert workers.segments[0].keep_above == float("inf")
    workers = Workers()
    lrs = at(0.5, 0.9, 0.7, 0.1)
    config = experiment(num_trials=4, scheduler="none", top_k=2, enqueue=lrs)
    search(tmp_path / "c", config, workers)
    # As soon as there are two: the second best, not the best
    above = [0.0, 0.0, value_at(0.5, 4), value_at(0.7, 4)]
    assert [s.keep_above for s in workers.segments] == above


def test_of_equally_good_trials_the_first_is_the_incumbent(tmp_path: Path) -> None:
    enqueue = [{"arch": ((1, channels),), "lr": 0.5} for channels in (8, 16)]
    config = experiment(num_trials=2, scheduler="none", enqueue=enqueue)
    # The first trial's worker dies, so that the second ends before it.
    workers = Workers(slots=2, faults={0: Fault("died", epoch=4, times=1)})
    assert search(tmp_path / "a", config, workers).ranking.incumbent == (value_at(0.5, 4), 0)


# ---- one driver, broken files -----------------------------------------------------------------


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    study = Study(tmp_path / "mine", experiment())
    with pytest.raises(FolderInUseError, match=r"^study mine is in use by a running search$"):
        Study(tmp_path / "mine", experiment())
    study.release()
    Study(tmp_path / "mine", experiment()).release()


def test_a_study_goes_on_with_the_data_that_it_began_on(tmp_path: Path) -> None:
    Study(tmp_path, experiment()).release()  # as of a version that did not say
    for digest in ("abc", "abc"):
        study = Study(tmp_path, experiment(), facts={"digest": digest})
        study.open()
        study.release()
    text = r"^a resumed study's data must be what it began on \(abc\), got def$"
    with pytest.raises(StudyError, match=text):
        Study(tmp_path, experiment(), facts={"digest": "def"})
    study = Study(tmp_path, experiment())  # nobody holds the folder
    assert study.optuna.user_attrs["digest"] == "abc"
    study.release()


def test_a_killed_driver_holds_nothing(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path\n"
        "from vgg_search.storage.folder import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert ended.returncode == -9
    Study(tmp_path, experiment()).release()


def test_no_study_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no study in .*: study\.journal is missing"):
        read_trials(tmp_path)


def test_a_study_can_be_read_while_it_runs(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with opened(folder, experiment(num_trials=3)) as study:
        Workers().run(study, turns=3)
        assert len(read_trials(folder)) >= 1


# ---- resume -----------------------------------------------------------------------------------

FAULTS = {1: Fault("diverged", epoch=2), 3: Fault("failed", epoch=1), 5: Fault("diverged", epoch=1)}


def killed_everywhere(tmp_path: Path, config: Config, step: int, start: float = 0.0) -> None:
    """Kill a search after each `step`th line of its journal and go on: the record is the same.

    What a kill leaves is a prefix of the journal, and checkpoints of all epochs in it and perhaps
    of one more. Every other time the line after it is torn, and the journal's lock is left behind.
    """
    whole = search(tmp_path / "whole", config, Workers(faults=dict(FAULTS)))
    expected = record(whole)
    lines = (tmp_path / "whole" / "study.journal").read_bytes().splitlines(keepends=True)
    assert len(expected) >= config.num_trials
    for count in range(int(start * len(lines)), len(lines), step):
        folder = tmp_path / str(count) / "whole"
        folder.mkdir(parents=True)
        journal = folder / "study.journal"
        torn, ahead = count % 2, count % 3 == 0
        journal.write_bytes(b"".join(lines[:count]))
        disk: dict[int, list[dict[str, Any]]] = {}
        for trial in read_trials(folder) if count > 1 else []:
            rows = whole.rows(trial.number)
            known = sum(key.startswith("epoch_") for key in trial.user_attrs)
            running = trial.state is TrialState.RUNNING and "until" in trial.user_attrs
            until = trial.user_attrs.get("until", 0)
            disk[trial.number] = rows[: min(known + (ahead and running), max(until, known))]
        if torn:
            journal.write_bytes(b"".join(lines[:count]) + lines[count][: len(lines[count]) // 2])
            (folder / "study.journal.lock").symlink_to(journal)
        workers = Workers(faults=dict(FAULTS), disk={n: list(rows) for n, rows in disk.items()})
        resumed = search(folder, config, workers)
        assert record(resumed) == expected, f"killed after line {count}: {lines[count - 1]!r}"
        assert resumed.ranking.incumbent == whole.ranking.incumbent
        assert resumed.ranking.best == whole.ranking.best
        assert resumed.budget.device_seconds == whole.budget.device_seconds
        again = [(n, epoch) for n, epoch in workers.trained if epoch <= len(disk.get(n, []))]
        assert not again, f"trained again: {again}"
        assert not resumed.unfinished
        shutil.rmtree(tmp_path / str(count))


# Learning rates that repeat, for duplicates; a limit, for the infeasible
LIMITED = {"lr": [0.2, 0.4, 0.6, 0.7, 0.8], "max_params": 120_000}


@pytest.mark.parametrize("scheduler", ["asha", "asha-promote", "none"])
def test_a_kill_at_any_line_of_the_journal_changes_nothing(tmp_path: Path, scheduler: str) -> None:
    config = experiment(
        num_trials=6,
        scheduler=scheduler,
        baseline=((4, 24),),
        enqueue=at(0.4, 0.8, 0.8),
        space=experiment().space | LIMITED | {"num_blocks": 1, "num_convs": 1},
    )
    killed_everywhere(tmp_path, config, step=1 if scheduler == "asha" else 2)


@pytest.mark.parametrize("scheduler", ["asha", "asha-promote"])
def test_after_a_kill_tpe_proposes_what_it_would_have(tmp_path: Path, scheduler: str) -> None:
    # More trials than TPE's ten at random
    config = experiment(num_trials=14, scheduler=scheduler, sampler="tpe", max_epochs=2)
    killed_everywhere(tmp_path, config, step=5, start=0.7)


def test_kills_with_several_workers_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    config = experiment(num_trials=12, scheduler="asha-promote")
    workers, done, turns = Workers(slots=3, faults=dict(FAULTS)), False, 1
    while not done:
        with opened(folder, config) as study:
            done = workers.run(study, turns=turns)
            turns = turns % 4 + 1
            if done:
                study.close()
    assert max(workers.trained.values()) == 1
    assert [trial.state.is_finished() for trial in study.optuna.get_trials()] == [True] * 12
    told = {(t.number, e) for t in study.optuna.get_trials() for e in t.intermediate_values}
    diverged = {(n, fault.epoch) for n, fault in FAULTS.items() if fault.kind == "diverged"}
    assert told - diverged == set(workers.trained)
    assert "COMPLETE completed" in states(study)


def test_a_resumed_study_knows_what_was_trained_and_who_was_best(tmp_path: Path) -> None:
    config = experiment(num_trials=3, scheduler="none", enqueue=at(0.5, 0.9, 0.1, 0.9))
    search(tmp_path / "a", config, Workers())
    with opened(tmp_path / "a", config.model_copy(update={"num_trials": 4})) as study:
        assert (study.trained, study.budget.epochs) == (3, 12)
        assert study.ranking.incumbent == (value_at(0.9, 4), 1)
        assert study.ranking.top() == [1, 0, 2]
        segment = study.propose()
        assert isinstance(segment, Segment)
        trials = study.optuna.get_trials(deepcopy=False)
        assert trials[3].user_attrs["duplicate_of"] == 1
        assert segment.number == 4


def test_what_needed_no_training_is_counted_in_a_row_after_a_resume_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vgg_search.study.study.UNTRAINED_IN_A_ROW", 3)
    enqueue = at(0.5, 0.5, 0.5, 0.6, 0.6)  # two that are equal to the first, then one
    search(tmp_path / "a", experiment(num_trials=2, enqueue=enqueue), Workers())
    again = search(tmp_path / "a", experiment(num_trials=3, enqueue=enqueue), Workers())
    assert again.trained == 3, "never three in a row"
    enqueue = at(0.5, 0.5, 0.5, 0.5)
    search(tmp_path / "b", experiment(num_trials=2, enqueue=enqueue), Workers())
    assert len(read_trials(tmp_path / "b")) == 4
    again = search(tmp_path / "b", experiment(num_trials=2, enqueue=enqueue), Workers())
    assert (again.trained, len(read_trials(tmp_path / "b"))) == (1, 4), "the space is exhausted"


def test_a_resumed_study_may_train_more_trials(tmp_path: Path) -> None:
    search(tmp_path / "a", experiment(num_trials=3), Workers())
    whole = search(tmp_path / "b", experiment(num_trials=5), Workers())
    more = search(tmp_path / "a", experiment(num_trials=5), Workers())
    assert record(more) == record(whole)
