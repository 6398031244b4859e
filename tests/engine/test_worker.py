"""A worker and the segments it is given, driven without a cluster: rows, checkpoints, ends."""

import os
import resource
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_workers import experiment

from vgg_search.data.splits import Splits
from vgg_search.engine import checkpoints as checkpoints
from vgg_search.engine.checkpoints import TrainingCheckpoints, save_checkpoint
from vgg_search.engine.worker import TrialWorker
from vgg_search.models.files import info_of, load_folder
from vgg_search.space.candidate import Candidate
from vgg_search.storage.folder import BEST, LAST
from vgg_search.storage.place import Place, StorageError
from vgg_search.study.segment import Segment
from vgg_search.training.device import plan
from vgg_search.training.inference import validate
from vgg_search.training.model import build
from vgg_search.training.recipe import recipe_of
from vgg_search.training.train import Resident, Training

MEASURED = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")
CANDIDATE = Candidate(
    arch=((1, 8),),
    lr=0.05,
    weight_decay=1e-4,
    batch_size=64,
    dropout=0.2,
    hidden_features=16,
    num_hidden=1,
    batch_norm=True,
)
Make = Callable[..., TrialWorker]


def segment(until: int, known: int = 0, number: int = 7, **more: Any) -> Segment:
    given = {"candidate": CANDIDATE, "seed": 11, "keep_above": 0.0} | more
    return Segment(number=number, until=until, known=known, **given)


@pytest.fixture
def make(tmp_path: Path, splits: Splits) -> Make:
    """A worker as Ray would set it up, but not in a process of its own."""

    def one(
        first: Segment, kind: type[TrialWorker] = TrialWorker, data: Splits = splits, **given: Any
    ) -> TrialWorker:
        made = kind.__new__(kind)  # Ray's constructor makes folders at home
        config = experiment(precision="fp32", crop=2, **given)
        made.setup({"segment": first}, data, config, Place(str(tmp_path)))
        return made

    return one


def results(worker: TrialWorker, most: int = 10) -> list[dict[str, Any]]:
    """What Ray would hear until the segment is done."""
    told = []
    while len(told) < most:
        result = worker.step()
        if "actor" not in result:
            told.append(result)
        if "end" in result:
            break
    return told


def go_on(worker: TrialWorker, next_one: Segment) -> list[dict[str, Any]]:
    assert worker.reset_config({"segment": next_one}) is True  # else Ray makes a new process
    return results(worker)


def measured(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: result["rows"][0][key] for key in MEASURED} for result in told]


def epochs(told: list[dict[str, Any]]) -> list[int]:
    return [result["rows"][0]["epoch"] for result in told]


def checkpoint(folder: Path) -> Path:
    return folder / "trials" / "7" / LAST


def test_a_segment_is_a_row_an_epoch_and_an_end(make: Make) -> None:
    told = results(make(segment(3)))
    assert epochs(told) == [1, 2, 3]
    assert [result.get("end") for result in told] == [None, None, "reached"]
    for result in told:
        assert result["worker"] == result["rows"][0]["worker"]
        assert result["rows"][0]["worker"].endswith(f":{os.getpid()}")
        assert result["rows"][0]["peak_memory_mib"] > 50
    assert told[0]["rows"][0]["ended"] < told[2]["rows"][0]["ended"]


def test_a_worker_introduces_itself_and_says_its_end_until_it_is_heard(make: Make) -> None:
    worker = make(segment(1))
    name = {"worker": worker.worker}
    assert worker.step() == name | {"actor": None}  # no actor, for there is no Ray here
    assert worker.step()["end"] == "reached"
    assert worker.step() == worker.step() == name | {"end": "reached"}
    assert worker.reset_config({"segment": segment(1, number=8)})
    assert epochs([worker.step()]) == [1]  # introduced already


def test_the_worker_that_holds_a_trial_goes_on_without_its_checkpoint(
    make: Make, tmp_path: Path
) -> None:
    worker = make(segment(1))
    told = results(worker)
    held = worker.training
    shutil.rmtree(tmp_path / "trials")
    told += go_on(worker, segment(3, known=1))
    assert worker.training is held
    shutil.rmtree(tmp_path / "trials")
    assert measured(told) == measured(results(make(segment(3))))


