"""What a study's events become in MLflow (a real one, on SQLite), and which checkpoints stay."""

import itertools
import math
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_workers import SPACE, Fault, Workers, experiment, value_at, write_checkpoint

from vgg_search.config import Config
from vgg_search.data.bundled import SOURCE
from vgg_search.data.splits import Splits
from vgg_search.models.files import servable
from vgg_search.records import EPOCH_METRICS
from vgg_search.storage.checksums import read_cards
from vgg_search.storage.folder import champion_folder
from vgg_search.storage.mirror import Checkpoints
from vgg_search.study.segment import Event
from vgg_search.study.study import Study
from vgg_search.tracking.recorder import PARENT, Recorder, champion_key, run_key
from vgg_search.tracking.retention import Retention
from vgg_search.tracking.sender import MlflowTracker

pytestmark = [  # MLflow's own
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*type hint is inferred as AnyType:UserWarning"),
]
FACTS = {"versions": {"torch": "2"}, "commit": "abc", "host": "here"}
COUNT = itertools.count()


def trials(*lrs: float) -> list[dict[str, Any]]:
    return [{"arch": ((1, 8), (2, 16)), "lr": lr} for lr in lrs]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests: MLflow takes seconds to make one."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


class Session:
    """One driver's life with a study: opened, recorded, and what of it MLflow has at the end."""

    def __init__(self, folder: Path, config: Config, uri: str, splits: Splits) -> None:
        folder.mkdir(exist_ok=True)
        self.study = Study(folder, config)
        self.tracker = MlflowTracker(folder, uri, config.experiment, folder.name, servable)
        self.recorder = Recorder(self.tracker, self.study, splits, FACTS)
        self.retention = Retention(self.study, Checkpoints(folder), self.tracker)
        self.study.listeners += [self._checkpoint, self.retention, self.recorder]
        self.recorder.start()
        self.retention.start()
        self.study.open()
        self.retention.catch_up()
        self.recorder.catch_up()

    def _checkpoint(self, event: Event) -> None:
        if event.kind == "epoch":
            write_checkpoint(self.study.folder, event.number)

    def send(self) -> dict[str, Any]:
        """MLflow's runs by our keys, once all is sent."""
        self.tracker.start()
        return self.sent()

    def sent(self) -> dict[str, Any]:
        """The same, of a tracker that was started."""
        from mlflow import MlflowClient

        assert self.tracker.close(60) == 0, self.tracker.error
        assert self.tracker.refused == 0
        self.client = MlflowClient(self.tracker.uri)
        found = self.client.get_experiment_by_name(self.study.config.experiment)
        runs = self.client.search_runs([found.experiment_id])
        own = f"{self.tracker.id}/"
        keys = [run.data.tags["vgg_search.key"].removeprefix(own) for run in runs]
        assert len(set(keys)) == len(keys)
        return dict(zip(keys, runs, strict=True))

    def send_own(self) -> dict[str, Any]:
        """The same without the runs of another outbox of the study, whose keys begin with its
        id."""
        runs = self.send().items()
        return {key: run for key, run in runs if not re.match(r"[0-9a-f]{12}/", key)}

    def points(self, run: Any, name: str) -> dict[int, float]:
        history = self.client.get_metric_history(run.info.run_id, name)
        assert len({point.step for point in history}) == len(history)
        return {point.step: point.value for point in history}

    def with_best(self, runs: dict[str, Any]) -> list[str]:
        """Runs that have a best checkpoint."""
        return sorted(
            key for key, run in runs.items() if self.client.list_artifacts(run.info.run_id, "best")
        )

    def on_disk(self) -> dict[str, list[str]]:
        folders = (self.study.folder / "trials").iterdir()
        return {path.name: sorted(file.name for file in path.iterdir()) for path in folders}


Open = Callable[..., Any]


@pytest.fixture
def session(tmp_path: Path, uri: str, splits: Splits) -> Open:
    name = f"e{next(COUNT)}"

    @contextmanager
    def opened(**fields: Any) -> Iterator[Session]:
        config = experiment(experiment=name, **fields)
        folder = tmp_path / "s"
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(config.dump())
        made = Session(folder, config, uri, splits)
        try:
            yield made
        finally:
            made.tracker.close(0)
            made.study.release()

    return opened


