"""A champion as a version of a registered model: a pt2 program, and weights that are safe to load.

The alias names the best: it moves only to a model with a higher validation accuracy under the
same data set and resolution, for accuracies under different ones cannot be ranked; and of several
champions of a study only to the first.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vgg_search.machine import environment
from vgg_search.storage.folder import CARD, CHAMPION
from vgg_search.tracking import mlflow_adapter
from vgg_search.tracking.tracker import Servable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FOLDER, PROGRAM = CHAMPION, "model"  # among the artifacts of the run: our files, MLflow's model
COMPARED = ("dataset", "resolution")
# Of a version. A refined one has no val_accuracy, and names the model that it goes on from.
TAGS = (
    *("study", *COMPARED, "val_accuracy", "test_accuracy", "test_accuracy_mean"),
    *("test_accuracy_std", "commit", "parent_model", "place"),
)


def register(
    client: "MlflowClient", run_id: str, servable: Servable, name: str, folder: Path
) -> dict[str, Any]:
    """Registers the champion in `folder` (model.safetensors, model.json), once a run.

    Returns model_uri, version, alias_moved and alias_text, a line that says why. Raises ValueError
    if a later champion has taken the folder, which an outage can bring about.
    """
    card = json.loads((folder / CARD).read_text())
    found = str(card.get("trial"))
    trial = client.get_run(run_id).data.tags.get("trial_number", found)
    if trial != found:
        raise ValueError(f"the folder must hold the champion of trial {trial}, got that of {found}")
    facts = card | card["metrics"]
    tags = {tag: str(facts[tag]) for tag in TAGS if facts.get(tag) is not None}
    client.log_artifacts(run_id, str(folder), FOLDER)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if versions:
        version = versions[0]
    else:
        source = _log_pt2(client, run_id, *servable(folder))
        version = client.create_model_version(name, source, run_id, tags)
    number = str(version.version)
    text, moved = version.tags.get("alias_text"), version.tags.get("alias_moved") == "True"
    if not text:  # else it was decided by a sender that was then killed
        text, moved = _move_alias(client, name, number, tags)
    for tag, value in (("alias_moved", str(moved)), ("alias_text", text)):
        client.set_tag(run_id, tag, value)
        client.set_model_version_tag(name, number, tag, value)
    uri = f"models:/{name}/{number}"
    return {"model_uri": uri, "version": number, "alias_moved": moved, "alias_text": text}


def _log_pt2(
    client: "MlflowClient", run_id: str, network: "torch.nn.Module", example: "np.ndarray"
) -> str:
    """Logs the network among the artifacts of the run, as a pt2 program, which runs what it holds
    where it is loaded; returns its address. What a killed sender has left there is written again.

    `mlflow.pytorch.log_model` needs the process-wide tracking address and active run, which are the
    user's, and so does the address runs:/ID/model.
    """
    import mlflow.pytorch
    import numpy as np
    import torch

    with torch.no_grad():
        output = network(torch.from_numpy(example)).numpy()
    with TemporaryDirectory() as scratch:
        mlflow.pytorch.save_model(
            network,
            f"{scratch}/{PROGRAM}",
            signature=mlflow.models.infer_signature(example, output),  # any number of images
            input_example=example,
            serialization_format="pt2",
            # Given, since MLflow would load the model in another process to find them out.
            pip_requirements=[f"{m.__name__}=={m.__version__.split('+')[0]}" for m in (torch, np)],
        )
        client.log_artifacts(run_id, f"{scratch}/{PROGRAM}", PROGRAM)
    return f"{client.get_run(run_id).info.artifact_uri}/{PROGRAM}"


def _move_alias(
    client: "MlflowClient", name: str, number: str, tags: Mapping[str, str]
) -> tuple[str, bool]:
    """Moves the alias to version `number` if that is better; says so, and whether it has."""
    holder = str(client.get_registered_model(name).aliases.get(CHAMPION, number))
    old = None if holder == number else client.get_model_version(name, holder).tags
    better, why = _better(tags, old)
    if better:
        client.set_registered_model_alias(name, CHAMPION, number)
    verb = "is now" if better else f"stays at version {holder}, not"
    return f"{name}@{CHAMPION} {verb} version {number}: {why}", better


def _better(new: Mapping[str, str], old: Mapping[str, str] | None) -> tuple[bool, str]:
    """Whether the alias moves from the version tagged `old` to the one tagged `new`, and why."""
    if "place" in new:
        return False, f"it is champion {new['place']} of its study, and the first may have it"
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


def version_of(model_uri: str, tracking_uri: str | None) -> "ModelVersion":
    """The version that models:/NAME@ALIAS or models:/NAME/VERSION means. Raises ValueError if
    there is no such model, ConnectionError if the tracker does not answer."""
    parts = re.fullmatch(r"models:/(.+?)(?:@(.+)|/([^@]+))", model_uri)
    if not parts:
        rule = "model must be models:/NAME@ALIAS or models:/NAME/VERSION"
        raise ValueError(f"{rule}, got {model_uri!r}")
    name, alias, number = parts.groups()
    with _client_for(model_uri, tracking_uri) as client:
        if alias:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, number)


def fetch_champion(model_uri: str, tracking_uri: str | None, target: Path) -> Path:
    """Downloads that version's model.safetensors and model.json into a folder under `target`.
    Raises as `version_of` does."""
    version = version_of(model_uri, tracking_uri)
    with _client_for(model_uri, tracking_uri) as client:
        return Path(client.download_artifacts(version.run_id or "", FOLDER, str(target)))


@contextmanager
def _client_for(model_uri: str, tracking_uri: str | None) -> "Iterator[MlflowClient]":
    """A client, whose errors are about a model."""
    uri = mlflow_adapter.address(tracking_uri)
    file = mlflow_adapter.database(uri)
    if file and not file.exists():  # MLflow would make one
        raise ValueError(f"no model {model_uri}: there is no database {file}")
    try:
        with environment(mlflow_adapter.ENVIRONMENT):
            yield mlflow_adapter.connected(uri)
    except Exception as error:
        text = mlflow_adapter.in_a_line(error)
        if mlflow_adapter.permanent(error):
            raise ValueError(f"no model {model_uri} in the tracker: {text}") from None
        raise ConnectionError(f"the tracker does not answer: {text}") from None
