"""The main job, in order: open the study, search, train the champion, conclude.

The only place that wires the rooms together. What imports Ray, torch or plotly is imported where
it is needed: Ray reads its environment when it is imported, and while its processes import torch
and Tune, so does this one.
"""

import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_search.champions import Champions, champion_summary
from vgg_search.config import Config, ConfigError
from vgg_search.engine.environment import ray_environment
from vgg_search.machine import environment, user_environment
from vgg_search.provenance import provenance
from vgg_search.stop import StopSignals, told_if_killed
from vgg_search.storage.addresses import command, resume_command
from vgg_search.storage.checksums import read_cards, with_checksum
from vgg_search.storage.disk import disk_fault, disk_watched
from vgg_search.storage.folder import (
    CONFIG,
    LOG,
    SUMMARY,
    FolderInUseError,
    in_use,
    local_folder,
    replacing,
)
from vgg_search.storage.log import log_file
from vgg_search.storage.mirror import Checkpoints, Mirror
from vgg_search.storage.place import Place
from vgg_search.study.study import Study
from vgg_search.study.tables import (
    front_rows,
    none_completed,
    summarise,
    write_summary,
    write_tables,
)
from vgg_search.study.warm_start import DIGEST, KNOWN, knowledge
from vgg_search.terminal.progress import Progress, closing
from vgg_search.tracking.choice import Check, connect
from vgg_search.tracking.mlflow_adapter import ENVIRONMENT as MLFLOW_ENVIRONMENT
from vgg_search.tracking.recorder import PARENT, Recorder
from vgg_search.tracking.retention import Retention
from vgg_search.tracking.tracker import SEND_SECONDS, STOPPED_SECONDS, Tracker

if TYPE_CHECKING:
    from vgg_search.data.splits import Splits
    from vgg_search.engine.nodes import Cluster

FIRST_LOOK_SECONDS = 0.2  # at a tracker; a database in a file takes 0.02
LOOK_SECONDS = 0.5  # between two looks for a signal
TRACKER_SECONDS = 5.0  # before MLflow is imported, which would slow the start of the workers
KILLED = "the search was ended from outside, what it has recorded is kept"
log = logging.getLogger("vgg_search")


def run(
    config: Config, resume: bool = False, quiet: bool = False, in_python: bool = False
) -> tuple[int, dict[str, Any]]:
    """Search, train the champion, report: (exit code, summary).

    0 done, 1 the work failed or MLflow has not all of it, 128 + the signal that stopped it. With
    `in_python` nothing is left behind in the process, which goes on. Raises InputError before
    anything is written.
    """
    variables = ray_environment(config, in_python) | MLFLOW_ENVIRONMENT | user_environment()
    with environment(variables), StopSignals(in_python) as stop:
        summary = _run(config, resume, quiet, stop)
        return exit_code(summary, stop.received), summary


def _run(config: Config, resume: bool, quiet: bool, stop: StopSignals) -> dict[str, Any]:
    began, folder = time.monotonic(), run_folder(config, resume)
    check = Check(config.tracking_uri, config.experiment)
    config, splits = load_data(config)
    facts = study_facts(config, splits, folder)
    check.result(FIRST_LOOK_SECONDS)  # what is seen at once is said before Ray is started
    if sys.stderr.isatty() and not quiet:  # somebody waits; a mistake found later is one line
        print(f"study {folder.name}: starting Ray and its workers", file=sys.stderr)
    from vgg_search.engine.connection import ray_cluster
    from vgg_search.engine.nodes import Cluster

    with ExitStack() as stack:
        with ray_cluster(config):
            stop.install()
            cluster = Cluster(config, Place.of(config.storage_path, folder.name))
            slots = cluster.slots()
            check.result()
            stack.enter_context(disk_watched(folder, config.storage_path))
            claim(folder, config, resume)
            study = Study(folder, config, facts=facts)
            stack.callback(study.release)
            if not stop.in_python:
                again = resume_command(folder.name, config.storage_path)
                stack.enter_context(told_if_killed(f"vgg-search: {KILLED}: go on with {again}"))
            session = stack.enter_context(_session(study, splits, cluster.place, quiet, stop))
            stop.attach(study)
            session.open()
            session.began = began - session.seconds_before
            with session.progress, session.salvaged(slots):
                if not stop:
                    session.search(cluster)
                champions = session.train_champions(cluster)
        with session.salvaged(slots):
            summary = session.conclude(champions, slots, stop)
    if not (quiet and stop.in_python):
        print(closing(summary, folder, session.tracker.viewed_by, config.storage_path))
    return summary


