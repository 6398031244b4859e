"""The search on a real Ray: what a trial may ask for, segments on reused workers, and signals."""

import ast
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from fake_workers import SPACE, Workers, experiment, opened, row_at
from nodes import cluster_of
from ray import tune

from vgg_search.config import Config
from vgg_search.data.splits import Splits
from vgg_search.engine import silence
from vgg_search.engine.search import START_SECONDS, StudySearcher, StudyStopper, run_search
from vgg_search.errors import SearchError
from vgg_search.machine import cores
from vgg_search.space.candidate import Candidate
from vgg_search.study.record import read_trials, rows_of
from vgg_search.study.segment import Event, Segment
from vgg_search.study.study import FINISHED, Study

CORES = cores()
NO_CHECKPOINT = tune.CheckpointConfig(checkpoint_at_end=False)


def tiny(**fields: Any) -> Config:
    given = {"num_trials": 5, "max_epochs": 2, "batch_size": 64, "precision": "fp32"}
    return experiment(**given | {"space": SPACE | {"lr": [0.01, 0.2]}} | fields)


# ---- the search -------------------------------------------------------------------------------


@pytest.mark.usefixtures("cluster")
def test_segments_are_trained_on_workers_that_stay(tmp_path: Path, splits: Splits) -> None:
    folder, drawn, config = tmp_path / "s", [], tiny(scheduler="asha-promote")
    with opened(folder, config) as study:
        run_search(study, splits, cluster_of(study), lambda: drawn.append(1))
        assert study.finished
        assert not study.running
    assert drawn
    trials = read_trials(folder)
    assert len(trials) == 5
    assert all(trial.state.is_finished() for trial in trials)
    states = [trial.user_attrs["state"] for trial in trials]
    assert states.count("completed") >= 1
    rows = [row for trial in trials for row in rows_of(trial)]
    assert len({row["worker"] for row in rows}) <= CORES
    assert str(os.getpid()) not in {row["worker"].partition(":")[2] for row in rows}
    for trial in trials:
        assert [row["epoch"] for row in rows_of(trial)] == list(trial.intermediate_values)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.pt")}
    assert files == {f"trials/{number}/last.pt" for number in range(5)}  # nothing of Ray's here
    assert {path.name for path in folder.iterdir()} <= {"trials", "study.journal", ".driver.lock"}


