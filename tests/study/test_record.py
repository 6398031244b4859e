"""The record: repaired at opening, locked, read without being touched, and shown to samplers."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from fake_workers import SPACE, Fault, Workers, experiment, opened, record, search
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from vgg_search.errors import InputError
from vgg_search.space.arch import as_arch
from vgg_search.storage.folder import FolderInUseError, FolderLock
from vgg_search.study.curves import CurveSampler
from vgg_search.study.journal_file import JournalFile
from vgg_search.study.record import (
    StudyError,
    candidate_of,
    constrain,
    open_journal,
    read_outlines,
    read_trials,
    rows_by_epoch,
    rows_of,
    tell,
    write_row,
)
from vgg_search.study.sampling import PROPOSING, VALUES_ONLY, make_sampler, trial_seed


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A study of four trials, of which two have been trained for an epoch."""
    config = experiment(num_trials=4, scheduler="none")
    with opened(tmp_path / "mine", config) as study:
        Workers(slots=2).run(study, turns=1)
    return tmp_path / "mine"


def test_a_torn_last_line_is_cut_off(folder: Path) -> None:
    file = folder / "study.journal"
    whole = file.read_bytes()
    before = len(read_trials(folder))
    file.write_bytes(whole + b'{"op_code": 5, "worker_id": "x", "stu')
    assert len(read_trials(folder)) == before  # reading changes nothing
    study, _ = open_journal(folder)
    after = file.read_bytes()
    assert after.startswith(whole)
    for line in after.splitlines():
        json.loads(line)
    study.ask()
    assert len(read_trials(folder)) == before + 1


def test_a_file_without_a_whole_line_is_a_new_study(tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_bytes(b'{"op_code": 0, "wor')
    study, _ = open_journal(tmp_path)
    assert study.get_trials() == []


def test_a_lock_left_by_a_crash_is_not_waited_for(folder: Path) -> None:
    lock = folder / "study.journal.lock"
    lock.symlink_to(folder / "study.journal")  # as Optuna's JournalFileSymlinkLock leaves it
    study, _ = open_journal(folder)
    assert not lock.is_symlink()
    study.ask()


def test_reading_leaves_every_byte_and_makes_no_file(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (folder / "study.journal").chmod(0o444)
    trials = read_trials(folder)
    assert [trial.state for trial in trials] == [TrialState.RUNNING] * 2
    assert [len(rows_of(trial)) for trial in trials] == [1, 1]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_outline_says_the_same_of_state_values_and_attributes(tmp_path: Path) -> None:
    """Of trials in each state, those that are open or wait among them, of a study that was gone on
    with."""
    faults = {1: Fault("diverged"), 2: Fault("failed"), 4: Fault("diverged", epoch=2)}
    config = experiment(num_trials=40, max_epochs=9, space=SPACE | {"max_params": 20_000})
    for turns in (4, 10):
        with opened(tmp_path / "s", config) as study:
            Workers(slots=3, faults=faults).run(study, turns=turns)
    trials, outlines = read_trials(tmp_path / "s"), read_outlines(tmp_path / "s")
    states = {trial.user_attrs.get("state") for trial in trials}
    assert states >= {"completed", "diverged", "failed", "infeasible", None}
    for trial, outline in zip(trials, outlines, strict=True):
        assert outline.number == trial.number
        assert outline.state == trial.state
        assert outline.values == trial.values
        assert outline.user_attrs == trial.user_attrs


def test_what_is_no_study_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"^no study in .*/no: study\.journal is missing$"):
        read_trials(tmp_path / "no")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "study.journal").touch()  # its driver has only just begun
    with pytest.raises(
        StudyError, match=r"^no study in .*/empty/study\.journal yet: .*--resume empty anew$"
    ):
        read_trials(tmp_path / "empty")


def test_a_renamed_folder_is_the_same_study(tmp_path: Path, folder: Path) -> None:
    before = [trial.params for trial in read_trials(folder)]
    renamed = folder.rename(tmp_path / "other")
    assert [trial.params for trial in read_trials(renamed)] == before
    study, _ = open_journal(renamed)  # and no second one beside it
    assert [trial.params for trial in study.get_trials()] == before


def test_a_folder_belongs_to_one_driver_until_its_process_ends(tmp_path: Path) -> None:
    holder = (
        "import sys; from vgg_search.storage.folder import FolderLock; from pathlib import Path\n"
    )
    holder += "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(
            FolderInUseError, match=f"^study {tmp_path.name} is in use by a running sea"
        ):
            FolderLock(tmp_path)
        process.kill()
    FolderLock(tmp_path).release()
    FolderLock(tmp_path).release()


