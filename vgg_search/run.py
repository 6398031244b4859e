"""Search depth, width and learning rate of a VGG-style network, then train and test the best.

python -m vgg_search.run                                    # the default experiment, minutes
python -m vgg_search.run --dataset sample --num-trials 4    # a smoke run, about a minute
python -m vgg_search.run --resume NAME                      # go on after any end
"""

import sys
from collections.abc import Sequence

from vgg_search.cli import commands


def main(argv: Sequence[str] | None = None) -> int:
    return commands.main(["run", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