@pytest.mark.usefixtures("cluster")
def test_tune_has_little_of_each_segment_to_remember(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps a dozen numbers of each number that a result has, until the search ends."""
    numbers: set[str] = set()

    class Listening(StudySearcher):
        def on_trial_complete(self, trial_id: str, *args: Any, **more: Any) -> None:
            result = more["result"]
            numbers.update(name for name, value in result.items() if isinstance(value, int | float))
            super().on_trial_complete(trial_id, *args, **more)

    monkeypatch.setattr("vgg_search.engine.search.StudySearcher", Listening)
    with opened(tmp_path / "s", tiny(num_trials=1)) as study:
        run_search(study, splits, cluster_of(study), lambda: None)
        assert study.finished
    assert numbers == {"done", "training_iteration"}


@pytest.mark.usefixtures("cluster")
def test_a_bad_trial_is_recorded_and_the_others_go_on(tmp_path: Path, splits: Splits) -> None:
    enqueue: list[dict[str, Any]] = [
        {"arch": ((1, 8),), "lr": 0.1, "hidden_features": 2**40},
        {"arch": ((1, 8),), "lr": 1e6},
        {"arch": ((1, 8),), "lr": 0.1, "hidden_features": 32},
    ]
    space = SPACE | {"lr": [0.01, 1e7], "hidden_features": {"choices": [32, 2**40]}}
    events: list[Event] = []
    config = tiny(num_trials=3, scheduler="none", space=space, enqueue=enqueue, max_concurrent=1)
    with opened(tmp_path / "s", config, [events.append]) as study:
        run_search(study, splits, cluster_of(study), lambda: None)
    trials = read_trials(tmp_path / "s")
    assert [t.user_attrs["state"] for t in trials] == ["failed", "diverged", "completed"]
    assert "can't allocate memory" in trials[0].user_attrs["error"]
    # Once more, alone on the device
    assert [event.kind for event in events if event.number == 0][-2:] == ["retried", "ended"]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_stopped_search_leaves_its_trials_to_a_resume(tmp_path: Path, splits: Splits) -> None:
    config = tiny(num_trials=1000, scheduler="none", max_epochs=1000, max_concurrent=1)
    with opened(tmp_path / "s", config) as study:

        def stop(event: Event) -> None:
            study.stopping = study.stopping or event.kind == "epoch"

        study.listeners.append(stop)
        run_search(study, splits, cluster_of(study), lambda: None)
        assert not study.finished
        assert study.unfinished
    assert not any(trial.state.is_finished() for trial in read_trials(tmp_path / "s"))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_stopped_worker_is_replaced(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP: the process is there, and Ray takes it for alive."""
    monkeypatch.setattr(silence, "LEAST_SECONDS", 20.0)  # more than a worker takes to start
    config = tiny(num_trials=2, scheduler="none", max_epochs=6, max_concurrent=1)
    stopped: list[str] = []
    events: list[Event] = []

    def stop_worker(event: Event) -> None:
        events.append(event)
        if event.kind == "epoch" and event.row["epoch"] == 2 and not stopped:
            stopped.append(event.row["worker"])
            os.kill(int(stopped[0].partition(":")[2]), signal.SIGSTOP)

    with opened(tmp_path / "s", config, [stop_worker]) as study:
        run_search(study, splits, cluster_of(study), lambda: None)
    assert [event.number for event in events if event.kind == "retried"] == [0]
    for trial in read_trials(tmp_path / "s"):
        assert trial.user_attrs["state"] == "completed"
        assert [row["epoch"] for row in rows_of(trial)] == [1, 2, 3, 4, 5, 6]
    assert rows_of(read_trials(tmp_path / "s")[0])[5]["worker"] != stopped[0]
    process = Path("/proc", stopped[0].partition(":")[2])
    until = time.monotonic() + 120  # Ray ends it in a time of its own
    while process.exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not process.exists()


@pytest.mark.usefixtures("cluster")
def test_a_search_without_budget_left_trains_nothing(tmp_path: Path, splits: Splits) -> None:
    with opened(tmp_path / "s", tiny(time_budget=5)) as study:
        study.budget._before = 5.0  # what a resumed study has used up
        run_search(study, splits, cluster_of(study), lambda: None)
        assert not study.finished
    assert not any(rows_of(trial) for trial in read_trials(tmp_path / "s"))


# ---- between Ray and the study, without Ray ---------------------------------------------------


def heard(row: dict[str, Any], worker: str = "node:1", **more: Any) -> dict[str, Any]:
    """A result with a row, as Ray hands it on."""
    return {"worker": worker, "rows": [row], "training_iteration": 1} | more


def rows(study: Study, count: int) -> list[dict[str, Any]]:
    """What a worker would report of trial 0."""
    return [row_at(study.running[0].candidate, epoch) for epoch in range(1, count + 1)]


def test_the_searcher_hands_segments_out_and_hears_every_row(tmp_path: Path) -> None:
    with opened(tmp_path / "s", experiment(num_trials=1, scheduler="none")) as study:
        searcher = StudySearcher(study, lambda: 2)
        config = searcher.suggest("ray-a")
        assert isinstance(config, dict)
        assert (config["segment"].number, config["segment"].until) == (0, 4)
        assert searcher.suggest("ray-b") is None  # one runs, and there are no more
        results = [heard(row) for row in rows(study, 4)]
        for result in results[:3]:
            searcher.on_trial_result("ray-a", result)
        searcher.on_trial_complete("ray-a", results[3] | {"end": "reached", "done": True})
        assert [row["epoch"] for row in study.rows(0)] == [1, 2, 3, 4]
        assert searcher.suggest("ray-b") == StudySearcher.FINISHED
        assert FINISHED == "finished"


@pytest.mark.usefixtures("cluster")
def test_a_row_comes_as_the_worker_gave_it() -> None:
    """Ray flattens dictionaries, and adds keys of its own, but not in a list."""
    results: list[dict[str, Any]] = []

    class Reporter(tune.Trainable):
        def step(self) -> dict[str, Any]:
            return {"worker": "w", "rows": [{"epoch": 1, "of": {"deep": 2}}], "end": "reached"}

    class Listener(StudySearcher):
        def on_trial_complete(self, trial_id: str, *args: Any, **result: Any) -> None:
            self.numbers.pop(trial_id)
            results.append(result["result"])

        def suggest(self, trial_id: str) -> Any:
            if results or self.numbers:
                return StudySearcher.FINISHED if results else None
            return self.numbers.setdefault(trial_id, 0) or {}

    searcher = Listener(None, lambda: 1)  # type: ignore[arg-type]
    stop = {"training_iteration": 1}
    run = tune.RunConfig(stop=stop, verbose=0, checkpoint_config=NO_CHECKPOINT)
    tune.Tuner(
        Reporter, tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1), run_config=run
    ).fit()
    assert results[0]["rows"] == [{"epoch": 1, "of": {"deep": 2}}]