def test_another_worker_goes_on_from_the_checkpoint_to_the_same_rows(
    make: Make, tmp_path: Path
) -> None:
    whole = results(make(segment(4)))
    shutil.rmtree(tmp_path / "trials")
    told = results(make(segment(2))) + results(make(segment(4, known=2)))
    assert epochs(told) == [1, 2, 3, 4]
    assert measured(told) == measured(whole)


def test_rows_that_the_record_lacks_are_told_again_and_not_trained(make: Make) -> None:
    first = results(make(segment(2)))
    again = results(make(segment(3)))
    assert epochs(again) == [1, 2, 3]
    assert [r["rows"][0]["epoch_seconds"] for r in again[:2]] == [
        r["rows"][0]["epoch_seconds"] for r in first
    ]
    assert epochs(results(make(segment(3, known=2)))) == [3]


def test_a_segment_that_was_trained_to_its_end_tells_the_last_row(make: Make) -> None:
    first = results(make(segment(2)))
    (last,) = results(make(segment(2, known=2)))
    assert last["end"] == "reached"
    assert measured([last]) == measured(first[1:])


def test_a_record_ahead_of_the_checkpoint_is_caught_up_with(make: Make, tmp_path: Path) -> None:
    first = results(make(segment(4), checkpoint_every=2), most=3)  # killed in its fourth epoch
    assert torch.load(checkpoint(tmp_path), weights_only=True)["epoch"] == 2
    again = results(make(segment(4, known=3), checkpoint_every=2))
    assert epochs(again) == [3, 4]  # the study does not count 3 again
    assert measured(again[:1]) == measured(first[2:])


@pytest.mark.parametrize(
    "other",
    [
        {"candidate": replace(CANDIDATE, lr=0.01)},
        {"candidate": replace(CANDIDATE, arch=((1, 16),))},
        {"seed": 12},
    ],
    ids=["recipe", "network", "seed"],
)
def test_a_checkpoint_of_another_training_is_not_gone_on_from(
    make: Make, tmp_path: Path, other: dict[str, Any]
) -> None:
    """The number was proposed anew, from a copy of the record that lacked the proposal."""
    whole = results(make(segment(2)))
    shutil.rmtree(tmp_path / "trials")
    results(make(segment(2, **other)))
    assert measured(results(make(segment(2)))) == measured(whole)
    assert measured(results(make(segment(2)))) == measured(whole)  # its own, told from it


def test_a_checkpoint_that_does_not_say_what_it_is_of_is_not_gone_on_from(
    make: Make, tmp_path: Path
) -> None:
    results(make(segment(2)))
    state = torch.load(checkpoint(tmp_path), weights_only=True)
    del state["of"]
    state["rows"][0] |= {"train_loss": 7.0}
    save_checkpoint(checkpoint(tmp_path), state)
    assert results(make(segment(1)))[0]["rows"][0]["train_loss"] != 7.0


