"""Which operations a training step spends its time in: torch.profiler over one epoch.

    VGG_SEARCH_DATA_DIR=... python experiments/profile_training.py [NET ...]

Networks and recipe are those of `bench_training.py`; one thread, the second epoch.
"""

import argparse

import torch
from bench_training import EPOCHS, IMAGES, NETS, recipe_of, splits_of
from torch.profiler import ProfilerActivity, profile

from vgg_search.training.device import prepare_process
from vgg_search.training.model import build
from vgg_search.training.train import Resident, Training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("nets", nargs="*", default=["small", "three", "three-bn", "narrow"])
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    options = parser.parse_args()
    prepare_process(1)
    for net in options.nets:
        splits = splits_of(1000, IMAGES[net])
        labels = torch.from_numpy(splits.train_labels).long()
        data = Resident(torch.from_numpy(splits.train_images), labels, splits.info)
        recipe = recipe_of({"precision": options.precision})
        rows = (training := Training(build(NETS[net], 0), data, recipe, 0)).run(EPOCHS)
        next(rows)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            row = next(rows)
        print(f"## {net}, {training.plan}: {row['images_per_second']:.0f} images/s, profiled")
        table = seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=14)
        print("\n".join(line[:57] + line[57:].rstrip() for line in table.splitlines()), flush=True)


if __name__ == "__main__":
    main()
