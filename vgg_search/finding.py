"""A model by any of its names: a run, a folder, a file, or models:/NAME@ALIAS in the tracker."""

import atexit
import shutil
import tempfile
from pathlib import Path

from vgg_search.models.files import Classifier, ModelError, PathLike, load_classifier
from vgg_search.storage.folder import CARD, CHAMPION, RUNS, expanded, local_folder


def load(
    model: PathLike | None = None, storage_path: PathLike = RUNS, tracking_uri: str | None = None
) -> Classifier:
    """The network that `find_model` finds, ready for use: images (N, C, H, W) uint8 -> logits.

    `.network` is the VGG itself, `.info.classes` names the classes.
    """
    return load_classifier(find_model(model, storage_path, tracking_uri))


def find_model(
    model: PathLike | None = None, storage_path: PathLike = RUNS, tracking_uri: str | None = None
) -> Path:
    """What `load_classifier` takes, for a model's name.

    `model` is a run's folder or name, a champion folder, an exported safetensors file,
    models:/NAME@ALIAS in the tracker, or None for the latest champion under `storage_path`.
    Raises ModelError, or ConnectionError if the tracker does not answer.
    """
    runs = local_folder(expanded(str(storage_path)), "")  # with a bucket too, beside the driver
    if model is None:
        cards = runs.glob(f"*/{CHAMPION}/{CARD}")
        if latest := max(cards, key=lambda card: card.stat().st_mtime_ns, default=None):
            return latest.parent
        raise ModelError(f"no champion found under {runs}; run a search first or give --model")
    if str(model).startswith("models:/"):
        return _fetch(str(model), tracking_uri)
    own = Path(expanded(str(model)))
    for folder in (own, runs / own):
        if folder.is_file() or (folder / CARD).is_file():
            return folder
        if (folder / CHAMPION / CARD).is_file():
            return folder / CHAMPION
    raise ModelError(f"--model must be a run, a champion folder or models:/NAME@ALIAS, got {model}")


def _fetch(model_uri: str, tracking_uri: str | None) -> Path:
    """A champion folder out of the tracker; it is gone when this process ends."""
    from vgg_search.tracking.registry import fetch_champion  # imports mlflow: seconds

    target = Path(tempfile.mkdtemp(prefix="vgg-search-"))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    try:
        return fetch_champion(model_uri, tracking_uri, target)
    except ValueError as error:
        raise ModelError(str(error)) from error
