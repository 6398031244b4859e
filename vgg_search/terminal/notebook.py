"""The live table in a notebook: a cell's output that is drawn again."""

import io
import sys
from typing import Any

from rich.console import Console, RenderableType

WIDTH = 100  # characters


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")


class NotebookDisplay:
    """As much of `rich.live.Live` as `Progress` uses.

    The last state stays in the cell as an output of its own, for not every program that runs
    notebooks applies updates of an output.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._html = ""

    def start(self) -> None:
        from IPython.display import HTML, display

        self._handle = display(HTML(self._html), display_id=True)

    def update(self, renderable: RenderableType, refresh: bool = True) -> None:
        from IPython.display import HTML

        self._html = as_html(renderable)
        self._handle.update(HTML(self._html))

    def stop(self) -> None:
        from IPython.display import HTML, display

        self._handle.update(HTML(""))
        display(HTML(self._html))


def as_html(renderable: RenderableType) -> str:
    """What a terminal would show, as preformatted text without colours of its own."""
    # Not as in a notebook: there, printing would add an output to the cell
    console = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False)
    console.print(renderable)
    return console.export_html(
        inline_styles=True, code_format="<pre style='line-height:1.3'>{code}</pre>"
    )