def test_waiting_trials_are_pruned_in_the_view_and_running_in_the_record(folder: Path) -> None:
    study, storage = open_journal(folder)
    with storage.sampling(waiting={1}, values_only=False):
        seen = study.get_trials(deepcopy=False)
        assert [trial.state for trial in seen] == [TrialState.RUNNING, TrialState.PRUNED]
        recorded = read_trials(folder)[1]
        assert recorded.state is TrialState.RUNNING
        for name in ("number", "_trial_id", "params", "user_attrs", "intermediate_values"):
            assert getattr(seen[1], name) == getattr(recorded, name), name
        assert [t.number for t in study.get_trials(states=[TrialState.PRUNED])] == [1]
        assert [t.number for t in study.get_trials(states=[TrialState.RUNNING])] == [0]
    assert study.get_trials(states=[TrialState.PRUNED]) == []


def told(study: optuna.Study, values: list[float], infeasible: bool, value: float | None) -> None:
    """A trial with a value an epoch, ended as a study ends it."""
    trial = study.ask()
    for epoch, accuracy in enumerate(values, 1):
        trial.report(accuracy, epoch)
    if infeasible:
        constrain(trial, {"infeasible": 1.0})
    tell(study, trial, value)


def test_samplers_of_values_are_shown_the_worst_where_a_trial_is_infeasible(tmp_path: Path) -> None:
    """Also where it was best before it diverged; of what was only stopped, the last value."""
    study, storage = open_journal(tmp_path)
    told(study, [0.8, 0.9], infeasible=False, value=0.9)
    told(study, [0.6, 0.3], infeasible=False, value=None)
    told(study, [0.95], infeasible=True, value=None)
    told(study, [], infeasible=True, value=None)
    told(study, [0.5, 0.7], infeasible=False, value=None)
    running = study.ask()
    running.report(0.4, 1)
    with storage.sampling(waiting=(), values_only=True):
        seen = study.get_trials(deepcopy=False)
    assert [trial.value for trial in seen[:5]] == [0.9, 0.3, 0.3, 0.3, 0.7]
    states = [trial.state for trial in seen]
    assert states == [TrialState.COMPLETE] * 5 + [TrialState.RUNNING]
    assert [trial.constraints for trial in seen] == [{}] * 6
    with storage.sampling(waiting={5}, values_only=True):
        assert study.get_trials(deepcopy=False)[5].value == 0.4, "it waits at its rung"
    with storage.sampling(waiting=(), values_only=False):
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
    assert states == [TrialState.COMPLETE, *[TrialState.PRUNED] * 4, TrialState.RUNNING]


@pytest.mark.parametrize("kind", ["random", "tpe", "tpe-joint", "curves", "gp", "cmaes"])
def test_no_sampler_warns_of_what_it_is_told(tmp_path: Path, kind: str) -> None:
    """CMA-ES knows no constraints; a warning is an error here."""
    study, storage = open_journal(tmp_path)
    study.sampler = make_sampler(kind, 0, experiment().search_space, (4,))
    for infeasible in (True, False, True):
        with storage.sampling(waiting=(), values_only=kind in VALUES_ONLY):
            trial = study.ask()
            trial.suggest_float("lr", 0.0, 1.0)
        if infeasible:
            constrain(trial, {"infeasible": 1.0})
        tell(study, trial, None if infeasible else 0.5)
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    assert states == [TrialState.PRUNED, TrialState.COMPLETE, TrialState.PRUNED]


def test_where_all_are_infeasible_the_worst_is_no_accuracy_at_all(tmp_path: Path) -> None:
    study, storage = open_journal(tmp_path)
    told(study, [0.5], infeasible=True, value=None)
    with storage.sampling(waiting=(), values_only=True):
        assert [trial.value for trial in study.get_trials()] == [0.0]


def test_warm_start_trials_are_seen_by_a_sampler_only(folder: Path) -> None:
    study, storage = open_journal(folder)
    space = {"lr": optuna.distributions.FloatDistribution(0.0, 1.0)}
    storage.warm_start = [
        optuna.trial.create_trial(params={"lr": 0.5}, distributions=space, value=0.9)
    ]
    assert len(study.get_trials()) == 2
    with storage.sampling(waiting=(), values_only=False):
        assert [trial.value for trial in study.get_trials()[:1]] == [0.9]
        assert len(study.get_trials()) == 3
    with pytest.raises(RuntimeError, match="inside"), storage.sampling((), False):
        raise RuntimeError("inside")
    assert len(study.get_trials()) == 2


def test_what_was_told_can_be_read_back(tmp_path: Path) -> None:
    config = experiment(num_trials=3, scheduler="none")
    study = search(tmp_path / "s", config, Workers())
    for trial, told in zip(read_trials(tmp_path / "s"), record(study).values(), strict=True):
        assert [row["epoch"] for row in rows_of(trial)] == [1, 2, 3, 4]
        assert [trial.value] == told["objectives"] == [rows_of(trial)[-1]["val_accuracy"]]
        candidate = candidate_of(trial.user_attrs)
        assert candidate.arch == as_arch(trial.user_attrs["arch"])
        assert candidate.lr == trial.params["lr"]
        hash(candidate)  # equal proposals are found in a dict


def test_rows_are_in_the_order_of_epochs() -> None:
    attrs = {f"epoch_{i}": {"epoch": i} for i in (10, 9, 1)}
    trial = optuna.trial.create_trial(value=0.0, user_attrs=attrs | {"epochs": 3})
    assert [row["epoch"] for row in rows_of(trial)] == [1, 9, 10]