@pytest.mark.parametrize(
    ("result", "error"),
    [(None, True), (None, False), ({"worker": "node:1"}, True)],
)
def test_a_worker_that_is_gone_is_a_death_and_not_a_failure(
    tmp_path: Path, result: dict[str, Any] | None, error: bool
) -> None:
    with opened(tmp_path / "s", experiment(num_trials=1, scheduler="none")) as study:
        searcher = StudySearcher(study, lambda: 2)
        searcher.suggest("ray-a")
        searcher.on_trial_complete("ray-a", result, error)
        again = searcher.suggest("ray-b")
        assert isinstance(again, dict)
        assert again["segment"].number == 0


def test_after_a_fault_the_study_is_told_and_asked_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of the last row fails: without it there is no completed trial."""
    with opened(tmp_path / "s", experiment(num_trials=2, scheduler="none")) as study:
        searcher = StudySearcher(study, lambda: 2)
        searcher.suggest("ray-a")
        results = [heard(row) for row in rows(study, 4)]
        for result in results[:3]:
            searcher.on_trial_result("ray-a", result)

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(study, "report", full)
        searcher.on_trial_complete("ray-a", results[3] | {"end": "reached"})
        assert isinstance(searcher.fault, OSError)
        assert study.stopping
        # Where nothing runs, Tune would ask again for ten minutes if it were told to wait
        assert searcher.suggest("ray-b") == StudySearcher.FINISHED
    (trial,) = read_trials(tmp_path / "s")
    assert not trial.state.is_finished()
    assert len(rows_of(trial)) == 3


def test_no_more_segments_than_slots_are_handed_out(tmp_path: Path) -> None:
    slots = [1]
    with opened(tmp_path / "s", experiment(num_trials=9)) as study:
        searcher = StudySearcher(study, lambda: slots[0])
        assert isinstance(searcher.suggest("ray-a"), dict)
        assert searcher.suggest("ray-b") is None
        slots[0] = 2  # a node has joined
        assert isinstance(searcher.suggest("ray-b"), dict)
        assert searcher.suggest("ray-c") is None
        slots[0] = 0  # all are gone: the next to come is waited for
        searcher.on_trial_complete("ray-a", error=True)
        assert searcher.suggest("ray-c") is None
        searcher.on_trial_complete("ray-b", error=True)
        assert isinstance(searcher.suggest("ray-c"), dict)


# ---- ends that wait for workers that start ------------------------------------------------------

CANDIDATE = Candidate(
    arch=((1, 8),),
    lr=0.1,
    weight_decay=0.0,
    batch_size=64,
    dropout=0.0,
    hidden_features=8,
    num_hidden=1,
    batch_norm=False,
)


class Proposals:
    """A study of so many trials, of which nothing is asked but that they are handed out."""

    config = experiment()

    def __init__(self, trials: int) -> None:
        self.left, self.running = list(range(trials)), 0

    def propose(self) -> Segment | str | None:
        if not self.left:
            return None if self.running else FINISHED
        self.running += 1
        return Segment(self.left.pop(0), CANDIDATE, seed=0, until=1, known=0, keep_above=0.0)

    def segment_ended(self, *_: Any) -> None:
        self.running -= 1


class Driver:
    """A searcher and its stopper, driven as Ray drives them, with a clock of its own."""

    def __init__(self, slots: int, monkeypatch: pytest.MonkeyPatch, trials: int = 50) -> None:
        self.slots, self.now, self.count = slots, 0.0, 0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.searcher = StudySearcher(Proposals(trials), lambda: self.slots)  # type: ignore[arg-type]
        self.stopper = StudyStopper(self.searcher)

    def hand_out(self) -> list[str]:
        """All segments that there are slots for; Ray's ids of them."""
        ids = []
        while isinstance(self.searcher.suggest(name := f"ray-{self.count}"), dict):
            self.count += 1
            ids.append(name)
        return ids

    def start(self, trial_id: str, worker: str) -> None:
        self.searcher.on_trial_result(trial_id, {"worker": worker, "actor": object()})

    def ends(self, trial_id: str, worker: str) -> bool:
        """Whether Ray would end the segment now; ends it if so."""
        end = {"worker": worker, "end": "reached"}
        if not self.stopper(trial_id, end):
            self.searcher.on_trial_result(trial_id, end)
            return False
        self.searcher.on_trial_complete(trial_id, end | {"done": True})
        return True