def test_a_trial_is_a_run_with_its_rows(session: Open) -> None:
    baseline = ((1, 8), (2, 16))
    with session(num_trials=1, baseline=baseline) as opened:
        Workers().run(opened.study)
        opened.recorder.finish("completed")
        runs = opened.send()
        lr = opened.study.optuna.trials[0].params["lr"]
        (run, parent) = (runs["trial/0"], runs[PARENT])
        assert run.info.run_name == "0 1x8-2x16"
        assert run.info.status == parent.info.status == "FINISHED"
        assert (
            run.data.tags.items()
            >= {
                "kind": "trial",
                "trial_number": "0",
                "state": "completed",
                "dataset": "sample",
                "baseline": "True",
                "mlflow.parentRunId": parent.info.run_id,
            }.items()
        )
        params = {"arch": "1x8-2x16", "depth": "3", "width": "16", "num_blocks": "2"}
        params |= {"num_convs_1": "1", "out_channels_1": "8", "num_convs_2": "2"}
        params |= {"out_channels_2": "16", "lr": str(lr), "batch_size": "128"}
        assert run.data.params.items() >= params.items()
        assert {"num_params", "flops_per_image"} <= run.data.params.keys()
        points = opened.points(run, "val_accuracy")
        assert points == pytest.approx({epoch: value_at(lr, epoch) for epoch in (1, 2, 3, 4)})
        last = {"best_val_accuracy": value_at(lr, 4), "best_epoch": 4, "peak_memory_mib": 10}
        assert run.data.metrics.keys() == {*EPOCH_METRICS, *last}
        assert {name: run.data.metrics[name] for name in last} == pytest.approx(last)
        assert parent.data.tags.items() >= {"kind": "study", "commit": "abc"}.items()
        assert parent.data.tags["mlflow.source.name"] == "python -m vgg_search.run"
        assert parent.data.tags["mlflow.source.type"] == "LOCAL"
        assert parent.data.tags["mlflow.note.content"].startswith("A search of 1 VGG-style")
        assert parent.data.params["num_trials"] == "1"
        assert opened.points(parent, "best_val_accuracy") == pytest.approx({1: value_at(lr, 4)})
        (data,) = parent.inputs.dataset_inputs
        assert data.dataset.digest == opened.recorder.digest
        files = {file.path for file in opened.client.list_artifacts(parent.info.run_id)}
        assert files == {"config.yaml", "study.journal"}


def test_a_password_is_not_shown_around(session: Open) -> None:
    with session(num_trials=1, tracking_uri="postgresql://me:secret@host/db") as opened:
        parent = opened.send()[PARENT]
        assert parent.data.params["tracking_uri"] == "postgresql://***@host/db"
        config = opened.client.download_artifacts(parent.info.run_id, "config.yaml")
        assert "tracking_uri: postgresql://me@host/db" in Path(config).read_text()
        assert "secret" not in Path(config).read_text()


def test_each_end_has_its_status(session: Open) -> None:
    faults = {1: Fault("failed"), 2: Fault("diverged", epoch=2), 3: Fault("died", times=1)}
    with session(num_trials=5, enqueue=trials(0.5, 0.4, 0.3, 0.9, 0.1)) as opened:
        Workers(faults=faults).run(opened.study)
        runs = opened.send()
        ends = {key: (run.info.status, run.data.tags["state"]) for key, run in runs.items()}
        assert ends == {
            PARENT: ("RUNNING", "running"),
            "trial/0": ("FINISHED", "completed"),
            "trial/1": ("FAILED", "failed"),
            "trial/2": ("FINISHED", "pruned"),
            "trial/3": ("FINISHED", "completed"),
            "trial/4": ("FINISHED", "pruned"),
        }
        assert runs["trial/1"].data.tags["error"].endswith("RuntimeError: failed")
        assert "best_epoch" not in runs["trial/1"].data.metrics


def test_a_diverged_trial_keeps_no_checkpoint(session: Open) -> None:
    faults = {0: Fault("diverged", epoch=2)}
    with session(num_trials=1, scheduler="none", enqueue=trials(0.5)) as opened:
        Workers(faults=faults).run(opened.study)
        runs = opened.send()
        run = runs["trial/0"]
        assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "diverged")
        assert run.data.tags["non_finite"] == "train_loss, val_loss at step 2"
        assert all(math.isfinite(value) for value in run.data.metrics.values())
        assert opened.with_best(runs) == []
        assert opened.on_disk() == {}


