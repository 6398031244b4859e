"""Where a short trial's time goes, in its worker: no Ray, no MLflow, one process, one thread.

    VGG_SEARCH_DATA_DIR=... python experiments/profile_trial.py [short|middle] [--trials 20]

Trains the configurations of `bench_trials.py` one after another in one `TrialWorker`, as Ray would
ask it to, and prints each part's share of the time.
"""

import argparse
import cProfile
import pstats
import tempfile
from pathlib import Path
from typing import Any

from bench_trials import MODES, configurations, data_dir, experiment

from vgg_search.config import Config
from vgg_search.data.splits import load_splits
from vgg_search.engine.worker import TrialWorker
from vgg_search.space.candidate import Candidate
from vgg_search.storage.place import Place
from vgg_search.study.segment import Segment

# Name shown -> (file, function) of the profile; a part's time holds what it calls
PARTS = {
    "the whole": ("trial.py", "step"),
    "build the network": ("model.py", "build"),
    "training epochs": ("train.py", "_train_epoch"),
    "  draw the table": ("augment.py", "draw"),
    "  cut and normalise": ("train.py", "prepare"),
    "  forward": ("model.py", "forward"),
    "  backward": ("_tensor.py", "backward"),
    "  optimiser": ("train.py", "_descend"),
    "validation": ("train.py", "evaluate"),
    "checkpoints": ("checkpoint.py", "after"),
}


def train(worker: TrialWorker, segment: Segment) -> None:
    worker.reset_config({"segment": segment})
    while not worker.step().get("done"):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("mode", nargs="?", default="short", choices=("short", "middle"))
    parser.add_argument("--trials", type=int, default=20)
    options = parser.parse_args()
    size = MODES[options.mode]
    config = Config(**experiment(options.mode, size, "auto"))
    splits = load_splits("fashion-mnist", data_dir(), size["val_images"], size["train_images"])
    space = config.search_space
    fixed: dict[str, Any] = {name: dim.choices[0] for name, dim in space.dims.items() if dim.fixed}
    fixed = {name: fixed[name] for name in Candidate.__dataclass_fields__ if name in fixed}
    segments = [
        Segment(
            number=number,
            candidate=Candidate(
                **fixed | {"arch": tuple(map(tuple, given["arch"])), "lr": given["lr"]}
            ),
            seed=number,
            until=size["epochs"],
            known=0,
            keep_above=0.0,
        )
        for number, given in enumerate(configurations(options.mode, options.trials))
    ]
    with tempfile.TemporaryDirectory() as folder:
        worker = TrialWorker.__new__(TrialWorker)  # Ray's constructor makes folders at home
        worker.setup({"segment": segments[0]}, splits, config, Place(str(Path(folder))))
        for segment in segments[:5]:  # libraries compile their kernels at a first time
            train(worker, segment)
        profile = cProfile.Profile()
        profile.enable()
        for segment in segments:
            train(worker, segment)
        profile.disable()
    named = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    print(f"{options.mode}: {options.trials} trials, {size}")
    whole = 0.0
    for part, (file, function) in PARTS.items():
        seconds = sum(
            cumulative
            for (path, _, name), (_, _, _, cumulative, _) in named.items()
            if name == function and path.endswith(file)
        )
        whole = whole or seconds
        print(
            f"{part:<22} {1000 * seconds / options.trials:8.1f} ms a trial  {seconds / whole:6.1%}"
        )


if __name__ == "__main__":
    main()
