"""The main job's parts: what it refuses, what it tells of itself, how it ends."""

import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from fake_workers import Workers, experiment, opened
from nodes import cluster_of

from vgg_search import session
from vgg_search.config import ConfigError
from vgg_search.data.bundled import SOURCE
from vgg_search.data.fashion_mnist import find_split
from vgg_search.data.splits import Splits
from vgg_search.machine import cores
from vgg_search.models.files import save_model, servable
from vgg_search.provenance import PACKAGES, provenance
from vgg_search.session import Session, claim, exit_code, run_folder
from vgg_search.stop import StopSignals
from vgg_search.storage.folder import champion_folder
from vgg_search.storage.log import log_file
from vgg_search.study.study import Study
from vgg_search.tracking.sender import MlflowTracker
from vgg_search.training.model import build


def test_a_new_study_does_not_take_an_old_ones_place(tmp_path: Path) -> None:
    config = experiment(name="mine", storage_path=str(tmp_path / "runs"))
    assert run_folder(config, resume=False) == tmp_path / "runs" / "mine"
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    text = (
        r"^name must be a new study's, got 'mine': .*/mine exists; go on with "
        r"python -m vgg_search.run --resume mine --storage-path .*/runs$"
    )
    with pytest.raises(ConfigError, match=text):
        run_folder(config, resume=False)
    assert run_folder(config, resume=True) == tmp_path / "runs" / "mine"