@contextmanager
def _session(
    study: Study, splits: "Splits", place: Place, quiet: bool, stop: StopSignals
) -> Iterator["Session"]:
    """A session with its log, its tracker and its copies, whose threads end with it."""
    from vgg_search.models.files import servable

    folder, config = study.folder, study.config
    checkpoints = Mirror(folder, place) if place.remote else Checkpoints(folder)
    checkpoints.claim()
    with ExitStack() as stack:
        stack.callback(_last_copy, checkpoints, stop)
        write_config(folder, config)
        stack.enter_context(log_file(folder / LOG))
        for note in splits.notes:  # said before there was a log
            log.info(note)
        tracker = connect(folder, config.tracking_uri, config.experiment, folder.name, servable)
        stack.callback(tracker.close, 0.0)
        checkpoints.start()  # now that there is an outbox to copy
        yield Session(study, splits, tracker, provenance(), checkpoints, Progress(study, quiet))


def _last_copy(checkpoints: Checkpoints, stop: StopSignals) -> None:
    """Let a bucket have the end of the run folder; it may be away, so a signal ends the wait."""
    last_copy = threading.Thread(target=checkpoints.stop, daemon=True)
    last_copy.start()
    while last_copy.is_alive() and not stop:
        last_copy.join(LOOK_SECONDS)
    last_copy.join(STOPPED_SECONDS)


def run_folder(config: Config, resume: bool) -> Path:
    """The study's folder, on this machine. Raises ConfigError if a new study would take an old
    one's place, FolderInUseError if a driver works there."""
    path, name = config.storage_path, str(config.name)
    folder, place = local_folder(path, name), Place.of(path, name)
    if not resume and (folder.exists() or (place.remote and place.files())):
        raise _taken(config, folder if folder.exists() else place.root)
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(
            f"storage_path must be a folder that can be written to, got {folder.parent}"
        )
    read_cards(folder)  # of a resumed study; a damaged one is named
    if in_use(folder):  # before anything is started; opening the study makes sure of it
        raise FolderInUseError(folder)
    return folder


def _taken(config: Config, there: str | Path) -> ConfigError:
    again = resume_command(str(config.name), config.storage_path)
    return ConfigError(
        f"name must be a new study's, got {config.name!r}: {there} exists; go on with {again}"
    )