def test_only_the_top_k_keep_their_best_checkpoint(session: Open) -> None:
    enqueue = trials(0.5, 0.9, 0.1, 0.7)
    with session(num_trials=4, scheduler="none", top_k=2, enqueue=enqueue) as opened:
        Workers().run(opened.study)
        assert opened.with_best(opened.send()) == ["trial/1", "trial/3"]
        assert opened.on_disk() == {"1": ["best"], "3": ["best"]}


def test_what_was_sent_is_taken_back_when_a_better_trial_comes_after_a_resume(
    session: Open,
) -> None:
    given = {"scheduler": "none", "top_k": 2, "enqueue": trials(0.5, 0.4, 0.9)}
    with session(num_trials=2, **given) as opened:
        Workers().run(opened.study)
        assert opened.with_best(opened.send()) == ["trial/0", "trial/1"]
    with session(num_trials=3, **given) as opened:
        assert opened.retention.kept == {0, 1}
        Workers().run(opened.study)
        assert opened.with_best(opened.send()) == ["trial/0", "trial/2"]
        assert opened.on_disk() == {"0": ["best"], "2": ["best"]}


def test_a_stopped_search_closes_its_runs_and_a_resume_opens_them(session: Open) -> None:
    given = {"num_trials": 2, "scheduler": "none", "enqueue": trials(0.5, 0.9)}
    workers = Workers()
    with session(**given) as opened:
        workers.run(opened.study, turns=6)
        opened.study.stopping = True  # as a signal does
        opened.recorder.interrupt()
        opened.recorder.finish("interrupted")
        runs = opened.send()
        ends = {key: (run.info.status, run.data.tags["state"]) for key, run in runs.items()}
        assert ends == {
            PARENT: ("KILLED", "interrupted"),
            "trial/0": ("FINISHED", "completed"),
            "trial/1": ("KILLED", "interrupted"),
        }
    with session(**given) as opened:
        workers.run(opened.study)
        opened.recorder.finish("completed")
        runs = opened.send()
        assert {(run.info.status, run.data.tags["state"]) for run in runs.values()} == {
            ("FINISHED", "completed")
        }
        assert list(opened.points(runs["trial/1"], "val_accuracy")) == [1, 2, 3, 4]


def test_proposals_that_need_no_training_are_counted_over_all_sessions(session: Open) -> None:
    enqueue = trials(0.5, 0.5, 0.4, 0.5, 0.3)
    with session(num_trials=2, scheduler="none", enqueue=enqueue) as opened:
        Workers().run(opened.study)
        assert opened.send()[PARENT].data.tags["duplicate_proposals"] == "1"
    with session(num_trials=3, scheduler="none", enqueue=enqueue) as opened:
        Workers().run(opened.study)
        runs = opened.send()
        tags = runs[PARENT].data.tags
        assert (tags["duplicate_proposals"], tags["infeasible_proposals"]) == ("2", "0")
        assert runs.keys() == {PARENT, "trial/0", "trial/2", "trial/4"}


@pytest.mark.parametrize("silent", [1, 2, 4, 5])
def test_what_a_killed_driver_had_recorded_but_not_put_is_put(session: Open, silent: int) -> None:
    """The driver puts nothing more from its `silent`th turn on, and is gone after its fifth."""
    given = {"num_trials": 2, "scheduler": "none", "enqueue": trials(0.5, 0.9)}
    workers = Workers()
    with session(**given) as opened:

        def killed(event: Event) -> None:
            row = event.row or {}
            if (event.number, row.get("epoch")) == (0, silent):
                opened.study.listeners.remove(opened.recorder)
                opened.study.listeners.remove(opened.retention)

        opened.study.listeners.insert(0, killed)
        workers.run(opened.study, turns=4)  # trial 0 to its end
    with session(**given) as opened:
        workers.run(opened.study)
        runs = opened.send()
        for number in (0, 1):
            run = runs[run_key(number)]
            assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "completed")
            assert list(opened.points(run, "val_accuracy")) == [1, 2, 3, 4]
            assert run.data.metrics["best_epoch"] == 4
        assert opened.with_best(runs) == ["trial/0", "trial/1"]
        assert opened.on_disk() == {"0": ["best"], "1": ["best"]}