def test_the_test_split_is_looked_for_before_anything_is_trained(tmp_path: Path) -> None:
    folder = find_split(Path(os.environ.get("VGG_SEARCH_DATA_DIR", "nowhere")), "train")
    if folder is None:
        pytest.skip("no Fashion-MNIST on this machine")
    (tmp_path / "data").mkdir()
    for file in folder.glob("train-*"):
        (tmp_path / "data" / file.name).symlink_to(file.resolve())
    given = {"storage_path": str(tmp_path / "runs"), "data_dir": tmp_path / "data"}
    with pytest.raises(ValueError, match=r"^data_dir must hold t10k-images"):
        session.run(experiment(name="mine", **given), quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_refusal_comes_before_anything_is_written(tmp_path: Path) -> None:
    config = experiment(
        name="mine", storage_path=str(tmp_path / "runs"), dataset="fashion-mnist", data_dir=tmp_path
    )
    with pytest.raises(ValueError, match=r"^data_dir must hold train-images"):
        session.run(config, quiet=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("state", "unsent", "refused", "signals", "code"),
    [
        ("completed", 0, 0, [], 0),
        ("completed", 3, 0, [], 1),
        ("completed", 0, 1, [], 1),
        ("failed", 0, 0, [], 1),
        ("interrupted", 0, 0, [2], 130),
        ("interrupted", 9, 0, [15], 143),
        ("interrupted", 0, 2, [2, 15], 130),
    ],
)
def test_exit_codes(state: str, unsent: int, refused: int, signals: list[int], code: int) -> None:
    assert exit_code({"state": state, "unsent": unsent, "refused": refused}, signals) == code


def test_provenance_names_versions_commit_and_host(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = provenance()
    assert facts["versions"].keys() == {"python", *PACKAGES}
    assert facts["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert f"{cores()} cores" in facts["host"]
    json.dumps(facts)
    monkeypatch.setenv("PATH", "")  # a machine without git
    assert provenance()["commit"] is None


def test_the_log_takes_what_the_package_says_while_it_is_open(tmp_path: Path) -> None:
    logger = logging.getLogger("vgg_search")
    before = logger.level, list(logger.handlers)
    with log_file(tmp_path / "log.txt"):
        logging.getLogger("vgg_search.progress").info("trial 0: %s", "started")
    assert (logger.level, logger.handlers) == before
    logging.getLogger("vgg_search.progress").info("trial 1: %s", "started")
    assert (tmp_path / "log.txt").read_text().endswith(" INFO trial 0: started\n")


def test_a_folder_is_claimed_by_one_search(tmp_path: Path) -> None:
    config = experiment(name="mine", storage_path=str(tmp_path))
    claim(tmp_path / "mine", config, resume=False)
    before = (tmp_path / "mine" / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"^name must be a new study's, got 'mine': .* exists"):
        claim(tmp_path / "mine", experiment(name="mine", seed=1), resume=False)
    assert (tmp_path / "mine" / "config.yaml").read_text() == before


def test_of_searches_that_claim_a_name_at_once_one_has_it(tmp_path: Path) -> None:
    together = Barrier(4)

    def claims(place: Path, seed: int) -> bool:
        together.wait()
        try:
            claim(place, experiment(name="mine", seed=seed, storage_path=str(tmp_path)), False)
        except ConfigError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        for number in range(20):
            place = tmp_path / str(number) / "mine"
            won = list(pool.map(claims, [place] * 4, range(4)))
            assert sum(won) == 1
            assert f"seed: {won.index(True)}\n" in (place / "config.yaml").read_text()


def test_a_password_is_not_kept(tmp_path: Path) -> None:
    """The outbox keeps the address without it too, and takes it from the environment again."""
    uri = "postgresql://me:hush@host/db"
    claim(tmp_path / "mine", experiment(name="mine", tracking_uri=uri), resume=False)
    text = (tmp_path / "mine" / "config.yaml").read_text()
    assert "hush" not in text
    assert "tracking_uri: postgresql://me@host/db" in text


# ---- the champion of a study that is gone on with ----------------------------------------------


class Part:
    """A study whose search is over, with a recorder that has nobody to send to."""

    def __init__(self, study: Study, splits: Splits) -> None:
        folder = study.folder
        self.tracker = MlflowTracker(folder, f"sqlite:///{folder / 'm.db'}", "e", "s", servable)
        facts = {"versions": {}, "commit": "abc"}
        self.session = Session(study, splits, self.tracker, facts)
        self.study, self.recorder = study, self.session.recorder
        self.recorder.start()

    def crown(self) -> dict[str, Any] | None:
        cards = self.session.train_champions(cluster_of(self.study))
        return cards[0] if cards else None

    def conclude(
        self, champion: dict[str, Any] | None, signals: StopSignals | None = None
    ) -> dict[str, Any]:
        """After 100 s. The config is there, as `run` leaves it, and nothing is sent."""
        (self.study.folder / "config.yaml").write_text(self.study.config.dump())
        self.session.began = time.monotonic() - 100
        return self.session.conclude([champion] if champion else [], 1, signals or StopSignals())

    def ended(self) -> list[str]:
        """How the parent's run ended."""
        return [status for kind, status in self.put("study") if kind == "end"]

    def put(self, key: str = "champion/0-1") -> list[tuple[str, str]]:
        """(kind, status) of what was put for a champion's run, batches apart."""
        rows = self.tracker.rows()
        return [
            (row.kind, row.body.get("status", ""))
            for row in rows
            if row.run == key and row.kind != "batch"
        ]


@pytest.fixture
def part(
    tmp_path: Path,
    splits: Splits,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Part]:
    monkeypatch.setattr(session, "SEND_SECONDS", 0.0)
    given = {"num_trials": 1, "scheduler": "none", "champion_epochs": 1, "batch_size": 64}
    given |= {"enqueue": [{"arch": ((1, 8),), "lr": 0.05}], "precision": "fp32"}
    given |= {"dataset": "sample"} | getattr(request, "param", {})
    with opened(tmp_path / "s", experiment(**given)) as study:
        made = Part(study, splits)
        Workers().run(study)
        yield made


@pytest.mark.usefixtures("cluster")
def test_the_champion_is_recorded_once_and_kept(part: Part) -> None:
    card = part.crown()
    assert card
    assert part.put() == [("run", ""), ("dataset", ""), ("register", ""), ("end", "FINISHED")]
    assert json.loads(json.dumps(card)).items() <= (part.crown() or {}).items()
    assert len(part.put()) == 4  # the same best trial: not trained, tested or told again
    # Killed between writing the champion and putting it: it is still registered.
    part.recorder.champion_started(part.study.optuna.trials[0], 1)
    assert "champion/0-1" in part.tracker.open_runs
    part.recorder.catch_up()
    assert part.put()[-2:] == [("register", ""), ("end", "FINISHED")]
    assert "champion/0-1" not in part.tracker.open_runs


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    "part",
    [{"space": {"hidden_features": 2**40, "num_blocks": 1, "out_channels": 8, "lr": [0.01, 1]}}],
    indirect=True,
)
def test_a_champion_that_fails_is_said_and_recorded(
    part: Part, caplog: pytest.LogCaptureFixture
) -> None:
    assert part.crown() is None
    assert part.put()[-1] == ("end", "FAILED")
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert line.startswith("the champion failed: ")
    assert "\n" not in line


@pytest.mark.usefixtures("cluster")
def test_whatever_is_wrong_with_the_champion_the_study_is_concluded(
    part: Part, caplog: pytest.LogCaptureFixture
) -> None:
    (part.study.folder / "worst.png").mkdir()  # where its worst images are to go
    assert part.crown() is None
    assert part.put()[-1] == ("end", "FAILED")
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert line.startswith("the champion failed: ")
    summary = part.conclude(None)
    assert summary["state"] == "failed"
    assert part.ended() == ["FAILED"]
    files = {"summary.json", "trials.csv", "epochs.csv", "report.html"}
    assert files <= {path.name for path in part.study.folder.iterdir()}


@pytest.mark.parametrize("part", [{"champion_epochs": 0}], indirect=True)
def test_a_report_that_fails_leaves_no_run_open(
    part: Part, caplog: pytest.LogCaptureFixture
) -> None:
    (part.study.folder / "report.html").mkdir()
    assert part.conclude(None)["state"] == "completed"
    assert part.ended() == ["FINISHED"]
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert line.startswith("no report: ")


@pytest.mark.parametrize("part", [{"champion_epochs": 0}], indirect=True)
def test_a_stopped_study_is_closed_without_what_takes_seconds(part: Part) -> None:
    signals = StopSignals()
    signals.received.append(15)
    assert part.conclude(None, signals)["state"] == "interrupted"
    assert part.ended() == ["KILLED"]
    assert "the study was stopped" in (part.study.folder / "report.html").read_text()
    assert not (part.study.folder / "plots").exists()


@pytest.mark.parametrize("part", [{"champion_epochs": 0}], indirect=True)
def test_the_time_of_earlier_sessions_is_counted(part: Part) -> None:
    assert part.session.seconds_before == part.study.budget.clock  # of one that was killed
    wall = part.conclude(None)["wall_seconds"]
    assert wall >= 100
    assert part.session.seconds_before == wall


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("part", [{"champion_epochs": 1000}], indirect=True)
def test_a_champion_that_is_stopped_is_closed(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    listen = part.recorder.champion_row

    def stop(row: dict[str, Any]) -> None:
        listen(row)
        part.study.stopping = True

    monkeypatch.setattr(part.recorder, "champion_row", stop)
    assert part.crown() is None
    assert part.put("champion/0-1000")[-1] == ("end", "KILLED")


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("part", [{"champion_epochs": 0}], indirect=True)
def test_no_champion_is_trained_where_none_is_asked_for(part: Part) -> None:
    assert part.crown() is None
    assert part.put() == []


@pytest.mark.usefixtures("cluster")
def test_no_champion_is_trained_once_the_study_is_stopped(part: Part) -> None:
    part.study.stopping = True
    assert part.crown() is None
    assert part.put() == []


def crowned(folder: Path, number: int, place: int = 1) -> None:
    """A champion of trial `number`, as an earlier session left it."""
    network = build({"arch": ((1, 4),), "hidden_features": 8, "resolution": 28}, number)
    metrics = {"val_accuracy": 0.5, "test_accuracy": 0.4, "test_loss": 1.0}
    card = {"trial": number, "epochs": 1, "num_params": network.num_params, "metrics": metrics}
    card |= {"place": place} if place > 1 else {}
    save_model(champion_folder(folder, place), network, SOURCE.info, card)


TWO = {"num_trials": 2, "champions": 2}
TWO |= {"enqueue": [{"arch": ((1, 8),), "lr": lr} for lr in (0.05, 0.5)]}


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("part", [TWO], indirect=True)
@pytest.mark.parametrize(
    ("there", "told"),
    [
        ([1, 0], [1, 0]),
        ([1], [1]),
        ([0, 1], [1, 0]),  # each at the other's place
        ([7, 8], []),  # both of other trials by now
    ],
)
def test_a_stopped_study_keeps_the_champions_that_it_has(
    part: Part, there: list[int], told: list[int]
) -> None:
    """Those that are still its best trials'."""
    assert part.study.crowned() == [1, 0]
    for place, number in enumerate(there, 1):
        crowned(part.study.folder, number, place)
    part.study.stopping = True
    signals = StopSignals()
    signals.received.append(15)
    cards = part.session.train_champions(cluster_of(part.study))
    (part.study.folder / "config.yaml").write_text(part.study.config.dump())
    summary = part.session.conclude(cards, 1, signals)
    written = json.loads((part.study.folder / "summary.json").read_text())
    for said in (summary, written):
        assert said["state"] == "interrupted"
        champions = [said["champion"], *said.get("more_champions", [])]
        assert [card["trial"] for card in champions if card] == told
    assert not [key for key in part.tracker.keys if key.startswith("champion/")]
