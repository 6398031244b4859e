"""What a user does next with a damaged study, as commands beside the program's own: `resume`
without Ray, `load` of a data set from the cache; and what a tracker and an outbox have then."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from vgg_search import session
from vgg_search.champions import Champions
from vgg_search.cli.arguments import load_config, resumed_config
from vgg_search.cli.commands import Result
from vgg_search.config import Config
from vgg_search.data.splits import Splits, load_splits
from vgg_search.engine.worker import TrialWorker
from vgg_search.provenance import provenance
from vgg_search.records import BEST_METRIC
from vgg_search.storage.folder import CHAMPION, OUTBOX
from vgg_search.storage.place import Place
from vgg_search.study.record import rows_of
from vgg_search.study.segment import Segment
from vgg_search.study.study import Study
from vgg_search.terminal.progress import Progress
from vgg_search.tracking.outbox import Outbox

# What no two trainings, or no two places share
OTHERS = ("epoch_seconds", "images_per_second", "peak_memory_mib", "tracking_uri")
OTHERS += ("now.tracking_uri",)  # where a log is lost that had another tracker
FACTS = provenance()  # once: the commit of a working tree changes as it is edited
MEASURED = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")


def resume(argv: Sequence[str]) -> Result:
    """a study gone on with to its end, as a session does it, by a worker in this process"""
    changes, options = load_config(["--resume", *argv])
    stored, _ = resumed_config(changes, options.resume)
    folder = session.run_folder(stored, resume=True)
    config, splits = session.load_data(stored)
    study = Study(folder, config, facts=session.study_facts(config, splits, folder))
    try:
        tracker = Outbox(folder, str(config.tracking_uri), config.experiment, folder.name)
        ours = session.Session(study, splits, tracker, FACTS)
        ours.open()
        for segment in iter(study.propose, "finished"):
            assert isinstance(segment, Segment)
            for row in _rows(config, splits, folder, segment):
                study.report(segment.number, row)
            study.segment_ended(segment.number)
        cards = []
        if (folder / CHAMPION).exists():  # to train one takes Ray
            champions = Champions(study, ours.recorder, Progress(study, quiet=True))
            cards = champions.train(splits, None, {})  # type: ignore[arg-type]
        trials = study.optuna.get_trials(deepcopy=False)
    finally:
        study.release()
    rows = [[{name: row[name] for name in MEASURED} for row in rows_of(t)] for t in trials]  # type: ignore[literal-required]
    states = [trial.user_attrs.get("state") for trial in trials]
    return Result({"states": states, "rows": rows, "told": told(tracker), "champions": cards})


def _rows(
    config: Config, splits: Splits, folder: Path, segment: Segment
) -> Iterator[dict[str, Any]]:
    worker = TrialWorker.__new__(TrialWorker)  # Ray's constructor makes folders at home
    worker.setup({"segment": segment}, splits, config, Place(str(folder.absolute())))
    result: dict[str, Any] = {}
    while "end" not in result:
        result = worker.step()
        yield from result.get("rows", [])
    assert result["end"] == "reached", result


def told(outbox: Outbox) -> dict[str, Any]:
    """What an outbox of which nothing was sent has of each run: the last of each name and step. Of
    the best so far, the last: one that is put anew does not have how it came to be."""
    runs: dict[str, Any] = {}
    for row in outbox.rows():
        run = runs.setdefault(row.run, {})
        if row.kind == "batch":
            items = ((f"{sort} {name} {step}", value) for sort, name, value, step in row.body)
            run |= {key: value for key, value in items if key.split()[1] not in OTHERS}
            best = [key for key in run if key.startswith(f"metric {BEST_METRIC} ")]
            for key in best[:-1]:
                del run[key]
        else:
            run[row.kind] = row.body
    return runs


def load(argv: Sequence[str]) -> Result:
    """the images of a folder, out of the cache if they are there"""
    splits = load_splits(str(Path(argv[0]).resolve()), val_images=4)
    arrays = (splits.train_images, splits.train_labels, splits.val_images, splits.val_labels)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    return Result({"images": digest, "digest": splits.digest, "info": repr(splits.info)})


OWN = {"resume": resume, "load": load}


def tracker_of(database: Path) -> dict[str, Any]:
    """What MLflow has of each run, by its name."""
    client = MlflowClient(f"sqlite:///{database}")
    (experiment,) = client.search_experiments(filter_string="name = 'vgg-search'")
    runs: dict[str, Any] = {}
    for run in client.search_runs([experiment.experiment_id], max_results=1000):
        points = {
            f"{name} {point.step}": (point.value, point.timestamp)
            for name in run.data.metrics
            for point in client.get_metric_history(run.info.run_id, name)
        }
        tags = {k: v for k, v in run.data.tags.items() if "mlflow" not in k}
        files = [file.path for file in client.list_artifacts(run.info.run_id)]
        assert run.info.run_name not in runs
        told = {"points": points, "tags": tags, "params": run.data.params, "files": files}
        runs[str(run.info.run_name)] = told | {"status": run.info.status}
    return runs


def readdress(folder: Path, database: Path, closed: bool) -> None:
    """An outbox, of which nothing was sent, is for that database now. Unless `closed`, its log is
    left beside it, as by a kill."""
    outbox = Outbox(folder, f"sqlite:///{database}", "vgg-search", folder.name)
    files = {path: path.read_bytes() for path in folder.glob(f"{OUTBOX}*")}
    del outbox
    for path, content in files.items() if not closed else ():
        path.write_bytes(content)


def last_json(text: str) -> Any:
    return json.loads(text.strip().splitlines()[-1])