@pytest.mark.parametrize("share", [0, 0.3, 0.6])
@pytest.mark.parametrize("given", [{}, {"enqueue": trials(0.5, 0.9)}], ids=["sampled", "enqueued"])
def test_a_record_that_is_behind_the_outbox_is_gone_on_from(
    session: Open, tmp_path: Path, given: dict[str, Any], share: float
) -> None:
    """Both were copied while the search went on, the record first."""
    given = given | {"num_trials": 2, "scheduler": "none"}
    journal = tmp_path / "s" / "study.journal"
    with session(**given) as opened:
        begun = journal.read_bytes().splitlines(keepends=True)
        workers = Workers()
        workers.run(opened.study, turns=6)
    whole = journal.read_bytes().splitlines(keepends=True)
    kept = len(begun) + int(share * (len(whole) - len(begun)))
    journal.write_bytes(b"".join(whole[:kept]))
    with session(**given) as opened:
        assert {"trial/1"} <= set(opened.tracker.open_runs)
        workers.run(opened.study)
        opened.recorder.finish("completed")
        runs = opened.send()
        assert runs.keys() == {PARENT, "trial/0", "trial/1"}
        for run in runs.values():
            assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "completed")
        for number in (0, 1):
            assert list(opened.points(runs[run_key(number)], "val_accuracy")) == [1, 2, 3, 4]


def test_the_run_of_a_trial_that_the_record_lost_is_closed_where_its_number_is_not_trained(
    session: Open, tmp_path: Path
) -> None:
    """A power failure took trial 1 out of the record; what is proposed instead is too large."""
    given = {"num_trials": 2, "scheduler": "none", "enqueue": trials(0.5)}
    journal = tmp_path / "s" / "study.journal"
    with session(**given) as opened:
        workers = Workers()
        workers.run(opened.study, turns=4)  # trial 0 to its end
        before = journal.read_bytes()
        workers.run(opened.study, turns=1)
    journal.write_bytes(before)
    with session(**given, space=SPACE | {"max_params": 1}) as opened:
        assert opened.tracker.open_runs == [PARENT, "trial/1"]
        workers.run(opened.study)
        opened.recorder.finish("completed")
        runs = opened.send()
        ends = {key: (run.info.status, run.data.tags["state"]) for key, run in runs.items()}
        assert ends == {
            PARENT: ("FINISHED", "completed"),
            "trial/0": ("FINISHED", "completed"),
            "trial/1": ("KILLED", "interrupted"),
        }


def test_trials_that_wait_and_are_promoted(session: Open) -> None:
    given = {"scheduler": "asha-promote", "enqueue": trials(0.5, 0.9)}
    with session(num_trials=2, **given) as opened:
        workers = Workers()
        workers.run(opened.study, turns=1)
        assert opened.tracker.flush(0) > 0
        tags = [item for row in opened.tracker.rows() for item in row.body if row.kind == "batch"]
        assert ["tag", "state", "waiting", None] in tags
        workers.run(opened.study)
        opened.study.close()
        runs = opened.send()
        assert runs["trial/0"].data.tags["state"] == "pruned"
        assert runs["trial/1"].data.tags["state"] == "completed"


def test_what_only_the_budget_cut_short_has_not_failed(session: Open) -> None:
    given = {"num_trials": 2, "scheduler": "none", "enqueue": trials(0.5, 0.9)}
    workers = Workers()
    with session(**given) as opened:
        workers.run(opened.study, turns=6)
        opened.recorder.interrupt()
        run = opened.send()["trial/1"]
        assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "interrupted")
    with session(**given) as opened:  # with more budget
        workers.run(opened.study)
        run = opened.send()["trial/1"]
        assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "completed")


def test_the_champions_run(session: Open) -> None:
    row = dict.fromkeys(EPOCH_METRICS[:2] + EPOCH_METRICS[4:], 0.5)
    with session(num_trials=1, scheduler="none", enqueue=trials(0.5)) as opened:
        Workers().run(opened.study)
        best = opened.study.optuna.trials[0]
        opened.recorder.champion_started(best, 2)
        for epoch in (1, 2, 1):  # a worker died, another began anew
            opened.recorder.champion_row(row | {"epoch": epoch})
        opened.recorder.champion_lost("interrupted")
        runs = opened.send()
        run = runs[champion_key(0, 2)]
        assert run.info.run_name == "champion 1x8-2x16"
        assert (run.info.status, run.data.tags["state"]) == ("KILLED", "interrupted")
        assert (run.data.tags["kind"], run.data.tags["trial_number"]) == ("champion", "0")
        assert opened.points(run, "train_loss") == {1: 0.5, 2: 0.5}
        assert run.data.params["lr"] == "0.5"
        assert run.data.tags["mlflow.parentRunId"] == runs[PARENT].info.run_id