def test_no_segment_ends_while_a_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(2, monkeypatch)
    a, b = driver.hand_out()
    driver.start(a, "node:0")
    driver.now = START_SECONDS - 1
    assert not driver.ends(a, "node:0")
    assert not driver.stopper(b, {"worker": "node:1", "rows": []})  # no end
    driver.start(b, "node:1")
    assert driver.ends(a, "node:0")
    driver.hand_out()
    assert driver.ends(b, "node:1")  # the third segment has the first worker


def test_a_worker_that_never_starts_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(2, monkeypatch)
    a, _ = driver.hand_out()  # another job has the second's cores
    driver.start(a, "node:0")
    driver.now = START_SECONDS + 1
    for _ in range(3):
        assert driver.ends(a, "node:0")
        (a,) = driver.hand_out()
    driver.slots = 3  # a node has joined
    (c,) = driver.hand_out()
    assert not driver.ends(a, "node:0")
    driver.start(c, "node:2")
    assert not driver.ends(a, "node:0")  # the second is still expected, as another has come
    driver.now += START_SECONDS + 1
    assert driver.ends(a, "node:0")


def test_fewer_trials_than_slots_wait_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(8, monkeypatch, trials=1)
    (a,) = driver.hand_out()
    driver.start(a, "node:0")
    assert driver.ends(a, "node:0")


def two_at_work(monkeypatch: pytest.MonkeyPatch) -> tuple[Driver, str, str]:
    """A driver whose two workers have said that they are there; Ray's ids of their segments."""
    driver = Driver(2, monkeypatch)
    a, b = driver.hand_out()
    driver.start(a, "node:0")
    driver.start(b, "node:1")
    return driver, a, b


def test_a_dead_workers_successor_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, a, b = two_at_work(monkeypatch)
    driver.now = 1000.0
    driver.searcher.on_trial_complete(b, error=True)
    assert driver.ends(a, "node:0")  # one segment, one worker
    a, b = driver.hand_out()
    driver.start(b, "node:2")
    assert driver.ends(a, "node:0")


