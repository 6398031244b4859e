"""A search on a folder of photos, from its command to `predict`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SMALL = "--num-trials 2 --max-epochs 2 --champion-epochs 4 --time-budget null --batch-size 16"
RNG = np.random.default_rng(0)


def photo(colour: tuple[int, int, int], size: tuple[int, int]) -> Image.Image:
    noise = RNG.integers(-40, 40, (size[1], size[0], 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def test_photos_are_searched_tested_and_classified(tmp_path: Path) -> None:
    """Three classes, four sizes, one broken file, and no test part."""
    colours = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (210, 50, 40)}
    for name, colour in colours.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(40):
            size = ((40, 40), (60, 40), (40, 90), (33, 48))[i % 4]
            photo(colour, size).save(tmp_path / "photos" / name / f"{i}.jpg")
    (tmp_path / "photos" / "red" / "broken.jpg").write_text("no photo")

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vgg_search", *arguments],
            cwd=tmp_path,
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=300,
        )

    flags = ["run", "--dataset", "photos", "--name", "p", *SMALL.split(), "--json"]
    refused = command(*flags)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert f"{tmp_path}/photos/red/broken.jpg must be a PNG, JPEG, " in refused.stderr
    done = command(*flags, "--skip-broken", "true")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["dataset"] == str(tmp_path / "photos")
    assert any("has no test split" in text for text in summary["warnings"])
    assert "20 of 120 images were drawn for it" in (tmp_path / "runs/p/log.txt").read_text()
    card = json.loads((tmp_path / "runs/p/champion/model.json").read_text())
    assert (card["classes"], card["resolution"]) == (["blue", "green", "red"], 40)
    assert card["images"]["drawn_test"]
    with Image.open(tmp_path / "runs/p/worst.png") as sheet:
        assert sheet.mode == "RGB"

    photo(colours["green"], (200, 120)).save(tmp_path / "new.png")
    answer = json.loads(command("predict", "new.png", "--json").stdout.splitlines()[-1])
    assert answer["predictions"][0]["class"] in card["classes"]
    scores = json.loads(command("evaluate", "--json").stdout.splitlines()[-1])
    assert scores["test_accuracy"] == summary["champion"]["test_accuracy"]


IN_MEMORY = """
import json
import numpy as np
import pytest
import torch
import vgg_search
from PIL import Image

rng, labels = np.random.default_rng(0), np.arange(90) % 3
images = (rng.integers(0, 80, (90, 12, 12, 3)) + 80 * np.eye(3, dtype=int)[labels][:, None, None])
images = images.astype(np.uint8)

class Pictures:
    classes = ["red", "green", "blue"]
    def __len__(self):
        return len(labels)
    def __getitem__(self, i):
        return Image.fromarray(images[i]), int(labels[i])

for dataset in ((images, labels), (torch.tensor(images), torch.tensor(labels)), Pictures()):
    result = vgg_search.search(
        dataset=dataset, num_trials=2, max_epochs=3, champion_epochs=8, time_budget=None,
        batch_size=16, quiet=True,
    )
    planes = torch.tensor(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        right = (result.champion(planes).argmax(1) == torch.tensor(labels)).float().mean()
    card = json.loads((result.folder / "champion" / "model.json").read_text())
    print(json.dumps([card["digest"], card["classes"], result.summary["dataset"], float(right)]))
"""


@pytest.mark.slow
def test_arrays_tensors_and_data_sets_are_searched(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(IN_MEMORY)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    arrays, tensors, pictures = map(json.loads, done.stdout.splitlines())
    assert arrays == tensors
    assert pictures[0] == arrays[0], "the same images"
    assert (arrays[1], pictures[1]) == (["0", "1", "2"], ["red", "green", "blue"])
    assert Path(arrays[2]).is_file()
    assert min(arrays[3], pictures[3]) > 0.9
