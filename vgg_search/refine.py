"""A champion trained on, for another cycle of its recipe: a warm restart (arXiv:1608.03983).

It goes on from the champion's weights, on the same images: the whole training split. The champion
has seen the validation images, so no score on them would be honest any more, and there is no other
split to choose by. A refinement is therefore chosen by nothing: its epochs are fixed beforehand,
its last weights are taken, and, without a `val_accuracy` to compare, it never takes the alias from
another model. The test split is read once, for the champion and for what came of it; nothing is
chosen by it.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vgg_search.data.splits import load_splits, load_test
from vgg_search.models.evaluation import evaluate
from vgg_search.models.files import (
    Classifier,
    ModelError,
    info_of,
    load_folder,
    save_model,
    servable,
)
from vgg_search.records import metrics_of
from vgg_search.space.arch import depth, describe, width
from vgg_search.space.candidate import Candidate
from vgg_search.storage.folder import CHAMPION, SUMMARY
from vgg_search.study.tables import write_summary
from vgg_search.tracking.outbox import Outbox
from vgg_search.tracking.recorder import (
    ANSWERS,
    REGISTERED,
    STATUS,
    champion_key,
    read_card,
)
from vgg_search.tracking.sender import Tracker, version_of
from vgg_search.training.device import pick_device, prepare_process
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident, Training

RUN = "refinement"
# What a champion's card must tell, and a refinement's tells too
KEPT = ("dataset", "digest", "study", "trial", "num_params", "params", "recipe")
SEND_SECONDS, STOPPED_SECONDS = 60.0, 3.0  # to wait for the tracker at the end, or after a stop


def refine(
    folder: Path,
    parent: dict[str, str],
    out: Path,
    tracker: dict[str, str],
    facts: dict[str, Any],
    listen: Callable[[int, dict[str, Any]], None],
    epochs: int | None = None,
    seed: int = 0,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """Train the champion in `folder` on, into the run folder `out`, as a run of its own in MLflow.

    `parent` is its lineage, `tracker` the address and experiment of the run, `facts` are for the
    card; `listen(epochs, row)` hears of each epoch; `epochs` defaults to the champion's. Returns
    what `out`/summary.json says, and `unsent`; `champion` is None if the training diverged. Raises
    ModelError or DataError before anything is written.
    """
    network, card = load_folder(folder)
    info = info_of(card)
    if lacking := [name for name in (*KEPT, "epochs") if name not in card]:
        raise ModelError(f"--model must be a champion, got one whose card lacks {lacking[0]}")
    epochs = epochs or int(card["epochs"])
    splits = load_splits(card["dataset"], data_dir)
    if splits.digest != card["digest"]:
        rule = f"the data must be what the champion was trained on, {card['digest']}"
        raise ModelError(f"{rule}, got {splits.digest}")
    images, labels = load_test(card["dataset"], data_dir)
    before = evaluate(Classifier(network, info), images, labels)["test_accuracy"]
    candidate = Candidate.from_dict(card["params"])
    recipe = Recipe(max_epochs=epochs, **card["recipe"], **candidate.recipe())
    prepare_process(os.cpu_count() or 1)
    training = Training(network, Resident.load(splits, pick_device(), whole=True), recipe, seed)

    out.mkdir(parents=True)
    sent = Tracker(out, **tracker, study=out.name, servable=servable)
    arch = describe(candidate.arch)
    tags = {"kind": RUN, "state": "running", "dataset": card["dataset"], "seed": seed}
    tags |= {"study": card["study"], "trial_number": card["trial"], "commit": facts["commit"]}
    tags |= {"parent_model": parent["model_uri"]}
    if "run_id" in parent:  # MLflow then shows it under the champion's run
        tags |= {"mlflow.parentRunId": parent["run_id"]}
    params = {"arch": arch, "depth": depth(candidate.arch), "width": width(candidate.arch)}
    params |= {"epochs": epochs} | candidate.recipe() | card["recipe"]
    sent.run(RUN, f"refined {arch}", tags, params)
    sent.dataset(
        RUN, splits.name, splits.digest, {"dataset": splits.name}, "training", {"whole": True}
    )
    sent.start()
    summary: dict[str, Any] = {"study": out.name, "state": "interrupted", "parent": parent}
    try:
        for row in training.run(epochs):
            sent.log(RUN, metrics_of(row), row["epoch"])
            listen(epochs, row)
        summary["state"] = "failed" if training.diverged else "completed"
    except Exception:
        summary["state"] = "failed"
        raise
    finally:
        sent.tag(RUN, state=summary["state"])
        if summary["state"] != "completed":
            sent.end(RUN, STATUS[summary["state"]])
            unsent = sent.close(STOPPED_SECONDS)
    if training.diverged:
        return summary | {"epochs": epochs, "champion": None, "unsent": unsent}

    refined = training.measured.cpu().eval()
    scores = evaluate(Classifier(refined, info), images, labels)
    scores["parent_test_accuracy"] = before
    made = {name: card[name] for name in KEPT} | facts
    made |= {"seed": seed, "epochs": epochs, "parent_model": parent["model_uri"], "metrics": scores}
    save_model(out / CHAMPION, refined, info, made)
    told = {name: scores[name] for name in ("test_accuracy", "test_loss", "parent_test_accuracy")}
    sent.log(RUN, told, epochs)
    sent.register(RUN, REGISTERED, out / CHAMPION)
    sent.end(RUN, "FINISHED")
    unsent, answer = sent.close(SEND_SECONDS), sent.results(RUN)
    champion = told | {name: answer.get(name) for name in ANSWERS}
    summary |= {"epochs": epochs, "champion": champion}
    write_summary(out, summary)
    return summary | {"unsent": unsent}


def complete_summary(folder: Path) -> None:
    """Put what MLflow has said of a run folder's champion since into its summary.json."""
    file, card = folder / SUMMARY, read_card(folder)
    summary = json.loads(file.read_text()) if file.is_file() else {}
    if not card or not summary.get("champion"):
        return
    key = RUN if "parent_model" in card else champion_key(card["trial"], card["epochs"])
    answer = Outbox(folder, **Outbox.stored(folder)).results(key)
    summary["champion"] |= {name: answer[name] for name in ANSWERS if name in answer}
    write_summary(folder, summary)


def lineage(model: str | None, folder: Path, tracking_uri: str) -> dict[str, str]:
    """model_uri, and where it is known run_id, of the champion in `folder`, found as `model`."""
    if model and model.startswith("models:/"):
        version = version_of(model, tracking_uri)
        uri = f"models:/{version.name}/{version.version}"
        return {"model_uri": uri, "run_id": str(version.run_id)}
    summary = folder.parent / SUMMARY
    champion = json.loads(summary.read_text())["champion"] if summary.is_file() else {}
    found = {key: champion[key] for key in ("model_uri", "run_id") if champion.get(key)}
    return {"model_uri": str(folder.absolute())} | found
