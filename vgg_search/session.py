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
from vgg_search.engine.connection import RAY_ENVIRONMENT, ray_cluster
from vgg_search.signals import Signals
from vgg_search.storage.hints import resume as to_resume
from vgg_search.storage.place import Place, local_folder

if TYPE_CHECKING:
    from vgg_search.data.splits import Splits
    from vgg_search.engine.nodes import Cluster
    from vgg_search.study.study import Study
    from vgg_search.terminal.progress import Progress
    from vgg_search.tracking.recorder import Recorder

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
    from vgg_search.engine.nodes import Cluster
    from vgg_search.storage.mirror import Mirror, Shelf
    from vgg_search.study.study import Study
    from vgg_search.study.warm_start import DIGEST, KNOWN, knowledge
    from vgg_search.terminal.progress import Progress, closing
    from vgg_search.terminal.status import in_use
    from vgg_search.tracking.recorder import Recorder
    from vgg_search.tracking.sender import Tracker, default_uri

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
        slots = cluster.slots()
        # While Ray's processes import torch and Tune, so do we.
        from vgg_search.engine.search import run_search
        from vgg_search.models.reuse import servable

        folder.mkdir(parents=True, exist_ok=True)
        if not resume:  # first of all: a folder without it could not be resumed
            (folder / "config.yaml").write_text(config.dump())
        study = Study(folder, config, facts=facts)
        shelf = Mirror(folder, cluster.place) if cluster.place.remote else Shelf(folder)
        shelf.start()
        (folder / "config.yaml").write_text(config.dump())
        write_log(folder / "log.txt")
        if splits.name == "sample":  # said before there was a log
            log.info(USING_SAMPLE)
        uri = config.tracking_uri or default_uri()
        tracker = Tracker(folder, uri, config.experiment, folder.name, servable)
        recorder = Recorder(tracker, study, splits, provenance(), shelf)
        progress = Progress(study, quiet)
        study.listeners += [recorder, progress]
        signals.stop(study)
        tracker.start(after=5.0)  # until the workers stand, its import would be in their way
        recorder.start()
        study.open()
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
    last_copy = threading.Thread(target=shelf.stop, daemon=True)  # a bucket may be away
    last_copy.start()
    while last_copy.is_alive() and not signals:
        last_copy.join(LOOK_SECONDS)
    last_copy.join(STOPPED_SECONDS)
    print(closing(summary, folder, uri, config.storage_path))
    return exit_code(summary, signals.received), summary


def spent(study: "Study") -> float:
    """Seconds that a study had taken before it was gone on with; of a session that was killed it is
    known how long it searched."""
    file = study.folder / "summary.json"
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
    from vgg_search.engine.champion import planned_epochs, train_champion
    from vgg_search.tracking.recorder import read_card

    config, folder = study.config, study.folder / "champion"
    if study.stopping or study.ranking.incumbent is None or config.champion_epochs == 0:
        return None
    best = study.optuna.get_trials(deepcopy=False)[study.ranking.incumbent[1]]
    card = read_card(study.folder)
    if card and card["trial"] == best.number:
        return card
    recorder.champion_started(best, planned_epochs(best, config, splits))
    progress.announce(f"champion: trial {best.number}'s network, anew on all training images")

    def listen(seed: int, epochs: int, row: dict[str, Any]) -> None:
        progress.champion(seed, epochs, row)
        if seed == 0:
            recorder.champion_row(row)

    try:
        card = train_champion(study, best, splits, cluster, recorder.facts, listen)
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
