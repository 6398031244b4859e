"""The report of a study: one HTML file, made from the run folder's files alone, read offline.

It opens with the answer, then what to distrust, then the evidence, then how to do it again: its
text is in page.html.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import yaml
from plotly.offline import get_plotlyjs

from vgg_search.records import METRIC
from vgg_search.report import champion_figures, look, search_figures, space_figures
from vgg_search.report.run import Run, load
from vgg_search.report.warnings import warnings
from vgg_search.storage.addresses import masked, resume_command
from vgg_search.storage.folder import PLOTS, REPORT, RUNS, replacing
from vgg_search.study.convergence import standard_error

PAGES = {  # in plots/
    "search": ("How the search went", search_figures.FIGURES),
    "space": ("The searched space", space_figures.FIGURES),
    "champion": ("The champion", champion_figures.FIGURES),
}
LATER = "the study was stopped, and it takes seconds: vgg-search report draws it"


def warnings_of(folder: Path) -> list[str]:
    """What a reader should know before trusting the study in a run folder, gravest first."""
    return warnings(load(Path(folder)))


def draw(run: Run, hurry: bool = False) -> dict[str, go.Figure | str]:
    """Each figure by name, or why it cannot be drawn; in a hurry, none that takes seconds."""
    figures = [figure for _, own in PAGES.values() for figure in own]
    late = search_figures.SLOW + space_figures.SLOW if hurry else ()
    return {f.__name__: LATER if f in late else look.drawing(f, run) for f in figures}


def plots(folder: Path) -> dict[str, go.Figure]:
    """The figures that can be drawn, by name. Raises ReportError."""
    drawn = draw(load(Path(folder)))
    return {name: figure for name, figure in drawn.items() if isinstance(figure, go.Figure)}


def _plot(name: str, figure: go.Figure) -> dict[str, Any]:
    """A figure as JSON, and apart from it its title and what to look at."""
    title, layout = figure.layout.title.text, figure.layout
    plot = go.Figure(figure).update_layout(
        title=None, margin_t=12 if layout.showlegend is False else 50
    )
    return {
        "name": name,
        "title": title,
        "look": layout.meta,
        "height": layout.height or look.TEMPLATE.layout.height,
        "json": plot.to_json().replace("<", "\\u003c"),  # no text in it ends its script
    }


def _write(path: Path, **values: Any) -> Path:
    """A page out of page.html, whole or not at all."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "score": "{:.4f}".format,
        "count": "{:,d}".format,
        "clock": lambda seconds: timedelta(seconds=round(seconds)),
    }
    page = environment.get_template("page.html").render(plotlyjs=get_plotlyjs(), **values)
    with replacing(path) as temporary:
        temporary.write_text(page, "utf-8", "replace")  # names of files need not be text
    return path


def make_report(folder: Path, pages: bool = False, hurry: bool = False) -> Path:
    """Write `report.html` into a run folder and return its path; with `pages`, the figures alone
    into `plots/` too, for MLflow to show; in a hurry, without what takes seconds.

    Raises ReportError.
    """
    run = load(Path(folder))
    drawn = draw(run, hurry)
    parts = {name: _plot(name, own) for name, own in drawn.items() if isinstance(own, go.Figure)}
    for page, (title, figures) in PAGES.items() if pages else ():
        (run.folder / PLOTS).mkdir(exist_ok=True)
        own = [parts[figure.__name__] for figure in figures if figure.__name__ in parts]
        if own:
            _write(run.folder / PLOTS / f"{page}.html", title=title, figures=own)
    name = run.folder.absolute().name  # it may have been renamed
    best = run.summary[f"best_{METRIC}"]
    config = yaml.safe_dump(dict(run.config), sort_keys=False, default_flow_style=None)
    return _write(
        run.folder / REPORT,
        name=name,
        title=f"{name}: depth, width and learning rate",
        figures=parts.values(),
        run=run,
        metric=METRIC,
        best=best,
        best_error=best and standard_error(best, run.val_images),
        warnings=warnings(run),
        reasons={name: why for name, why in drawn.items() if isinstance(why, str)},
        crown=resume_command(name, run.config.get("storage_path", RUNS)) + " --pick RULE",
        resume=resume_command(name, run.config.get("storage_path", RUNS)),
        config=masked(config),  # the file is passed on
    )
