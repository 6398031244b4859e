"""Flags, environment and experiment file become a Config; the commands.

Nothing heavy: what a command needs is imported when it runs.
"""

import sys

from vgg_search.machine import unsupported

if reason := unsupported():  # before what Windows has not is imported
    print(f"vgg-search: {reason}", file=sys.stderr)
    sys.exit(2)