def crowned(
    opened: Session, number: int, val_accuracy: float, epochs: int = 2, place: int = 1
) -> None:
    """Trial `number`'s champion as `crown` leaves it, told or not."""
    from vgg_search.models.files import save_model
    from vgg_search.training.model import build

    network = build({"arch": ((1, 4),), "hidden_features": 8, "resolution": 28}, number)
    metrics = dict.fromkeys(("val_accuracy", "test_accuracy", "test_loss"), val_accuracy)
    metrics |= dict.fromkeys(("test_accuracy_mean", "test_accuracy_std"))
    card = {"trial": number, "epochs": epochs, "dataset": "sample", "metrics": metrics}
    card |= {"place": place} if place > 1 else {}
    save_model(champion_folder(opened.study.folder, place), network, SOURCE.info, card)


def begun(opened: Session, number: int, epochs: int = 2, rows: int = 2) -> None:
    opened.recorder.champion_started(opened.study.optuna.trials[number], epochs)
    for epoch in range(1, rows + 1):
        row = {"train_loss": float(number), "train_accuracy": 0.5, "lr": 0.1}
        opened.recorder.champion_row(row | {"epoch": epoch})


def told(opened: Session) -> None:
    for card in read_cards(opened.study.folder):
        opened.recorder.champion_ended(card)


def searched(opened: Session, champion: int, val_accuracy: float) -> None:
    """All of the search, and the champion of that trial."""
    Workers().run(opened.study)
    begun(opened, champion)
    crowned(opened, champion, val_accuracy)
    told(opened)


def test_a_better_trial_of_a_resumed_study_has_a_champion_of_its_own(session: Open) -> None:
    given = {"scheduler": "none", "enqueue": trials(0.5, 0.9)}
    with session(num_trials=1, **given) as opened:
        searched(opened, champion=0, val_accuracy=0.5)
        opened.send()
    with session(num_trials=2, **given) as opened:
        searched(opened, champion=1, val_accuracy=0.9)
        runs = opened.send()
        first, second = (runs[champion_key(number, 2)] for number in (0, 1))
        assert opened.points(first, "train_loss") == {1: 0.0, 2: 0.0}
        assert opened.points(second, "train_loss") == {1: 1.0, 2: 1.0}
        answers = [opened.tracker.results(champion_key(number, 2)) for number in (0, 1)]
        assert answers[0]["run_id"] == first.info.run_id
        assert answers[1]["run_id"] == second.info.run_id
        assert int(answers[1]["version"]) == int(answers[0]["version"]) + 1
        assert answers[1]["alias_moved"]


def test_the_front_is_marked_and_of_several_champions_the_first_has_the_alias(
    session: Open,
) -> None:
    enqueued = [{"arch": ((1, n),), "lr": lr} for n, lr in ((8, 0.5), (16, 0.9), (32, 0.4))]
    given = {"scheduler": "none", "enqueue": enqueued, "champions": 2}
    with session(num_trials=3, objectives=("val_accuracy", "num_params"), **given) as opened:
        Workers().run(opened.study)
        assert opened.study.crowned() == [1, 0]
        for place, number in enumerate((0, 1), 1):  # the first is the less accurate one
            begun(opened, number)
            crowned(opened, number, 0.5 + number / 10, place=place)
        told(opened)
        opened.recorder.finish("completed")
        runs = opened.send()
        marks = {n: runs[run_key(n)].data.tags["on_front"] for n in range(3)}
        assert marks == {0: "True", 1: "True", 2: "False"}
        first, second = (opened.tracker.results(champion_key(n, 2)) for n in (0, 1))
        assert "champion 2" not in first["alias_text"]
        assert not second["alias_moved"]
        assert "it is champion 2 of its study" in second["alias_text"]