def test_a_row_is_stored_as_json_and_read_as_it_was(tmp_path: Path) -> None:
    study, _ = open_journal(tmp_path)
    trial = study.ask()
    odd = {"epoch": 2, "val_accuracy": math.nan, "train_loss": math.inf, "val_loss": -math.inf}
    write_row(trial, {"epoch": 1, "val_accuracy": 0.5, "train_loss": 1.0})
    write_row(trial, odd)
    for line in (tmp_path / "study.journal").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    (record,) = read_trials(tmp_path)
    assert record.intermediate_values == {1: 0.5}
    plain = {"epoch": 2, "val_accuracy": None, "train_loss": None, "val_loss": None}
    assert rows_of(record) == [{"epoch": 1, "val_accuracy": 0.5, "train_loss": 1.0}, plain]
    rows = rows_by_epoch(record)
    assert list(rows) == [1, 2]
    assert rows[1] == {"epoch": 1, "val_accuracy": 0.5, "train_loss": 1.0}
    assert all(math.isnan(rows[2][name]) for name in ("val_accuracy", "train_loss", "val_loss"))


def test_a_row_that_was_half_written_is_written_to_its_end(tmp_path: Path) -> None:
    """The driver was stopped after the value; to report it again would be a warning."""
    study, _ = open_journal(tmp_path)
    trial = study.ask()
    trial.report(0.5, 1)
    write_row(trial, {"epoch": 1, "val_accuracy": 0.5})
    (record,) = read_trials(tmp_path)
    assert (record.intermediate_values, rows_of(record)) == (
        {1: 0.5},
        [{"epoch": 1, "val_accuracy": 0.5}],
    )


def test_seeds_differ_by_study_trial_and_purpose_and_nothing_else() -> None:
    seeds = [trial_seed(s, n, p) for s in range(3) for n in range(50) for p in (0, PROPOSING)]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [trial_seed(s, n, p) for s in range(3) for n in range(50) for p in (0, 1)]


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("tpe", optuna.samplers.TPESampler),
        ("random", optuna.samplers.RandomSampler),
        ("gp", optuna.samplers.GPSampler),
        ("cmaes", optuna.samplers.CmaEsSampler),
        ("curves", CurveSampler),
    ],
)
def test_a_sampler_proposes_by_its_seed(kind: str, made: type) -> None:
    if kind == "cmaes":
        pytest.importorskip("cmaes")
    proposals = []
    for seed in (1, 1, 2):
        sampler = make_sampler(kind, seed, experiment().search_space, (4,))
        assert isinstance(sampler, made)
        trial = optuna.create_study(sampler=sampler).ask()
        proposals.append(trial.suggest_float("lr", 0.0, 1.0))
    assert proposals[0] == proposals[1] != proposals[2]


@pytest.mark.parametrize("damage", ["changed", "removed", "swapped", "no JSON"])
def test_a_damaged_journal_is_named_with_its_line(tmp_path: Path, damage: str) -> None:
    journal = tmp_path / "study.journal"
    study, _ = open_journal(tmp_path)
    for _ in range(3):
        trial = study.ask()
        trial.set_user_attr("loss", 1.5)
        study.tell(trial, 0.5)
    lines = journal.read_text().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if '"loss":1.5' in line)
    damaged = {
        "changed": [lines[number].replace("1.5", "1.6")],
        "removed": [],
        "swapped": [lines[number + 1], lines[number]],
        "no JSON": ['{"loss":1.5]\n'],
    }[damage]
    rest = lines[number + (2 if damage == "swapped" else 1) :]
    journal.write_text("".join(lines[:number] + damaged + rest))
    for read in (read_trials, read_outlines):
        rule = rf"line {number + 1} of .*study\.journal is n.*; restore"
        with pytest.raises(InputError, match=rule):
            read(tmp_path)
    journal.write_text("".join(lines[:number]))  # as the message says
    assert len(read_trials(tmp_path)) == 1


def test_a_journal_is_read_from_any_line_and_again(folder: Path) -> None:
    journal = JournalFile(folder / "study.journal")
    logs = list(journal.read_logs(0))
    assert list(journal.read_logs(0)) == logs
    assert list(journal.read_logs(3)) == logs[3:]
    assert list(journal.read_logs(len(logs))) == []
    assert all("crc32" not in line for line in logs)


def test_lines_of_others_are_taken(folder: Path) -> None:
    """As optuna-dashboard writes a note, or as an older version wrote all."""
    open_journal(folder)[0].set_user_attr("ours", 1)
    other = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    optuna.load_study(study_name=folder.name, storage=other).set_user_attr("note", "good")
    study, _ = open_journal(folder)
    study.set_user_attr("ours", 2)
    attrs = open_journal(folder)[0].user_attrs
    assert attrs == study.user_attrs
    assert (attrs["ours"], attrs["note"]) == (2, "good")