def test_a_storage_that_is_away_for_a_while_is_waited_for(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = results(make(segment(4)))
    shutil.rmtree(tmp_path / "trials")
    told, file = results(make(segment(2))), checkpoint(tmp_path)
    aside = file.rename(tmp_path / "aside")
    file.mkdir()  # which nobody can read as a file

    def back() -> None:
        file.rmdir()
        aside.rename(file)

    monkeypatch.setattr(checkpoints, "OUTAGE_SECONDS", 0.0)
    with pytest.raises(StorageError, match=f"^{tmp_path} cannot be used: .*directory"):
        results(make(segment(4, known=2)))
    monkeypatch.setattr(checkpoints, "OUTAGE_SECONDS", 60.0)
    timer = threading.Timer(0.3, back)
    timer.start()
    told += results(make(segment(4, known=2)))
    timer.join()
    assert measured(told) == measured(whole)


def test_a_worker_that_waits_for_its_storage_says_that_it_is_there(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that says nothing is taken for a stopped one and ended."""
    results(make(segment(2)))
    file = checkpoint(tmp_path)
    file.unlink()
    file.mkdir()  # which nobody can read as a file
    monkeypatch.setattr(checkpoints, "OUTAGE_SECONDS", 0.0)
    worker = make(segment(4, known=2))
    told = [worker.step() for _ in range(checkpoints.ATTEMPTS)]
    assert all(result.keys() <= {"worker", "actor"} for result in told)
    with pytest.raises(StorageError):
        worker.step()


@contextmanager
def no_room() -> Iterator[None]:
    """No file of this process grows beyond 10 kB, which is less than a network."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("keep_above", [0.0, 1.01], ids=["best", "last"])
def test_a_trial_goes_on_where_there_is_no_room_for_its_checkpoints(
    make: Make, tmp_path: Path, keep_above: float
) -> None:
    whole = results(make(segment(2)))
    shutil.rmtree(tmp_path / "trials")
    worker = make(segment(2, keep_above=keep_above))
    with no_room():
        told = results(worker)
    assert measured(told) == measured(whole)
    assert [path for path in (tmp_path / "trials").rglob("*") if path.is_file()] == []


def test_of_a_champion_a_checkpoint_without_room_is_an_error(make: Make, tmp_path: Path) -> None:
    worker = make(segment(1))
    (told,) = results(worker)
    assert worker.training
    kept = TrainingCheckpoints(worker.place, "trials/champion", 1)
    with no_room(), pytest.raises(StorageError, match=f"^{tmp_path} cannot be used: a checkpoint"):
        kept.save(told["rows"][0], worker.training)


def test_rows_from_a_champions_checkpoint_can_be_sent_for(make: Make) -> None:
    """As Ray asks a process that yields them: after a kill between the last epoch and the test."""
    worker = make(segment(2))
    results(worker)
    assert worker.training
    rows = TrainingCheckpoints(worker.place, "trials/7", 2).train(worker.training)
    assert next(rows)["epoch"] == 1
    assert rows.send("more")["epoch"] == 2


def test_a_trial_that_diverges_says_so_whoever_asks(make: Make) -> None:
    wild = replace(CANDIDATE, lr=1e6, batch_norm=False)
    for _ in range(2):  # trained, then told from the checkpoint
        (only,) = results(make(segment(3, candidate=wild)))
        assert only["end"] == "diverged"
        assert not np.isfinite(only["rows"][0]["train_loss"])


def test_epochs_before_the_divergence_are_told_too(make: Make, tmp_path: Path) -> None:
    results(make(segment(2)))
    state = torch.load(checkpoint(tmp_path), weights_only=True)
    state["rows"][1] |= {"train_loss": float("nan")}
    save_checkpoint(checkpoint(tmp_path), state)
    told = results(make(segment(4)))
    assert [(r["rows"][0]["epoch"], r.get("end")) for r in told] == [(1, None), (2, "diverged")]


def test_an_error_in_training_is_a_result(make: Make, splits: Splits) -> None:
    worse = replace(splits, train_labels=np.full_like(splits.train_labels, 200))
    worker = make(segment(2), data=worse)
    (only,) = results(worker)
    assert only["end"] == "failed"
    assert only["error"].startswith("Traceback")
    assert only["error"].strip().splitlines()[-1] == "IndexError: Target 200 is out of bounds."
    assert "rows" not in only
    assert worker.training is None


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "another file"])
def test_a_damaged_checkpoint_is_not_gone_on_from(make: Make, tmp_path: Path, damage: str) -> None:
    """The training begins anew, and comes to the same rows."""
    whole = measured(results(make(segment(3))))
    content = bytearray(checkpoint(tmp_path).read_bytes())
    content[len(content) // 2] ^= 16  # in the weights, where torch itself notices nothing
    damaged = {"flipped": content, "cut": content[:-50], "emptied": b"", "another file": b"{}"}
    checkpoint(tmp_path).write_bytes(damaged[damage])
    assert measured(results(make(segment(3, known=2)))) == whole


def test_a_network_that_does_not_fit_in_memory_is_told_apart(make: Make) -> None:
    worker = make(segment(2, candidate=replace(CANDIDATE, hidden_features=2**40)))
    (only,) = results(worker)
    assert only["end"] == "oom"
    assert "can't allocate memory" in only["error"]
    assert epochs(go_on(worker, segment(1, number=8))) == [1]


def test_the_last_network_is_gone_before_the_next_is_built(make: Make) -> None:
    class Watched(TrialWorker):
        gone: list[bool]

        def _free_training(self) -> None:
            network = weakref.ref(self.training.network) if self.training else None
            super()._free_training()
            if network:
                self.gone.append(network() is None)

    worker = make(segment(1), kind=Watched)
    worker.gone = []
    results(worker)
    go_on(worker, segment(1, number=8))
    assert worker.gone == [True]


def test_a_checkpoint_holds_plain_values_and_is_alone(make: Make, tmp_path: Path) -> None:
    results(make(segment(2)))
    state = torch.load(checkpoint(tmp_path), weights_only=True)
    assert state["epoch"] == len(state["rows"]) == 2
    assert {file.name for file in checkpoint(tmp_path).parent.iterdir()} == {LAST, BEST}


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "new" / LAST
    save_checkpoint(path, {"epoch": 1})
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        save_checkpoint(path, {"epoch": 2, "bad": lambda: None})
    assert torch.load(path, weights_only=True) == {"epoch": 1}


def test_the_best_weights_are_those_that_were_validated(
    make: Make, tmp_path: Path, splits: Splits
) -> None:
    told = results(make(segment(4)))
    network, card = load_folder(tmp_path / "trials" / "7" / BEST)
    best = max((result["rows"][0] for result in told), key=lambda row: row["val_accuracy"])
    assert (card["trial"], card["epoch"]) == (7, best["epoch"])
    data = Resident.load(splits, "cpu")
    assert data.val_images is not None
    assert data.val_labels is not None
    # A trial's card does not name its data
    assert info_of(card) == replace(splits.info, name="auto")
    fp32 = plan("fp32", "cpu")
    again = validate(network, data.val_images, data.val_labels, info_of(card), fp32)
    assert again["val_accuracy"] == card["val_accuracy"] == best["val_accuracy"]
    assert again["val_loss"] == pytest.approx(best["val_loss"], rel=1e-5)


def test_the_best_weights_stay_when_later_epochs_are_worse(tmp_path: Path, splits: Splits) -> None:
    data = Resident.load(splits, "cpu")
    recipe = recipe_of(experiment(precision="fp32"), CANDIDATE, 4)
    training = Training(build(CANDIDATE.network(28), 11), data, recipe, 11)
    kept = TrainingCheckpoints.of_trial(Place(str(tmp_path)), segment(4), every=1)
    rows, weights = [], []
    for row in kept.train(training):
        rows.append(row)
        weights.append({name: tensor.clone() for name, tensor in training.weights().items()})
        if row["epoch"] == 2:  # from here on every image is called something else
            wrong = (data.train_labels + 1) % 10
            training.data = replace(data, train_labels=wrong)
    best = max(rows, key=lambda row: row["val_accuracy"])
    assert best["epoch"] < 4, "the last epoch is not the best"
    network, card = load_folder(tmp_path / "trials" / "7" / BEST)
    assert (card["epoch"], card["val_accuracy"]) == (best["epoch"], best["val_accuracy"])
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, weights[best["epoch"] - 1][name]), name
    last = torch.load(checkpoint(tmp_path), weights_only=True)
    assert last["epoch"] == 4
    assert not torch.equal(
        last["measured"]["layers.output.weight"], network.state_dict()["layers.output.weight"]
    )


@pytest.mark.parametrize(("keep_above", "kept"), [(0.0, True), (1.01, False)])
def test_only_what_may_be_among_the_best_is_kept(
    make: Make, tmp_path: Path, keep_above: float, kept: bool
) -> None:
    results(make(segment(1, keep_above=keep_above)))
    assert (tmp_path / "trials" / "7" / BEST).exists() == kept


class Payload:
    """What a malicious checkpoint carries: unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.target,)


def test_a_checkpoint_that_carries_code_fails_its_trial_and_is_not_run(
    make: Make, tmp_path: Path
) -> None:
    trace, file = tmp_path / "trace", tmp_path / "trials" / "7" / LAST
    file.parent.mkdir(parents=True)
    torch.save({"epoch": 1, "rows": [], "network": Payload(trace)}, file)
    (told,) = results(make(segment(until=2, known=1)))
    assert told["end"] == "failed"
    assert "Weights only load failed" in told["error"]
    assert not trace.exists()
