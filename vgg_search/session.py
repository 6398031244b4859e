"""The main job, in order: open the study, search, crown, conclude."""

import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_search.cli.arguments import load_config
from vgg_search.config import Config, ConfigError
from vgg_search.records import EpochRow
from vgg_search.signals import Signals
from vgg_search.storage.addresses import resume_command as to_resume
from vgg_search.storage.folder import CHAMPION, CONFIG, LOG, SUMMARY, local_folder
from vgg_search.storage.place import Place

if TYPE_CHECKING:
    from vgg_search.data.splits import Splits
    from vgg_search.engine.nodes import Cluster
    from vgg_search.study.study import Study
    from vgg_search.terminal.progress import Progress
    from vgg_search.tracking.recorder import Recorder

# Set before Ray is imported. The record, the terminal and the signals are ours, so Ray keeps its
# own out of the way; and under `uv run` it is not to build an environment for each worker.
RAY_ENVIRONMENT = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    # Workers are started side by side: `StudySearcher` sees to it that there are not too many
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",
    # Ray's processes import a trial's needs at once, and are not ended when a placement group takes
    # their cores: together 3 s less until the first trial (with `search._PlainActors`)
    "RAY_preload_python_modules": "torch,ray.tune,vgg_search.engine.worker",
    "RAY_idle_worker_killing_time_threshold_ms": "30000",
    # A waiting thread sleeps: two that spin train at a tenth of one's speed on a busy machine
    "OMP_WAIT_POLICY": "PASSIVE",
}
PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "numpy")
log = logging.getLogger("vgg_search")


def run(argv: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Read the experiment, search, crown, report. Returns (exit code, summary)."""
    config, options = load_config(argv)
    if options.dry_run:
        from vgg_search.dry_run import forecast

        return 0, forecast(config)
    with Signals() as signals:
        return search_and_crown(config, options.resume is not None, options.quiet, signals)


def search_and_crown(
    config: Config, resume: bool, quiet: bool, signals: Signals
) -> tuple[int, dict[str, Any]]:
    """The main job, in order."""
    began, folder = time.monotonic(), run_folder(config, resume)
    # Late: these import Ray and Optuna, and a mistake in a flag is to be answered at once.
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vgg_search.data.splits import USING_SAMPLE, check_test, load_splits
    from vgg_search.engine.connection import ray_cluster
    from vgg_search.engine.nodes import Cluster
    from vgg_search.storage.folder import in_use
    from vgg_search.storage.mirror import Checkpoints, Mirror
    from vgg_search.study.study import Study
    from vgg_search.study.warm_start import DIGEST, KNOWN, knowledge
    from vgg_search.terminal.progress import Progress, closing
    from vgg_search.tracking.connect import connect
    from vgg_search.tracking.mlflow_adapter import default_uri
    from vgg_search.tracking.recorder import Recorder
    from vgg_search.tracking.retention import Retention

    if in_use(folder):  # before anything is started; opening the study makes sure of it
        raise ConfigError(f"study {folder.name} is in use by a running search")
    splits = load_splits(config.dataset, config.data_dir, config.val_images, config.train_images)
    if config.champion_epochs:
        check_test(splits.name, config.data_dir)
    known = knowledge(config, splits.digest, folder)
    facts = {DIGEST: splits.digest} | ({} if known is None else {KNOWN: known})
    if sys.stderr.isatty() and not quiet:  # somebody waits; a mistake found later is one line
        print(f"study {folder.name}: starting Ray and its workers", file=sys.stderr)
    with ray_cluster(config):
        signals.take()
        cluster = Cluster(config, Place.of(config.storage_path, folder.name))
        slots = cluster.places()
        # While Ray's processes import torch and Tune, so do we.
        from vgg_search.engine.search import run_search
        from vgg_search.models.reuse import servable

        folder.mkdir(parents=True, exist_ok=True)
        if not resume:  # first of all: a folder without it could not be resumed
            (folder / CONFIG).write_text(config.dump())
        study = Study(folder, config, facts=facts)
        remote = cluster.place.remote
        checkpoints = Mirror(folder, cluster.place) if remote else Checkpoints(folder)
        checkpoints.start()
        (folder / CONFIG).write_text(config.dump())
        write_log(folder / LOG)
        if splits.name == "sample":  # said before there was a log
            log.info(USING_SAMPLE)
        uri = config.tracking_uri or default_uri()
        tracker = connect(folder, uri, config.experiment, folder.name, servable)
        recorder = Recorder(tracker, study, splits, provenance())
        retention = Retention(study, checkpoints, tracker)
        progress = Progress(study, quiet)
        study.listeners += [retention, recorder, progress]
        signals.stop(study)
        tracker.start(after=5.0)  # until the workers stand, its import would be in their way
        recorder.start()
        study.open()
        retention.catch_up()
        recorder.catch_up()
        began -= spent(study)
        with progress:
            if not signals:
                run_search(study, splits, cluster, progress.draw)
            recorder.interrupt()
            champion = crown_best(study, splits, cluster, recorder, progress)
    from vgg_search.conclusion import LOOK_SECONDS, STOPPED_SECONDS, conclude, exit_code

    summary = conclude(study, splits, recorder, champion, slots, signals, began)
    study.release()
    last_copy = threading.Thread(target=checkpoints.stop, daemon=True)  # a bucket may be away
    last_copy.start()
    while last_copy.is_alive() and not signals:
        last_copy.join(LOOK_SECONDS)
    last_copy.join(STOPPED_SECONDS)
    print(closing(summary, folder, uri, config.storage_path))
    return exit_code(summary, signals.received), summary


def spent(study: "Study") -> float:
    """Seconds that a study had taken before it was gone on with; of a session that was killed it is
    known how long it searched."""
    file = study.folder / SUMMARY
    told = json.loads(file.read_text()).get("wall_seconds") if file.exists() else 0.0
    return max(told or 0.0, study.budget.clock)


def run_folder(config: Config, resume: bool) -> Path:
    """The study's folder, on this machine. Raises ConfigError if a new study would take an old
    one's place."""
    path, name = config.storage_path, str(config.name)
    folder, place = local_folder(path, name), Place.of(path, name)
    if not resume and (folder.exists() or (place.remote and place.files())):
        raise ConfigError(
            f"name must be a new study's, got {config.name!r}: "
            f"{folder if folder.exists() else place.root} exists; "
            f"go on with {to_resume(name, path)}"
        )
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(
            f"storage_path must be a folder that can be written to, got {folder.parent}"
        )
    return folder


def write_log(file: Path) -> None:
    """Everything that this package says goes to `file` too, with its time."""
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("vgg_search")
    logger.setLevel(logging.INFO)
    logger.handlers = [handler]


def provenance() -> dict[str, Any]:
    """What made the numbers: versions, commit (of this code, where it is a checkout) and host."""
    import torch

    ask, here = "git describe --always --dirty --abbrev=12".split(), Path(__file__).parent
    commit = ""
    if (here.parent / ".git").exists() and shutil.which("git"):
        asked = subprocess.run(ask, cwd=here, capture_output=True, text=True, check=False)
        commit = asked.stdout.strip()
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "commit": commit or None,
        "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
    }