def claim(folder: Path, config: Config, resume: bool) -> None:
    """Make a new study's folder, unless another search has just made it. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=resume)
    except FileExistsError:
        raise _taken(config, folder) from None
    if resume:
        return
    try:
        write_config(folder, config)  # first of all: a folder without it could not be resumed
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write_config(folder: Path, config: Config) -> None:
    with replacing(folder / CONFIG) as file:
        file.write_text(with_checksum(config.dump()))


def load_data(config: Config) -> tuple[Config, "Splits"]:
    """The experiment with what its data settles, training and validation images; whether the test
    split can be read is known now too, and not after hours of search. Raises DataError."""
    from vgg_search.data.splits import check_test, load

    config, splits = load(config)
    if config.champion_epochs:
        check_test(splits.name, config.data_dir)
    return config, splits


def study_facts(config: Config, splits: "Splits", folder: Path) -> dict[str, Any]:
    """Attributes of the study: the data's digest, and what `warm_start` names. Raises
    ConfigError."""
    trials = knowledge(config, splits.digest, folder)
    return {DIGEST: splits.digest} | ({} if trials is None else {KNOWN: trials})


class Session:
    """One driver's work on a study: its record, its data, its tracker, and who watches."""

    def __init__(
        self,
        study: Study,
        splits: "Splits",
        tracker: Tracker,
        facts: dict[str, Any],
        checkpoints: Checkpoints | None = None,
        progress: Progress | None = None,
    ) -> None:
        """`facts` are versions, commit and host."""
        self.study, self.splits, self.tracker, self.facts = study, splits, tracker, facts
        self.checkpoints = checkpoints or Checkpoints(study.folder)
        self.retention = Retention(study, self.checkpoints, tracker)
        self.recorder = Recorder(tracker, study, splits, facts)
        self.progress = progress or Progress(study, quiet=True)
        study.listeners += [self.retention, self.recorder, self.progress]
        self.began = time.monotonic()

    @property
    def seconds_before(self) -> float:
        """What earlier sessions took; of one that was killed it is known how long it searched."""
        wall_seconds = None
        with suppress(FileNotFoundError, ValueError):  # there is none yet, or it is damaged
            wall_seconds = json.loads((self.study.folder / SUMMARY).read_text()).get("wall_seconds")
        return max(wall_seconds or 0.0, self.study.budget.clock)

    def open(self) -> None:
        """Take the study up where its record ends, and tell the tracker what it lacks."""
        self.tracker.start(after=TRACKER_SECONDS)
        self.recorder.start()
        self.retention.start()
        self.study.open()
        self.retention.catch_up()
        self.recorder.catch_up()

    def search(self, cluster: "Cluster") -> None:
        """Train until the study has finished, is stopped, or is out of budget."""
        from vgg_search.engine.search import run_search

        run_search(self.study, self.splits, cluster, self.progress.draw)

    def train_champions(self, cluster: "Cluster") -> list[dict[str, Any]]:
        """The champions' cards, by place; fewer than asked for if one failed."""
        self.recorder.interrupt()
        if not self.study.config.champion_epochs or self.study.ranking.incumbent is None:
            return []
        champions = Champions(self.study, self.recorder, self.progress)
        return champions.train(self.splits, cluster, self.facts)

    def conclude(
        self, champions: list[dict[str, Any]], slots: int, stop: StopSignals
    ) -> dict[str, Any]:
        """Write summary, tables and report, send what is left, and return the summary."""
        study, tracker, stopped = self.study, self.tracker, bool(stop)
        asked = study.config.champion_epochs > 0
        lacking = asked and not 0 < len(champions) == len(study.crowned())
        failed = not stopped and (study.ranking.incumbent is None or lacking)
        state = "interrupted" if stopped else "failed" if failed else "completed"
        self._send(stop)
        summary = self._write_summary(state, champions, slots)
        warnings = self._report(stopped)
        self.recorder.finish(state)
        self._send(stop)
        unsent = tracker.close(STOPPED_SECONDS if stop else 0.0)
        if unsent:
            log.warning(
                "%d rows have not reached MLflow (%s); they are kept: %s",
                unsent,
                tracker.error,
                command(f"vgg-search sync {study.folder.name}", study.config.storage_path),
            )
        if why_not := none_completed(study.optuna.get_trials(deepcopy=False)):
            summary["none_completed"] = why_not
        return summary | {"unsent": unsent, "refused": tracker.refused, "warnings": warnings}

    def _write_summary(
        self, state: str, champions: list[dict[str, Any]], slots: int
    ) -> dict[str, Any]:
        """Writes the tables too."""
        study = self.study
        trials = study.optuna.get_trials(deepcopy=False)
        told = [champion_summary(card, self.tracker) for card in champions]
        summary = {
            "study": study.folder.name,
            "state": state,
            "dataset": self.splits.name,
            "train_images": len(self.splits.train_images),
            "val_images": len(self.splits.val_images),
            "channels": self.splits.info.channels,
            "classes": len(self.splits.info.classes),
            **summarise(trials, slots, study.budget.clock),
            **({"front": front_rows(trials, study.ranking)} if study.ranking.several else {}),
            **({"converged": str(study.converged)} if study.converged else {}),
            "champion": told[0] if told else None,
            **({"more_champions": told[1:]} if told[1:] else {}),
            "refused": self.tracker.refused,
            "wall_seconds": round(time.monotonic() - self.began, 3),
            **self.facts,
            "seed": study.config.seed,
        }
        write_summary(study.folder, summary)
        write_tables(study.folder, trials)
        return summary

    @contextmanager
    def salvaged(self, slots: int) -> Iterator[None]:
        """Of a session that an error ends no run stays open; if it is its disk's, there is a
        summary: as far as that still takes anything."""
        try:
            yield
        except Exception as error:
            if fault := disk_fault(error, self.study.folder):
                with suppress(Exception):
                    self._write_summary("failed", [], slots)
            with suppress(Exception):
                self.recorder.abandon()
                self.tracker.flush(STOPPED_SECONDS if fault else SEND_SECONDS / 4)
            raise

    def _report(self, stopped: bool) -> list[str]:
        """What the report warns of; after a signal, without the figures that take seconds."""
        from vgg_search.report.page import make_report, warnings_of

        try:
            make_report(self.study.folder, pages=not stopped, hurry=stopped)
            return warnings_of(self.study.folder)
        except Exception as error:  # whatever it is, the study is whole, and its runs are closed
            log.error("no report: %s", " ".join(str(error).split()) or type(error).__name__)
            log.info("where it failed", exc_info=True)
            return []

    def _send(self, stop: StopSignals) -> None:
        """Wait until MLflow has all, no longer than it can be waited for, or until a signal."""
        began, tracker = time.monotonic(), self.tracker
        while not stop and tracker.flush(LOOK_SECONDS):
            answers = tracker.results(PARENT) and not tracker.error
            if time.monotonic() > began + (SEND_SECONDS if answers else SEND_SECONDS / 4):
                break


def exit_code(summary: dict[str, Any], signals: list[int]) -> int:
    """0 done, 1 the work failed or MLflow has not all of it, 128 + the signal that stopped it."""
    if signals:
        return 128 + signals[0]
    lacking = summary["unsent"] + summary["refused"]
    return int(summary["state"] != "completed" or lacking > 0)