def test_a_champion_of_a_killed_driver_is_told_if_whole_else_closed(session: Open) -> None:
    given = {"scheduler": "none", "enqueue": trials(0.5, 0.9)}
    with session(num_trials=1, **given) as opened:
        Workers().run(opened.study)
        begun(opened, 0, epochs=3, rows=1)  # killed in its training
    with session(num_trials=2, **given) as opened:
        Workers().run(opened.study)
        begun(opened, 1)
        crowned(opened, 1, 0.9)  # killed before it was told
    with session(num_trials=2, **given) as opened:
        runs = opened.send()
        lost, whole = runs[champion_key(0, 3)], runs[champion_key(1, 2)]
        assert (lost.info.status, lost.data.tags["state"]) == ("KILLED", "interrupted")
        assert (whole.info.status, whole.data.tags["state"]) == ("FINISHED", "completed")
        assert opened.points(lost, "train_loss") == {1: 0.0}
        assert "model_uri" in opened.tracker.results(champion_key(1, 2))


def test_a_champion_whose_folder_another_took_is_not_registered_as_it(session: Open) -> None:
    with session(num_trials=2, scheduler="none", enqueue=trials(0.5, 0.9)) as opened:
        Workers().run(opened.study)
        for number, value in ((0, 0.5), (1, 0.9)):  # both while the tracker was away
            begun(opened, number)
            crowned(opened, number, value)
            told(opened)
        opened.tracker.start()
        assert opened.tracker.close(60) == 0
        assert opened.tracker.refused == 1
        assert "model_uri" not in opened.tracker.results(champion_key(0, 2))
        assert "model_uri" in opened.tracker.results(champion_key(1, 2))


def test_a_checkpoint_kept_but_not_put_when_the_driver_was_killed_is_put(
    session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"num_trials": 2, "scheduler": "none", "top_k": 1, "enqueue": trials(0.5, 0.9)}
    workers = Workers()
    with session(**given) as opened:

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(opened.tracker, "artifact", killed)
        with pytest.raises(KeyboardInterrupt):
            workers.run(opened.study)
        assert opened.on_disk() == {"0": ["best"]}
    with session(**given) as opened:
        assert opened.with_best(opened.send()) == ["trial/0"]
    with session(**given) as opened:
        workers.run(opened.study)
        assert opened.with_best(opened.send()) == ["trial/1"]
        assert opened.on_disk() == {"1": ["best"]}


def test_the_champions_scores_are_all_in_mlflow(session: Open) -> None:
    """The names are written out: with the constant that the recorder has, none could be missed."""
    with session(num_trials=1, scheduler="none", enqueue=trials(0.5)) as opened:
        Workers().run(opened.study)
        begun(opened, 0)
        crowned(opened, 0, 0.5)
        [card] = read_cards(opened.study.folder)
        scores = {"val_accuracy": 0.5, "test_accuracy": 0.625, "test_loss": 1.25}
        scores |= {"test_accuracy_mean": 0.75, "test_accuracy_std": 0.125}
        card = card | {"metrics": scores}
        opened.recorder.champion_ended(card)
        run = opened.send()[champion_key(0, 2)]
        own = {name: run.data.metrics[name] for name in scores}
        assert own == scores


