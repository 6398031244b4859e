"""Training on the card: graphs, memory, errors. Without Ray; each test has a process of its own
where it could spoil the next one's.

    python -m pytest -m gpu tests/gpu
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vgg_search.data.splits import load_splits
from vgg_search.models.evaluation import evaluate
from vgg_search.models.files import Classifier
from vgg_search.training.graphs import Graphs
from vgg_search.training.model import build
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident, Training

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NETWORK = {
    "arch": ((1, 16), (1, 32), (2, 64)),
    "hidden_features": 128,
    "num_hidden": 1,
    "dropout": 0.3,
    "batch_norm": True,
}
# 1,000 images in batches of 167 and of 166: two sizes, two graphs
RECIPE = Recipe(max_epochs=3, batch_size=180, lr=0.1, flip=True, crop=2, erase=8, ema=True)


def training(resident: Resident, recipe: Recipe = RECIPE, **options: Any) -> Training:
    return Training(build(NETWORK | options, 1), resident, recipe, 1)


def on_card(images: int = 1000) -> Resident:
    return Resident.load(load_splits("sample", val_images=500, train_images=images), "cuda")


def digest(run: Training) -> str:
    parts = [t.detach().cpu().contiguous().numpy().tobytes() for t in run.weights().values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def in_process(code: str, *arguments: str) -> Any:
    """What the code prints last, as JSON, in a process of its own."""
    lines = [f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})"]
    lines += ["import json, torch", "from test_gpu_training import *"]
    lines += ["from vgg_search.training.device import prepare_process", "prepare_process(1)", code]
    command = [sys.executable, "-c", "\n".join(lines), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_replayed_steps_are_called_ones_to_the_bit() -> None:
    resident, found = on_card(), {}
    for refused in (True, False):
        run = training(resident)
        run.graphs.refused = refused
        list(run.run(3))
        found[refused] = digest(run)
        assert len(run.graphs.captured) == (0 if refused else 2)
    assert found[True] == found[False]


RESUMED = """
run = training(on_card())
if sys.argv[2] != "whole":
    list(run.run(1))
    torch.save(run.state_dict(), sys.argv[1])
else:
    list(run.run(3))
