"""A search in a real Jupyter kernel, and the notebooks as they are shipped."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
QUICKSTART, STORY = EXPERIMENTS / "quickstart.ipynb", EXPERIMENTS / "vgg_notebook.ipynb"
TINY = """
import vgg_search
result = vgg_search.search(
    dataset="sample", train_images=600, val_images=200, num_trials=3, max_epochs=2,
    champion_epochs=0, time_budget=None, name="tiny",
)
"""


def executed(notebook: nbformat.NotebookNode, folder: Path) -> list[nbformat.NotebookNode]:
    """The code cells after a run in a fresh kernel. Raises CellExecutionError."""
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client")
def test_progress_is_drawn_in_the_cell(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in (TINY, "result.trials.shape[0] >= 3")]
    first, second = executed(nbformat.v4.new_notebook(cells=cells), tmp_path)
    pages = [out.data["text/html"] for out in first.outputs if out.output_type == "display_data"]
    assert len(pages) == 2, "the one that is drawn again, and the last state"
    assert "tiny: " in pages[1]
    assert "val_accuracy" in pages[1]
    assert "tiny: 3 of 3 trials · 0 open" in pages[1]
    text = "".join(out.text for out in first.outputs if out.output_type == "stream")
    assert "study tiny completed: 3 trials" in text
    assert "\x1b" not in text
    assert "USING THE BUNDLED SAMPLE" in text, "said before the search, and still there"
    assert second.outputs[0].data["text/plain"] == "True"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client")
def test_the_quickstart_runs_and_shows_its_figures(tmp_path: Path) -> None:
    cells = executed(nbformat.read(QUICKSTART, as_version=4), tmp_path)
    kinds = [set(out.get("data", {})) for cell in cells for out in cell.outputs]
    assert sum("application/vnd.plotly.v1+json" in kind for kind in kinds) == 3
    assert any("text/html" in kind for kind in kinds), "tables"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client")
def test_the_notebooks_story_can_be_told_again(tmp_path: Path) -> None:
    notebook = nbformat.read(STORY, as_version=4)
    given = notebook.cells[1].source
    names = [line.partition(" = ")[0] for line in given.splitlines()]
    assert names == ["EPOCHS", "SEEDS", "SUBSET", "DATASET", "SEARCH"]
    notebook.cells[1].source = """
EPOCHS, SEEDS, SUBSET, DATASET = 1, 2, 128, "sample"
SEARCH = {"num_trials": 3, "max_epochs": 2, "champion_epochs": 1, "time_budget": None}
"""
    cells = executed(notebook, tmp_path)
    assert len(list(tmp_path.glob("VGG_*.pt"))) == 1
    kinds = [set(out.get("data", {})) for cell in cells for out in cell.outputs]
    assert sum("application/vnd.plotly.v1+json" in kind for kind in kinds) == 2


@pytest.mark.parametrize("shipped", [QUICKSTART, STORY], ids=lambda file: file.stem)
def test_a_shipped_notebook_was_run_to_its_end(shipped: Path) -> None:
    cells = nbformat.read(shipped, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(out.output_type == "error" for cell in code for out in cell.outputs)
