"""A champion trained on, for another cycle of its recipe: a warm restart (arXiv:1608.03983).

It goes on from the champion's weights, on the same images: the whole training split. The champion
has seen the validation images, so no score on them would be honest, and there is no other split to
choose by. Nothing is therefore chosen: the epochs are fixed beforehand, the last weights are taken,
and without a `val_accuracy` to compare it never takes the alias from another model. The test split
is read once, for the champion and for its refinement.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vgg_search.data.source import Array, Labels
from vgg_search.data.splits import Splits, load_splits, load_test
from vgg_search.machine import cores
from vgg_search.models.evaluation import evaluate
from vgg_search.models.files import (
    Classifier,
    ModelError,
    info_of,
    load_folder,
    save_model,
    servable,
)
from vgg_search.space.candidate import Candidate
from vgg_search.storage.folder import CARD, CHAMPION, SUMMARY
from vgg_search.study.tables import write_summary
from vgg_search.tracking.choice import Check, connect
from vgg_search.tracking.recorder import REFINEMENT as RUN
from vgg_search.tracking.recorder import end_run, log_row, register_champion, start_run
from vgg_search.tracking.registry import version_of
from vgg_search.tracking.tracker import ANSWERS, SEND_SECONDS, STOPPED_SECONDS, Tracker
from vgg_search.training.device import best_device, prepare_process
from vgg_search.training.model import VGG
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident, Training

# What a champion's card must tell, and a refinement's tells too
KEPT = ("dataset", "digest", "study", "trial", "num_params", "params", "recipe")
SCORES = ("test_accuracy", "test_loss", "parent_test_accuracy")
Card = dict[str, Any]
Listener = Callable[[int, dict[str, Any]], None]  # of epochs in all, and a row


def refine(
    folder: Path,
    parent: dict[str, str],
    out: Path,
    tracker: dict[str, Any],
    facts: dict[str, Any],
    listen: Listener,
    epochs: int | None = None,
    seed: int = 0,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Train the champion in `folder` on, into the run folder `out`, as a run of its own in MLflow.

    `parent`: see `lineage`. `tracker`: address and experiment. `facts` go into the card. `epochs`:
    by default the champion's. Returns what `out`/summary.json says, `unsent` and `refused`;
    `champion` is None if it diverged. Raises InputError before it writes.
    """
    network, old = load_folder(folder)
    splits, test = _images_of(old, data_dir)
    before = evaluate(folder, *test)["test_accuracy"]
    epochs = epochs or int(old["epochs"])
    own = {"seed": seed, "epochs": epochs, "parent_model": parent["model_uri"]}
    card = {name: old[name] for name in KEPT} | facts | own
    training = _training(network, splits, card)
    sent = _start(out, tracker, card, splits, parent.get("run_id"))
    summary = {"study": out.name, "parent": parent, "epochs": epochs, "state": "completed"}
    with _closed(sent):
        for row in training.run(epochs):
            log_row(sent, RUN, row)
            listen(epochs, row)
        if training.diverged:
            end_run(sent, RUN, "failed")
            sent.close(STOPPED_SECONDS)
            return summary | {"state": "failed", "champion": None} | _lacking(sent)
        scores = _saved(out / CHAMPION, training, card, test, before)
        register_champion(sent, RUN, scores, epochs, out / CHAMPION)
    sent.close(SEND_SECONDS)
    summary["champion"] = scores | {name: sent.results(RUN).get(name) for name in ANSWERS}
    write_summary(out, summary)
    return summary | _lacking(sent)


def _saved(
    folder: Path, training: Training, card: Card, test: tuple[Array, Labels], before: float
) -> dict[str, float]:
    """Test what was trained and save it; its scores, beside the parent's, `before`."""
    refined, info = training.measured.cpu().eval(), training.data.info
    metrics = evaluate(Classifier(refined, info), *test) | {"parent_test_accuracy": before}
    save_model(folder, refined, info, card | {"metrics": metrics})
    return {name: metrics[name] for name in SCORES}


def _lacking(tracker: Tracker) -> dict[str, int]:
    """Rows that the tracker has not got, and those that it will never take."""
    return {"unsent": tracker.unsent, "refused": tracker.refused}


def _images_of(card: Card, data_dir: Path | None) -> tuple[Splits, tuple[Array, Labels]]:
    """The images that a champion was trained on, and the test split. Raises ModelError if they are
    not there, or if it is not a champion's card."""
    if lacking := [name for name in (*KEPT, "epochs") if name not in card]:
        raise ModelError(f"--model must be a champion, got one whose card lacks {lacking[0]}")
    data, reading = (card["dataset"], data_dir), info_of(card).reading
    splits = load_splits(*data, reading=reading)
    if splits.digest != card["digest"]:
        rule = f"the data must be what the champion was trained on, {card['digest']}"
        raise ModelError(f"{rule}, got {splits.digest}")
    return splits, load_test(*data, reading)


def _training(network: VGG, splits: Splits, card: Card) -> Training:
    """The network's next cycle, on all images of the training split."""
    sampled = Candidate.from_dict(card["params"]).recipe()
    recipe = Recipe(max_epochs=card["epochs"], **card["recipe"], **sampled)
    prepare_process(cores())
    data = Resident.load(splits, best_device(), whole=True)
    return Training(network, data, recipe, card["seed"])


def _start(
    out: Path, address: dict[str, Any], card: Card, splits: Splits, parent_id: str | None
) -> Tracker:
    """Opens the run, which MLflow shows under the champion's if that is known. Raises TrackerError
    before it writes."""
    Check(address["tracking_uri"], address["experiment"]).result()
    out.mkdir(parents=True)
    tracker = connect(out, **address, study=out.name, servable=servable)
    tags = {name: card[name] for name in ("dataset", "seed", "study", "commit", "parent_model")}
    tags |= {"trial_number": card["trial"]} | ({"parent_id": parent_id} if parent_id else {})
    params = {"epochs": card["epochs"]} | card["recipe"]
    start_run(tracker, RUN, "refined", Candidate.from_dict(card["params"]), tags, params)
    tracker.dataset(RUN, splits.name, splits.digest, {"whole": True})
    tracker.start()
    return tracker


@contextmanager
def _closed(tracker: Tracker) -> Iterator[None]:
    """A run that the block does not bring to its end is closed, also by what stops the process."""
    try:
        yield
    except BaseException as error:
        end_run(tracker, RUN, "failed" if isinstance(error, Exception) else "interrupted")
        tracker.close(STOPPED_SECONDS)
        raise


def lineage(model: str | None, folder: Path, tracking_uri: str | None) -> dict[str, str]:
    """model_uri, and where it is known run_id, of the champion in `folder`, found as `model`."""
    if model and model.startswith("models:/"):
        version = version_of(model, tracking_uri)
        uri = f"models:/{version.name}/{version.version}"
        return {"model_uri": uri, "run_id": str(version.run_id)}
    summary, card = folder.parent / SUMMARY, folder / CARD
    told = json.loads(summary.read_text()) if summary.is_file() else {}
    place = json.loads(card.read_text()).get("place", 1) if card.is_file() else 1
    champions = [told.get("champion"), *told.get("more_champions", [])]
    champion = (champions[place - 1] if place <= len(champions) else None) or {}
    answers = {key: champion[key] for key in ("model_uri", "run_id") if champion.get(key)}
    return {"model_uri": str(folder.absolute())} | answers