print(json.dumps(digest(run)))
"""
GOES_ON = """
run = training(on_card())
run.load_state_dict(torch.load(sys.argv[1], map_location="cuda", weights_only=True))
list(run.run(3))
print(json.dumps(digest(run)))
"""


def test_resumed_in_another_process_it_is_the_same_to_the_bit(tmp_path: Path) -> None:
    whole = in_process(RESUMED, str(tmp_path / "none"), "whole")
    in_process(RESUMED, str(tmp_path / "last.pt"), "first")
    assert in_process(GOES_ON, str(tmp_path / "last.pt")) == whole


FORTY = """
resident, used = on_card(), []
for i in range(40):
    recipe = RECIPE.model_copy(update={"max_epochs": 1})
    run = training(resident, recipe, arch=((1, 16),) * (1 + i % 3))
    list(run.run(1))
    del run
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    used.append((torch.cuda.memory_reserved() // 2**20, (total - free) // 2**20))
print(json.dumps(used))
"""


def test_memory_does_not_grow_from_trial_to_trial() -> None:
    used = in_process(FORTY)
    print("reserved and used MiB after trials 3, 10, 20, 40:", *[used[i] for i in (2, 9, 19, 39)])
    assert used[39][0] <= used[5][0]
    assert used[39][1] <= used[5][1] + 8


WAITS = """
resident = on_card()
first = training(resident)
hook = first.network.register_forward_hook(lambda _, __, s: float(s.detach().sum()) and None)
rows = list(first.run(2))
hook.remove()
second = training(resident)
list(second.run(2))
stream = torch.cuda.current_stream() == torch.cuda.default_stream()
held = torch.cuda.memory_reserved()
del first, second
torch.cuda.empty_cache()
print(json.dumps([rows[0]["val_loss"], rows[1]["val_loss"], stream, Graphs.spoiled, held,
    torch.cuda.memory_reserved()]))
"""


def test_a_step_that_waits_is_called_and_spoils_nothing() -> None:
    before, after, stream, spoiled, held, left = in_process(WAITS)
    assert after < before
    assert stream
    assert not spoiled
    assert left < held


BREAKS = """
resident = on_card()
first = training(resident)
capture = torch.cuda.CUDAGraph.capture_end
def breaks(self):
    capture(self)
    raise RuntimeError("broke off")
torch.cuda.CUDAGraph.capture_end = breaks
rows = list(first.run(2))
print(json.dumps([len(rows), first.graphs.refused, Graphs.spoiled,
    torch.cuda.current_stream() == torch.cuda.default_stream()]))
"""


def test_a_capture_that_breaks_off_is_known_and_the_training_goes_on() -> None:
    assert in_process(BREAKS) == [2, True, True, True]


LACKS = """
from vgg_search.training.device import out_of_memory, free_memory
free, _ = torch.cuda.mem_get_info()
held = torch.empty(free - 2**30, dtype=torch.uint8, device="cuda")
resident = on_card()
try:
    run = training(resident, RECIPE.model_copy(update={"batch_size": 1000}), resolution=224,
        arch=((2, 512), (1, 32)))
    list(run.run(1))
    error = None
except Exception as e:
    error = out_of_memory(e)
run = None
free_memory(torch.device("cuda"))
small = training(resident)
rows = list(small.run(1))
print(json.dumps([error, len(rows), rows[0]["train_loss"]]))
"""


def test_after_a_lack_of_memory_a_smaller_network_trains_in_the_same_process() -> None:
    error, rows, loss = in_process(LACKS)
    assert error is True
    assert rows == 1
    assert loss < 5


LOST = """
from vgg_search.training.device import context_lost
resident = on_card()
resident.train_labels[3] = 99
run = training(resident)
try:
    list(run.run(1))
    found = "none"
except Exception as error:
    found = [type(error).__name__, context_lost(error)]
print(json.dumps(found), flush=True)
import os
os._exit(0)
"""


def test_a_device_side_assert_is_known_as_the_end_of_the_process() -> None:
    assert in_process(LOST)[1] is True


def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    run = training(on_card())
    list(run.run(1))  # what is tried out and captured, is so here
    step = Graphs.run

    def unwaiting(*args: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Graphs, "run", unwaiting)
    assert len(list(run.run(3))) == 2


def test_bf16_learns_like_float32() -> None:
    resident = on_card(4000)
    losses = {}
    for precision in ("bf16", "fp32"):
        run = training(resident, RECIPE.model_copy(update={"precision": precision}))
        losses[precision] = [row["val_loss"] for row in run.run(3)]
    assert losses["bf16"][-1] == pytest.approx(losses["fp32"][-1], rel=0.1)


def test_a_champion_scores_on_the_card_as_on_the_cpu() -> None:
    splits = load_splits("sample", val_images=500, train_images=1000)
    run = training(on_card())
    list(run.run(3))
    scores = [
        evaluate(
            Classifier(run.measured.to(device), splits.info), splits.val_images, splits.val_labels
        )
        for device in ("cuda", "cpu")
    ]
    assert scores[0]["test_loss"] == pytest.approx(scores[1]["test_loss"], rel=2e-3)
    assert abs(scores[0]["test_accuracy"] - scores[1]["test_accuracy"]) <= 0.004


def test_noise_is_trained_within_the_memory_that_was_measured() -> None:
    code = """
import pynvml
pynvml.nvmlInit()
card = pynvml.nvmlDeviceGetHandleByIndex(0)
before = pynvml.nvmlDeviceGetMemoryInfo(card).used
from vgg_search.config import Config
from vgg_search.engine.packing import measure
memory = measure(Config())
print(json.dumps([memory.own, pynvml.nvmlDeviceGetMemoryInfo(card).used - before]))
"""
    own, used = in_process(code)
    assert own == pytest.approx(used, rel=0.2)