def crown_best(
    study: "Study",
    splits: "Splits",
    cluster: "Cluster",
    recorder: "Recorder",
    progress: "Progress",
) -> dict[str, Any] | None:
    """The champion's card; None where none is asked for, nothing was completed, we are stopped, or
    it failed, of which one line is said.

    A resumed study whose best trial is still the same keeps the champion it has: the test split is
    not read again.
    """
    from vgg_search.engine.champion import crown, planned_epochs
    from vgg_search.storage.folder import read_card

    config, folder = study.config, study.folder / CHAMPION
    if study.stopping or study.ranking.incumbent is None or config.champion_epochs == 0:
        return None
    best = study.optuna.get_trials(deepcopy=False)[study.ranking.incumbent[1]]
    card = read_card(study.folder)
    if card and card["trial"] == best.number:
        return card
    recorder.champion_started(best, planned_epochs(best, config, splits))
    progress.announce(f"champion: trial {best.number}'s network, anew on all training images")

    def listen(seed: int, epochs: int, row: EpochRow) -> None:
        progress.champion(seed, epochs, row)
        if seed == 0:
            recorder.champion_row(row)

    try:
        card = crown(study, best, splits, cluster, recorder.facts, listen)
    except Exception as error:  # whatever it is, what the search has found is to be told
        reason = str(error).strip() or type(error).__name__
        log.error("the champion failed: %s", reason.splitlines()[-1])
        log.info("where it failed", exc_info=True)
        recorder.champion_lost("failed")
        return None
    if card:
        recorder.champion_ended(card, folder)
    else:
        recorder.champion_lost("interrupted")
    return card