def test_every_metric_of_an_epoch_is_in_mlflow(session: Open) -> None:
    with session(num_trials=1, scheduler="none", enqueue=trials(0.5)) as opened:
        Workers().run(opened.study)
        run = opened.send()["trial/0"]
        names = {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"}
        names |= {"epoch_seconds", "images_per_second"}
        names |= {"best_val_accuracy", "best_epoch", "peak_memory_mib"}
        assert run.data.metrics.keys() == names
        for name in names - {"best_val_accuracy", "best_epoch", "peak_memory_mib"}:
            assert opened.points(run, name).keys() == {1, 2, 3, 4}


def test_each_epoch_is_put_once(session: Open) -> None:
    """What is put twice is one point to MLflow, so that only the outbox can tell."""
    with session(num_trials=2, scheduler="none", enqueue=trials(0.5, 0.9)) as opened:
        Workers().run(opened.study)
        items = [
            (row.run, sort, name, step)
            for row in opened.tracker.rows()
            if row.kind == "batch"
            for sort, name, _, step in row.body
        ]
        values = [item for item in items if item[1:3] == ("metric", "val_accuracy")]
        epochs = [(f"trial/{n}", "metric", "val_accuracy", e) for n in (0, 1) for e in (1, 2, 3, 4)]
        assert sorted(values) == epochs
        ends = [row.run for row in opened.tracker.rows() if row.kind == "end"]
        assert sorted(ends) == ["trial/0", "trial/1"]


@pytest.mark.parametrize("lost", ["all", "some"])
def test_an_outbox_that_is_behind_the_record_gets_what_it_lacks(
    session: Open, tmp_path: Path, lost: str
) -> None:
    """As after a power failure. Trials that wait, of a study that has no more to train, are not
    promoted: that ends them before anything is trained."""
    given = {"enqueue": trials(0.5, 0.9, 0.7, 0.6, 0.4), "scheduler": "asha-promote"}
    with session(num_trials=9, **given) as opened:
        workers = Workers()
        workers.run(opened.study, turns=3)
        before = (tmp_path / "s" / "outbox.db").read_bytes()
        log = (tmp_path / "s" / "outbox.db-wal").read_bytes()
        workers.run(opened.study, turns=8)
        assert any(trial.state.is_finished() for trial in opened.study.optuna.trials)
        begun = range(opened.study.trained)
    for file in (tmp_path / "s").glob("outbox.db*"):
        file.unlink()
    if lost == "some":
        (tmp_path / "s" / "outbox.db").write_bytes(before)
        (tmp_path / "s" / "outbox.db-wal").write_bytes(log)
    with session(num_trials=len(begun), **given) as opened:
        rows = opened.tracker.rows()
        ended = {row.run for row in rows if row.kind == "end"}
        put = {
            (row.run, item[3])
            for row in rows
            if row.kind == "batch"
            for item in row.body
            if item[1] == "val_accuracy"
        }
        recorded = {(f"trial/{n}", row["epoch"]) for n in begun for row in opened.study.rows(n)}
        assert len(ended) > 1
        assert put == recorded


@pytest.mark.parametrize("removed", [False, True])
def test_of_a_session_that_an_error_ends_no_run_stays_open(
    session: Open, tmp_path: Path, removed: bool
) -> None:
    """Where the run folder is gone too, of which nothing can be resumed."""
    given = {"scheduler": "none", "enqueue": trials(0.5, 0.9, 0.7), "num_trials": 3}
    with session(**given) as opened:
        workers = Workers()
        workers.run(opened.study, turns=2)
        begun(opened, 0)
        unfinished = [run_key(number) for number in opened.study.unfinished]
        assert unfinished
        opened.tracker.start()
        opened.tracker.flush(60)
        if removed:
            shutil.rmtree(tmp_path / "s")
            with pytest.raises(FileNotFoundError):
                opened.study.optuna.get_trials()
        opened.recorder.abandon()
        runs = opened.sent()
        assert "RUNNING" not in {run.info.status for run in runs.values()}
        assert {runs[key].data.tags["state"] for key in unfinished} == {"interrupted"}
        assert runs[PARENT].data.tags["state"] == "failed"
    if removed:
        return
    with session(**given) as opened:
        Workers().run(opened.study)
        opened.recorder.finish("completed")
        runs = opened.send()
        assert {runs[run_key(number)].info.status for number in range(3)} == {"FINISHED"}
        assert runs[PARENT].data.tags["state"] == "completed"


def test_a_study_whose_outbox_was_removed_is_put_anew(
    session: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"scheduler": "none", "enqueue": trials(0.5, 0.9, 0.7), "top_k": 1}
    with session(num_trials=2, **given) as opened:
        searched(opened, champion=1, val_accuracy=0.9)
        before = opened.send()
    for file in (tmp_path / "s").glob("outbox.db*"):
        file.unlink()
    with session(num_trials=3, **given) as opened:
        assert "the outbox has no run; 2 trials of the record are put anew" in caplog.text
        Workers().run(opened.study)
        runs = opened.send_own()
        assert runs.keys() == before.keys() | {"trial/2"}
        for key in ("trial/0", "trial/1"):
            assert runs[key].info.run_id != before[key].info.run_id
            assert runs[key].data.metrics == pytest.approx(before[key].data.metrics)
            assert runs[key].info.status == "FINISHED"
        assert opened.with_best(runs) == ["trial/1"]
        assert "model_uri" in opened.tracker.results(champion_key(1, 2))
