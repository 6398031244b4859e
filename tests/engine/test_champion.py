"""The champion: the best network on all training images, with fresh seeds, tested once."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from fake_workers import SPACE, Workers, experiment, opened
from nodes import cluster_of
from optuna.trial import FrozenTrial
from PIL import Image
from ray.exceptions import RayError

from vgg_search.config import Config
from vgg_search.data.splits import Splits, load_test
from vgg_search.engine import champion
from vgg_search.engine.champion import (
    FRESH,
    TIME_SHARE,
    _train_alone,
    planned_epochs,
    train_champion,
)
from vgg_search.engine.checkpoints import TrainingCheckpoints, TrainingTask
from vgg_search.engine.nodes import NodeError
from vgg_search.machine import cores
from vgg_search.models.evaluation import evaluate
from vgg_search.models.files import load_classifier
from vgg_search.models.images import contact_sheet
from vgg_search.storage.folder import WORST_IMAGES
from vgg_search.storage.place import Place
from vgg_search.study.sampling import trial_seed
from vgg_search.study.study import Study
from vgg_search.training.model import build
from vgg_search.training.recipe import Recipe

FACTS = {"commit": "abc", "versions": {"torch": torch.__version__}}


def tiny(**fields: Any) -> Config:
    given = {"num_trials": 1, "scheduler": "none", "dataset": "sample", "precision": "fp32"}
    given |= {"enqueue": [{"arch": ((1, 8),), "lr": 0.05}], "batch_size": 64}
    return experiment(**given | fields)


def searched(study: Study) -> FrozenTrial:
    """The study's best trial; the search needs no networks here."""
    assert Workers().run(study)
    assert study.ranking.incumbent
    return study.optuna.get_trials(deepcopy=False)[study.ranking.incumbent[1]]


class LacksMemoryError(RayError):
    cause = torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(("share", "tries"), [(0.5, [0.5, 1.0]), (1.0, [1.0]), (2.0, [2.0])])