def test_the_successor_of_one_that_died_before_its_first_row_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver, a, b = two_at_work(monkeypatch)
    assert driver.ends(b, "node:1")
    (c,) = driver.hand_out()
    driver.searcher.on_trial_complete(c, error=True)  # killed for its memory in the first epoch
    assert driver.searcher.workers.keys() == {"node:0"}
    driver.hand_out()
    assert not driver.ends(a, "node:0")


def test_a_worker_that_dies_in_its_start_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(2, monkeypatch)
    a, b = driver.hand_out()
    driver.start(a, "node:0")
    driver.searcher.on_trial_complete(b, error=True)
    assert driver.ends(a, "node:0")


def test_idle_workers_that_ray_ends_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(3, monkeypatch, trials=3)
    ids = driver.hand_out()
    for i, trial_id in enumerate(ids):
        driver.start(trial_id, f"node:{i}")
    for i in (1, 2):
        assert driver.ends(ids[i], f"node:{i}")
        assert driver.hand_out() == []
    assert len(driver.searcher.workers) == 2  # one at work, one that Ray keeps


def test_workers_that_have_yet_to_report_are_not_taken_for_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the last segments of a search end START_SECONDS late."""
    driver = Driver(4, monkeypatch, trials=7)
    first, second = driver.hand_out(), []
    for i, trial_id in enumerate(first):
        driver.start(trial_id, f"node:{i}")
    for i, trial_id in enumerate(first):
        assert driver.ends(trial_id, f"node:{i}")
        second += driver.hand_out()
    assert len(second) == 3  # and the fourth worker is idle
    for i, trial_id in enumerate(second):
        assert driver.ends(trial_id, f"node:{i}")
    assert driver.searcher.suggest("ray-8") == StudySearcher.FINISHED


# ---- how it ends -----------------------------------------------------------------------------


def test_the_stopper_looks_at_the_study(tmp_path: Path) -> None:
    config = experiment(num_trials=1, gpu_hours=1 / 3600)
    with opened(tmp_path / "s", config) as study:
        stopper = StudyStopper(StudySearcher(study, lambda: 1))
        assert not stopper("any", {})
        assert not stopper.stop_all()
        Workers().run(study, turns=1)  # 2 s of a device
        assert stopper.stop_all()
    with opened(tmp_path / "t", experiment()) as study:
        study.stopping = True
        assert StudyStopper(StudySearcher(study, lambda: 1)).stop_all()


def test_a_search_whose_ray_has_lost_its_socket_ends(tmp_path: Path) -> None:
    socket = tmp_path / "raylet"
    socket.touch()
    with opened(tmp_path / "s", experiment(storage_path=str(tmp_path))) as study:
        searcher = StudySearcher(study, lambda: 1, socket)
        stopper = StudyStopper(searcher)
        assert not stopper.stop_all()
        socket.unlink()
        assert stopper.stop_all()
        line = f"raylet, which Ray needs, was removed: go on with .* --resume s .* {tmp_path}$"
        with pytest.raises(SearchError, match=line):
            raise searcher.fault or AssertionError


def test_nothing_of_ours_is_pickled_for_a_restore(tmp_path: Path) -> None:
    with opened(tmp_path / "s", experiment()) as study:
        searcher = StudySearcher(study, lambda: 2)
        for part in (searcher, StudyStopper(searcher)):
            assert type(ray.cloudpickle.loads(ray.cloudpickle.dumps(part))) is object


# ---- what of Ray is used ---------------------------------------------------------------------

FILES = sorted((Path(__file__).parents[2] / "vgg_search" / "engine").glob("*.py"))


def private_names(source: str) -> list[str]:
    """What a module takes of Ray that is not public: names with an underscore, in imports or after
    a dot of a module of Ray's, and assignments to attributes of one."""
    tree, ray_names, found = ast.parse(source), set(), []
    for node in ast.walk(tree):
        names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
        if isinstance(node, ast.Import):
            paths = [name for name in names if name.split(".")[0] == "ray"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray":
            paths = [f"{node.module}.{name}" for name in names]
        else:
            continue
        if paths:
            ray_names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        found += [path for path in paths if "._" in path]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            of_ray = text.split(".")[0] in ray_names
            if of_ray and ("._" in text or isinstance(node.ctx, ast.Store)):
                found.append(text)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_only_public_names_of_ray_are_used(file: Path) -> None:
    assert private_names(file.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from ray._private.state import state",
        "import ray\nray._private.state",
        "from ray import tune\ntune.tune.TuneController = None",
        "from ray.tune.execution.tune_controller import _ActorClassCache",
    ],
)
def test_private_names_are_seen(source: str) -> None:
    assert private_names(source)


