"""Is deep and narrow better than shallow and wide? The notebook's claim, cell by cell.

    python experiments/deep_vs_wide.py FOLDER              # all cells; studies that ended are kept
    python experiments/deep_vs_wide.py FOLDER --minutes 30 # begin no cell after that
    python experiments/deep_vs_wide.py FOLDER --tables     # tables and figure of what is there

A cell is a network of three blocks (each twice as wide as the one before) and a linear layer, a
study by deep_vs_wide.yaml: learning rate and weight decay are searched for it alone, ten trials
each, on the validation split; five fresh seeds are tested. Three comparisons, each with and without
batch norm:

kernels  as many 3x3 convolutions as see what one larger one sees, of the same width: two or one
         5x5, three or one 7x7 (Simonyan and Zisserman 2015, section 2.3)
params   one, two, three convolutions a block, as wide as 30,000, 90,000, 270,000 parameters allow
flops    the same, as wide as 3, 9, 27 million FLOPs an image allow

and two cells of `params` at 56 px. Cost: about five hours of two cores. `VGG_SEARCH_DATA_DIR` names
the data. FOLDER/cells.csv has a row a seed.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from environment import environment
from kept_rows import add_rows, read_rows
from studies import half_width, summary_of

from vgg_search.space.arch import Arch, network_costs
from vgg_search.storage.checksums import read_cards

CONFIG = Path(__file__).with_suffix(".yaml")
SPACE: dict[str, Any] = yaml.safe_load(CONFIG.read_text())["space"]
BLOCKS, DEPTHS = SPACE["num_blocks"], (1, 2, 3)  # the latter in convolutions a block
PARAMS, FLOPS = (30_000, 90_000, 270_000), (3_000_000, 9_000_000, 27_000_000)
KERNELS_WIDTH = 64  # of the last block
AT_56 = 90_000  # parameters
FILE = "cells.csv"
COLUMNS = ("cell", "seed", "test_accuracy", "num_params", "flops", "lr", "weight_decay")


@dataclass(frozen=True)
class Cell:
    """A network, and what it is compared with: those of the same group, size and batch norm. Of
    kernels, the size is what the convolutions of a block see together."""

    group: str
    size: str
    num_convs: int
    width: int
    batch_norm: bool
    kernel_size: int = 3
    resolution: int = 28

    @property
    def name(self) -> str:
        """Of its study."""
        norm = "norm" if self.batch_norm else "plain"
        convs = f"{self.num_convs}x{self.kernel_size}x{self.kernel_size}"
        return f"{self.group}-{self.size}-{convs}-{norm}"

    @property
    def arch(self) -> Arch:
        """Blocks that are each twice as wide as the one before, the last of `width`."""
        widths = (self.width / 2**i for i in reversed(range(BLOCKS)))
        return tuple((self.num_convs, round(width)) for width in widths)

    @property
    def costs(self) -> tuple[int, int]:
        """(parameters, FLOPs an image)."""
        return network_costs(
            self.arch,
            resolution=self.resolution,
            num_hidden=SPACE["num_hidden"],
            batch_norm=self.batch_norm,
            kernel_size=self.kernel_size,
        )

    def flags(self) -> list[str]:
        """Of its search."""
        space = SPACE | {"num_convs": self.num_convs, "batch_norm": self.batch_norm}
        space |= {"kernel_size": self.kernel_size}
        space |= {f"out_channels_{i}": width for i, (_, width) in enumerate(self.arch, 1)}
        flags = ["--config", str(CONFIG), "--space", json.dumps(space)]
        return [*flags, "--resolution", str(self.resolution)]


def cells() -> Iterator[Cell]:
    """All cells, those that say most for their time first."""
    for norm in (True, False):
        for num_convs, kernel in ((2, 3), (1, 5), (3, 3), (1, 7)):
            seen = 1 + num_convs * (kernel - 1)
            yield Cell("kernels", f"{seen}x{seen}", num_convs, KERNELS_WIDTH, norm, kernel)
    for i in range(len(PARAMS)):
        for norm in (True, False):
            for num_convs in DEPTHS:
                yield fitted(Cell("params", f"{PARAMS[i] // 1000}k", num_convs, 1, norm), PARAMS[i])
            for num_convs in DEPTHS:
                size = f"{FLOPS[i] // 10**6}M"
                yield fitted(Cell("flops", size, num_convs, 1, norm), FLOPS[i])
    for num_convs in (1, 3):
        cell = Cell("params56", f"{AT_56 // 1000}k", num_convs, 1, True, resolution=56)
        yield fitted(cell, AT_56)


def fitted(cell: Cell, limit: int) -> Cell:
    """The cell with the width whose cost is nearest to the limit."""
    place = cell.group == "flops"  # of the cost in `costs`

    def wide(width: int) -> Cell:
        return Cell(**(vars(cell) | {"width": width}))

    return min(map(wide, range(4, 400)), key=lambda one: abs(one.costs[place] - limit))


def rows_of(folder: Path, cell: Cell, *flags: str) -> list[dict[str, Any]]:
    """A row a seed of its champion; its study is run first, with further flags, unless it has
    ended."""
    summary_of(folder, cell.name, [*cell.flags(), *flags])
    card = read_cards(folder / "runs" / cell.name)[0]
    row = {"cell": cell.name} | dict(zip(("num_params", "flops"), cell.costs, strict=True))
    row |= {name: card["params"][name] for name in ("lr", "weight_decay")}
    scores = card["metrics"]["test_accuracies"]
    return [row | {"seed": seed, "test_accuracy": score} for seed, score in enumerate(scores)]


def read(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Rows by cell."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(folder / FILE):
        found.setdefault(row["cell"], []).append(row)
    return found


def accuracies(rows: list[dict[str, str]]) -> np.ndarray:
    """Test accuracies of the seeds, points."""
    return np.array([100 * float(row["test_accuracy"]) for row in rows])


def print_tables(folder: Path) -> None:
    """Every cell, and by group, size and norm what the deeper ones gain over the shallow one."""
    found = read(folder)
    there = [cell for cell in cells() if cell.name in found]
    print("| cell | arch | parameters | MFLOPs | lr | test accuracy, 95 % of its mean |")
    print("| --- " * 6 + "|")
    for cell in there:
        values = accuracies(found[cell.name])
        arch = "-".join(f"{n}x{width}" for n, width in cell.arch)
        params, flops = cell.costs
        mean = f"{values.mean():.2f} ± {half_width(values):.2f}"
        lr = float(found[cell.name][0]["lr"])
        print(f"| {cell.name} | {arch} | {params:,} | {flops / 1e6:.1f} | {lr:.3g} | {mean} |")
    print(
        "\n| compared | shallow | deep | deep less shallow, 95 % (Welch) |\n" + "| --- " * 4 + "|"
    )
    for shallow in there:
        for deep in there:
            if are_compared(shallow, deep):
                pair = [accuracies(found[cell.name]) for cell in (shallow, deep)]
                sizes = f"{shallow.group}, {shallow.size}, {deep.name.rpartition('-')[2]}"
                convs = (
                    f"{c.num_convs} of {c.kernel_size}x{c.kernel_size}" for c in (shallow, deep)
                )
                print(f"| {sizes} | {' | '.join(convs)} | {_difference(*pair)} |")


def are_compared(shallow: Cell, deep: Cell) -> bool:
    """Whether they are of one comparison, and which is which."""
    alike = ("group", "size", "batch_norm")
    is_one = all(getattr(shallow, name) == getattr(deep, name) for name in alike)
    return is_one and shallow.num_convs == 1 < deep.num_convs


def _difference(shallow: np.ndarray, deep: np.ndarray) -> str:
    from scipy.stats import ttest_ind

    interval = ttest_ind(deep, shallow, equal_var=False).confidence_interval()
    return f"{deep.mean() - shallow.mean():+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"


def draw(folder: Path) -> None:
    """Test accuracy by the number of convolutions a block, a line a size, a panel a comparison."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = read(folder)
    there = [cell for cell in cells() if cell.name in found]
    figure, axes = pyplot.subplots(2, 3, figsize=(12, 7), sharex="col", sharey="row")
    for j, group in enumerate(("kernels", "params", "flops")):
        for i, norm in enumerate((True, False)):
            lines: dict[str, list[tuple[int, np.ndarray]]] = {}
            for cell in there:
                if (cell.group, cell.batch_norm) == (group, norm):
                    point = cell.num_convs, accuracies(found[cell.name])
                    lines.setdefault(cell.size, []).append(point)
            for name, points in lines.items():
                x, values_of = zip(*sorted(points, key=lambda point: point[0]), strict=True)
                means, halves = [v.mean() for v in values_of], [half_width(v) for v in values_of]
                axes[i][j].errorbar(x, means, halves, marker="o", capsize=3, label=name)
            axes[i][j].grid(alpha=0.3)
            if lines:
                axes[i][j].legend(title="with batch norm" if norm else "without", fontsize=9)
        title = {"kernels": "one kernel of that size, or 3x3 that see as much"}
        axes[0][j].set_title(title.get(group, f"as wide as the {group} allow"))
        axes[1][j].set(xlabel="convolutions a block", xticks=DEPTHS)
    for row in axes:
        row[0].set_ylabel("test accuracy, %")
    figure.tight_layout()
    figure.savefig(folder / "deep_vs_wide.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    folder, until = options.folder.resolve(), time.monotonic() + 60 * options.minutes
    folder.mkdir(parents=True, exist_ok=True)
    done = read(folder)
    if not options.tables:
        print(json.dumps(environment()), flush=True)
        for cell in cells():
            if cell.name in done or time.monotonic() > until:
                continue
            began = time.monotonic()
            rows = rows_of(folder, cell)
            add_rows(folder / FILE, COLUMNS, rows)
            mean = np.mean([row["test_accuracy"] for row in rows])
            minutes = (time.monotonic() - began) / 60
            print(f"{cell.name}: {mean:.4f}, {minutes:.1f} minutes", flush=True)
    print_tables(folder)
    draw(folder)


if __name__ == "__main__":
    main()
