"""A champion as a version of a registered model, in a format that is safe to load.

The alias names the best: it moves only to a model with a higher validation accuracy under the
same data set and resolution, for accuracies under different ones cannot be ranked.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vgg_search.storage.folder import CARD, CHAMPION

if TYPE_CHECKING:
    import numpy as np
    import torch
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

# Of a champion folder: a network from uint8 (N, 1, 28, 28) to probabilities (N, 10), and an
# example of N >= 2 images (from a single one torch.export fixes the batch size at 1).
Servable = Callable[[Path], "tuple[torch.nn.Module, np.ndarray]"]
FOLDER = CHAMPION  # among the artifacts of the run
COMPARED = ("dataset", "resolution")
# Of a version. A refined one has no val_accuracy, and names the model that it goes on from.
TAGS = (
    "study", *COMPARED, "val_accuracy", "test_accuracy", "test_accuracy_mean", "test_accuracy_std",
    "commit", "parent_model",
)  # fmt: skip


def register(
    client: "MlflowClient", run_id: str, servable: Servable, name: str, folder: Path, alias: str
) -> dict[str, Any]:
    """Registers the champion in `folder` (model.safetensors, model.json), once a run.

    Returns model_uri, version, alias_moved and alias_text, a line that says why. Raises ValueError
    if a later champion has taken the folder, which an outage can bring about.
    """
    card = json.loads((folder / CARD).read_text())
    trial = client.get_run(run_id).data.tags.get("trial_number", str(card.get("trial")))
    if trial != str(card.get("trial")):
        rule = f"the folder must hold the champion of trial {trial}"
        raise ValueError(f"{rule}, got that of trial {card.get('trial')}")
    facts = card | card["metrics"]
    tags = {tag: str(facts[tag]) for tag in TAGS if facts.get(tag) is not None}
    client.log_artifacts(run_id, str(folder), FOLDER)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    made = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if made:
        version = made[0]
    else:
        model = _log_pt2(client, run_id, name, *servable(folder))
        # Not "models:/ID", which a local registry looks up at the process-wide tracking address.
        source, model_id = model.artifact_location, model.model_id
        version = client.create_model_version(name, source, run_id, tags, model_id=model_id)
    number = str(version.version)
    text, moved = version.tags.get("alias_text"), version.tags.get("alias_moved") == "True"
    if not text:  # else it was decided by a sender that was then killed
        holder = str(client.get_registered_model(name).aliases.get(alias, number))
        old = None if holder == number else client.get_model_version(name, holder).tags
        moved, why = _better(tags, old)
        if moved:
            client.set_registered_model_alias(name, alias, number)
        verb = "is now" if moved else f"stays at version {holder}, not"
        text = f"{name}@{alias} {verb} version {number}: {why}"
    for tag, value in (("alias_moved", str(moved)), ("alias_text", text)):
        client.set_tag(run_id, tag, value)
        client.set_model_version_tag(name, number, tag, value)
    uri = f"models:/{name}/{number}"
    return {"model_uri": uri, "version": number, "alias_moved": moved, "alias_text": text}


def _better(new: Mapping[str, str], old: Mapping[str, str] | None) -> tuple[bool, str]:
    """Whether the alias moves from the version tagged `old` to the one tagged `new`, and why."""
    if old is None:
        return True, "no other model had the alias"
    for tag in COMPARED:
        if new.get(tag) != old.get(tag):
            return False, f"{tag} {new.get(tag)} cannot be compared with {old.get(tag)}"
    if "val_accuracy" not in new:
        return False, "it has seen the validation images, and has no val_accuracy to compare"
    ours, theirs = new["val_accuracy"], old.get("val_accuracy", "nan")
    moved = not float(ours) <= float(theirs)
    return moved, f"val_accuracy {ours} {'>' if moved else '<='} {theirs}"


def _log_pt2(
    client: "MlflowClient",
    run_id: str,
    name: str,
    network: "torch.nn.Module",
    example: "np.ndarray",
) -> "LoggedModel":
    """Logs the network as a model of the run, without pickle. Not by
    `mlflow.pytorch.log_model`, which needs the process-wide tracking address and active run."""
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    # One may be left half made by a sender that was killed.
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    # Its name is not FOLDER: MLflow would show its files among those of that folder.
    model = found[0] if found else client.create_logged_model(experiment, name, run_id)
    with torch.no_grad():
        output = network(torch.from_numpy(example)).numpy()
    inputs, outputs = (
        Schema([TensorSpec(np.dtype(array.dtype), (-1, *array.shape[1:]))])
        for array in (example, output)
    )
    with TemporaryDirectory() as scratch:
        mlflow.pytorch.save_model(
            network,
            f"{scratch}/model",
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                run_id=run_id,
                model_id=model.model_id,
                model_uuid=model.model_id,
            ),
            signature=ModelSignature(inputs, outputs),
            input_example=example,
            serialization_format="pt2",
            # Given, since MLflow would load the model in another process to find them out.
            pip_requirements=[f"{m.__name__}=={m.__version__.split('+')[0]}" for m in (torch, np)],
        )
        client.log_model_artifacts(model.model_id, f"{scratch}/model")
    client.finalize_logged_model(model.model_id, "READY")
    if not (run.outputs and run.outputs.model_outputs):
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    return model