def test_after_a_lack_of_memory_on_a_shared_gpu_it_has_one_alone(
    share: float, tries: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def lacks(*arguments: Any) -> None:
        seen.append(arguments[4])
        raise LacksMemoryError

    monkeypatch.setattr(champion, "_train_seeds", lacks)
    cluster: Any = SimpleNamespace(nodes=lambda: [{"GPU": 2.0}], resources={"gpu": share})
    study: Any = SimpleNamespace(config=tiny(champion_seeds=3))
    with pytest.raises(LacksMemoryError):
        champion._trained(study, [], None, cluster, lambda *_: None)  # type: ignore[arg-type]
    assert seen == tries


@pytest.mark.usefixtures("cluster")
def test_each_seed_is_trained_whole_and_tested(tmp_path: Path, splits: Splits) -> None:
    heard: list[tuple[int, int, dict[str, Any]]] = []
    config = tiny(champion_epochs=2, champion_seeds=2, seed=3)
    with opened(tmp_path / "s", config) as study:
        best = searched(study)
        card = train_champion(
            study, best, splits, cluster_of(study), FACTS, lambda *row: heard.append(row), 2
        )
    assert card
    rows = {seed: [row for index, _, row in heard if index == seed] for seed in (0, 1)}
    for told in rows.values():
        assert [row["epoch"] for row in told] == [1, 2]
        assert not any(key.startswith("val_") for row in told for key in row)
    assert {epochs for _, epochs, _ in heard} == {2}
    assert rows[0][0]["train_loss"] != rows[1][0]["train_loss"]

    folder = tmp_path / "s" / "champion"
    assert {file.name for file in folder.iterdir()} == {"model.json", "model.safetensors"}
    stored = json.loads((folder / "model.json").read_text())
    assert stored.items() >= json.loads(json.dumps(card)).items()
    assert stored["seed"] == trial_seed(3, FRESH) != best.user_attrs["seed"]
    expected = {
        "dataset": "sample",
        "digest": splits.digest,
        "study": "s",
        "trial": 0,
        "epochs": 2,
        "classes": list(splits.info.classes),
        "resolution": 28,
        "arch": [[1, 8]],
        "num_params": best.user_attrs["num_params"],
        "commit": "abc",
    }
    assert {key: stored[key] for key in expected} == expected
    assert stored["params"]["lr"] == best.params["lr"]
    assert stored["recipe"]["schedule"] == "one-cycle"

    metrics = stored["metrics"]
    assert metrics["val_accuracy"] == best.value  # its trial's, on validation
    accuracies = metrics["test_accuracies"]
    assert metrics["test_accuracy"] == accuracies[0]
    assert accuracies[0] != accuracies[1]
    assert metrics["test_accuracy_mean"] == pytest.approx(sum(accuracies) / 2)
    # Of a sample of two: n - 1
    assert metrics["test_accuracy_std"] == pytest.approx(
        abs(accuracies[0] - accuracies[1]) / 2**0.5
    )
    images, _ = load_test("sample")
    drawn = contact_sheet(images[[row["image"] for row in metrics["worst"]]])
    with Image.open(tmp_path / "s" / WORST_IMAGES) as sheet:
        assert sheet.convert(drawn.mode).tobytes() == drawn.tobytes()
    champion = load_classifier(folder)
    assert champion.network.num_params == stored["num_params"]
    again = evaluate(champion, *load_test("sample"))
    assert again["test_accuracy"] == metrics["test_accuracy"]


@pytest.mark.usefixtures("cluster")
def test_a_stop_ends_it_without_a_champion(tmp_path: Path, splits: Splits) -> None:
    with opened(tmp_path / "s", tiny(champion_epochs=1000)) as study:
        best = searched(study)

        def stop(*_: Any) -> None:
            study.stopping = True

        assert train_champion(study, best, splits, cluster_of(study), FACTS, stop, 1000) is None
    assert not (tmp_path / "s" / "champion").exists()


@pytest.mark.usefixtures("cluster")
def test_a_stop_while_it_is_tested_ends_that_too(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def takes_minutes(*_: Any) -> None:
        time.sleep(600)

    monkeypatch.setattr(champion, "_test", takes_minutes)
    with opened(tmp_path / "s", tiny()) as study:
        network = build({"arch": ((1, 8),), "hidden_features": 32, "resolution": 28}, 0)
        study.stopping = True
        assert champion._scores([network], study, splits, cluster_of(study), 1, 1) is None


@pytest.mark.usefixtures("cluster")
@pytest.mark.skipif(cores() < 2, reason="there is no core to hold")
def test_it_asks_for_no_cores_that_others_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(champion, "ROOM_SECONDS", 2.0)

    class Holder:
        def there(self) -> bool:
            return True

    with opened(tmp_path / "s", tiny()) as study:
        best, cluster = searched(study), cluster_of(study)
        (task,) = champion._tasks(best, study.config, cluster, 1)
        assert task.threads == int(max(node["CPU"] for node in cluster.nodes()))
        holder = ray.remote(num_cpus=1)(Holder).remote()
        ray.get(holder.there.remote())
        (task,) = champion._tasks(best, study.config, cluster, 1)
        ray.kill(holder)
    assert task.threads == 1


def test_a_training_that_is_begun_again_tells_all_and_trains_the_rest(
    tmp_path: Path, splits: Splits
) -> None:
    """Ray runs a task again whose node is gone, and drops as many rows as it had."""
    network = {"arch": ((1, 8),), "hidden_features": 32, "num_hidden": 1, "resolution": 28}
    checkpoints = TrainingCheckpoints(Place(str(tmp_path)), "trials/champion", 3)
    recipe = Recipe(max_epochs=3, batch_size=64, lr=0.05)
    task = TrainingTask(network, recipe, 7, 1, checkpoints, whole=True)
    rows = _train_alone(task, splits, gpu=False)
    before = [next(rows), next(rows)]
    rows.close()
    after = list(_train_alone(task, splits, gpu=False))
    assert after[:2] == before  # their times too: they were not trained again
    assert [row["epoch"] for row in after] == [1, 2, 3]


@pytest.mark.usefixtures("cluster")
def test_an_error_in_its_training_is_the_callers(tmp_path: Path, splits: Splits) -> None:
    config = tiny(champion_epochs=1, space=SPACE | {"hidden_features": 2**40})
    with opened(tmp_path / "s", config) as study:
        best = searched(study)
        with pytest.raises(RayError, match="can't allocate memory"):
            train_champion(study, best, splits, cluster_of(study), FACTS, lambda *_: None, 1)
    assert not (tmp_path / "s" / "champion").exists()


@pytest.mark.usefixtures("cluster")
def test_one_that_diverges_is_an_error_and_not_tested(tmp_path: Path, splits: Splits) -> None:
    """Whichever of its seeds it is: none is left out of a mean in silence."""
    heard: list[dict[str, Any]] = []
    given = {"enqueue": [{"arch": ((1, 8),), "lr": 1e30}], "champion_seeds": 2}
    config = tiny(champion_epochs=3, space=SPACE | {"lr": [0.01, 1e30]}, **given)
    with opened(tmp_path / "s", config) as study:
        best = searched(study)
        with pytest.raises(RayError, match="the loss is not finite any more after epoch 1 of 3"):
            train_champion(
                study, best, splits, cluster_of(study), FACTS, lambda *row: heard.append(row[2]), 3
            )
    assert {row["epoch"] for row in heard} == {1}
    assert not (tmp_path / "s" / "champion").exists()


@pytest.mark.usefixtures("cluster")
def test_without_a_node_to_train_on_it_says_so(tmp_path: Path, splits: Splits) -> None:
    with opened(tmp_path / "s", tiny(champion_epochs=1)) as study:
        best, cluster = searched(study), cluster_of(study)
        cluster._unsound |= {node["NodeID"] for node in cluster._alive}
        with pytest.raises(NodeError, match="no node is there to train it"):
            train_champion(study, best, splits, cluster, FACTS, lambda *_: None, 1)


@pytest.mark.parametrize(
    ("asked", "budget", "seeds", "epochs"),
    [
        # 2 s an epoch in the search and a third more images: 2.67 s, of which 81 s bear 30
        (50, 81 / TIME_SHARE, 1, 30),
        (50, 81 / TIME_SHARE, 2, 30),
        (50, 81 / TIME_SHARE, 5, 10),  # two at a time: three rounds
        (5, 81 / TIME_SHARE, 1, 5),
        (50, 1, 1, 1),
        (50, None, 1, 50),
    ],
)
def test_epochs_are_what_is_asked_for_or_what_the_time_bears(
    tmp_path: Path, splits: Splits, asked: int, budget: float | None, seeds: int, epochs: int
) -> None:
    config = tiny(champion_epochs=asked, time_budget=budget, champion_seeds=seeds)
    with opened(tmp_path / "s", config) as study:
        assert planned_epochs(searched(study), config, splits, slots=2) == epochs


def test_the_test_split_is_read_where_a_model_is_finished() -> None:
    package = Path(__file__).parents[2] / "vgg_search"
    readers = {file.name: file.read_text().count("load_test(") for file in package.rglob("*.py")}
    once = dict.fromkeys(["champion.py", "commands.py", "refine.py", "splits.py"], 1)
    assert {name: count for name, count in readers.items() if count} == once
