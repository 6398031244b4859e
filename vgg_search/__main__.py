"""`python -m vgg_search COMMAND`, which is `vgg-search COMMAND`."""

import sys

from vgg_search.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