# ---- silence ------------------------------------------------------------------------------------


class Listener:
    """Looks each second of a clock of its own, as Ray's loop does at least."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.silence = silence.Silence()

    def listen(self, seconds: int) -> set[str]:
        for _ in range(seconds):
            self.now += 1.0
            segments = self.silence.too_long()
        return segments


def epoch_of(seconds: float) -> list[Any]:
    return [{"epoch_seconds": seconds}]


def test_silence_is_judged_by_the_time_of_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Listener(monkeypatch)
    driver.silence.began("small", flops=100)
    driver.silence.began("large", flops=1000)
    assert driver.listen(3600) == set()  # nothing is known yet
    driver.silence.heard("small", epoch_of(12.0))
    driver.silence.heard("large", epoch_of(20.0))  # quicker by the FLOP
    assert driver.listen(120) == set()
    assert driver.listen(1) == {"small"}  # ten of its epochs
    assert driver.listen(1200 - 121) == {"small"}
    assert driver.listen(1) == {"small", "large"}
    driver.silence.ended("small")
    driver.silence.heard("large", [])
    assert driver.listen(1200) == set()


def test_short_epochs_do_not_make_it_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Listener(monkeypatch)
    driver.silence.began("a", flops=100)
    driver.silence.heard("a", epoch_of(0.01))
    assert driver.listen(60) == set()
    assert driver.listen(1) == {"a"}


def test_a_driver_that_was_stopped_itself_blames_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Listener(monkeypatch)
    driver.silence.began("a", flops=100)
    driver.silence.heard("a", epoch_of(0.01))
    driver.now = 7200.0  # a closed laptop
    assert driver.listen(1) == set()


def test_the_worker_of_a_segment_that_said_nothing_is_one_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver, killed = Driver(2, monkeypatch), []
    monkeypatch.setattr(ray, "kill", killed.append)
    a, b = driver.hand_out()
    handles = {}
    for trial_id, worker in ((a, "node:0"), (b, "node:1")):
        handles[worker] = object()
        driver.searcher.on_trial_result(trial_id, {"worker": worker, "actor": handles[worker]})
    driver.searcher.silence.heard(a, epoch_of(1.0))
    assert driver.ends(b, "node:1")
    (c,) = driver.hand_out()  # on the second worker, which is stopped
    for _ in range(100):
        driver.now += 1.0
        driver.searcher.on_trial_result(a, {"worker": "node:0"})
        driver.searcher.end_silent_workers()
    assert killed == [handles["node:1"]]
    driver.searcher.on_trial_complete(c, error=True)


def test_a_segment_that_waits_for_a_worker_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another job has the second slot: the one worker is well, and gets it next."""
    driver, killed = Driver(2, monkeypatch), []
    monkeypatch.setattr(ray, "kill", killed.append)
    a, _ = driver.hand_out()
    driver.start(a, "node:0")
    driver.searcher.silence.heard(a, epoch_of(1.0))
    for _ in range(100):
        driver.now += 1.0
        driver.searcher.on_trial_result(a, {"worker": "node:0"})
        driver.searcher.end_silent_workers()
    assert driver.ends(a, "node:0")
    driver.searcher.end_silent_workers()  # before the worker has said what it trains now
    assert killed == []
