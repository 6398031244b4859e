"""The report of a study: one HTML file, made from the run folder's files alone, read offline.

It opens with the answer, then what to distrust, then the evidence, then how to do it again.
"""

import gzip
import os
from base64 import b64encode
from collections.abc import Callable
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import yaml
from plotly.offline import get_plotlyjs

import vgg_search.report.landscape as space
import vgg_search.report.plots as course
from vgg_search.report.health import ReportError, Run, health, load, standard_error
from vgg_search.space.arch import as_arch, describe
from vgg_search.storage.addresses import masked, resume_command
from vgg_search.storage.folder import RUNS

__all__ = ["ReportError", "health", "make_plots", "make_report", "plots"]

FIGURES: tuple[Callable[[Run], course.Drawn], ...] = (
    course.incumbent_by_time, course.incumbent_by_epochs, space.accuracy_by_params,
    space.accuracy_by_flops, space.depth_width, space.lr_by_depth, space.importance,
    space.parallel_coordinates, space.space_edges, course.learning_curves, course.timeline,
    course.confusion, course.worst_images,
)  # fmt: skip
NONE = "-"
# The policy makes the browser itself refuse any network access.
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, -apple-system, sans-serif; color: #222; max-width: 960px;
  margin: 0 auto; padding: 0 16px 48px; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.35rem; margin: 24px 0 8px; }}
h2 {{ font-size: 1.25rem; margin: 40px 0 8px; }}
h3 {{ font-size: 1.05rem; margin: 32px 0 0; }}
h3 + p {{ margin: 2px 0 4px; }}
p.small, h3 + p {{ color: #555; }}
.answer {{ border-left: 5px solid #0072B2; background: #F2F7FB; padding: 4px 16px; }}
.answer .number {{ font-size: 1.5rem; font-weight: 650; margin: 8px 0; line-height: 1.3; }}
.warnings {{ list-style: none; padding: 0; }}
.warnings li {{ border-left: 5px solid #E69F00; background: #FFF8EA; padding: 6px 12px;
  margin: 8px 0; }}
table {{ border-collapse: collapse; width: 100%; font-size: 0.92rem; overflow-wrap: break-word; }}
th, td {{ text-align: left; vertical-align: top; padding: 5px 8px 5px 0;
  border-bottom: 1px solid #DDD; }}
.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
pre {{ background: #F5F5F5; padding: 10px; white-space: pre-wrap; font-size: 0.82rem; }}
</style>
<script>{plotlyjs}</script></head>
<body>{body}</body></html>
"""

# One figure as a page of its own. Packed, plotly takes 1.9 MB instead of 4.7 of each.
PLOT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title></head>
<body style="font: 15px system-ui, sans-serif; margin: 8px"><p>{look}</p>
<div id="plot" style="height: {height}px"></div>
<script>
const packed = Uint8Array.from(atob("{packed}"), (character) => character.charCodeAt(0));
const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
new Response(unpacked).text().then((plotlyjs) => {{
  document.head.append(Object.assign(document.createElement("script"), {{text: plotlyjs}}));
  const figure = {figure};
  const options = {{responsive: true, displayModeBar: false}};
  Plotly.newPlot("plot", figure.data, figure.layout, options);
}});
</script></body></html>
"""


def plots(source: Run | Path) -> dict[str, go.Figure]:
    """The figures that can be drawn, by name. Raises ReportError."""
    run = source if isinstance(source, Run) else load(source)
    return {n: figure for n, figure in draw_all(run).items() if isinstance(figure, go.Figure)}


def draw_all(run: Run, hurry: bool = False) -> dict[str, course.Drawn]:
    """Each figure by name, or why it cannot be drawn; in a hurry, none that takes seconds."""
    later = "the study was stopped, and it takes seconds: vgg-search report draws it"
    left = (space.importance,) if hurry else ()
    return {draw.__name__: later if draw in left else draw(run) for draw in FIGURES}


def _say(value: Any, form: str = ".4f") -> str:
    return NONE if value is None or pd.isna(value) else format(value, form)


def _table(rows: list[list[str]], heads: list[str] | None = None, numbers: int = 0) -> str:
    """HTML of escaped cells, the last `numbers` columns aligned right."""
    lines = []
    for tag, cells in [*([("th", heads)] if heads else []), *(("td", row) for row in rows)]:
        marks = [""] * (len(cells) - numbers) + [" class=n"] * numbers
        pairs = zip(marks, cells, strict=True)
        lines.append("".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for mark, cell in pairs))
    return f"<table><tr>{'</tr><tr>'.join(lines)}</tr></table>"


def _baseline(run: Run) -> tuple[str, list[list[str]]]:
    """The search against the baseline, in words and as rows of the answer's table."""
    best, base = run.summary["best_val_accuracy"], run.summary["baseline_val_accuracy"]
    number, text, rows, whole = run.summary["best_trial"], "", [], False
    if base is None:
        text = "The study has no score of a baseline to compare with. "
    elif 0 in run.trials.index:
        first = run.trials.loc[0]
        rows.append(["baseline", first["arch"], _say(first["num_params"], ",d"), _say(base), NONE])
        whole = first["state"] == "completed"
        if not whole:
            text = (
                f"The baseline was {first['state']} in epoch {first['epochs']:.0f}, at {base:.4f}: "
                "too early to compare with it. "
            )
    if best is not None:
        arch, params = describe(as_arch(run.summary["best_arch"])), run.trials["num_params"]
        rows.append([f"trial {number}", arch, _say(params.get(number), ",d"), _say(best), NONE])
        if whole:
            text += (
                f"The search took val_accuracy from {base:.4f} (baseline) to {best:.4f} (trial "
                f"{number}): <b>{best - base:+.4f}</b>. "
            )
        text += (
            f"One such score has a standard error of {standard_error(best, run.val_images):.4f} "
            f"({run.val_images:,} images)."
        )
    return f"<p>{text}</p>", rows


def _gap(run: Run, test: float) -> str:
    """The search score against the test score, and the spread over seeds."""
    best, seeds, card = run.summary["best_val_accuracy"], run.test_accuracies, run.model or {}
    text = "The champion is "
    if best is not None:
        text = (
            f"Search score {best:.4f} less test score {test:.4f} is a gap of "
            f"<b>{best - test:+.4f}</b>. The search score flatters, being the highest of many "
            "noisy ones; the champion was "
        )
    text += "trained anew on training and validation images"
    text += f" for {card['epochs']} epochs" if "epochs" in card else ""
    text += ", and the test split was read once, at the end."
    if len(seeds) > 1:
        text += (
            f" Over {len(seeds)} seeds: mean {pd.Series(seeds).mean():.4f}, standard deviation "
            f"{pd.Series(seeds).std():.4f} ({', '.join(f'{seed:.4f}' for seed in seeds)})."
        )
    return f"<p>{text}</p>"


def _answer(run: Run) -> str:
    champion, best = run.summary["champion"], run.summary["best_val_accuracy"]
    text, rows = _baseline(run)
    if champion:
        test, arch = champion["test_accuracy"], (run.model or {})["options"]["arch"]
        head = f"The champion reaches test accuracy {test:.4f}"
        text += _gap(run, test)
        params = _say(champion.get("num_params"), ",d")
        rows.append(["champion", describe(as_arch(arch)), params, NONE, _say(test)])
    elif best is not None:
        head = f"The best search score is {best:.4f} (val_accuracy); no champion was trained"
    else:
        head = "There is no answer: no trial was completed"
    heads = ["", "blocks", "params", "val", "test"]
    note = "<p class=small>2x64 is a block of two convolutions with 64 channels.</p>"
    table = _table(rows, heads, 3) + note if rows else ""
    return f"<div class=answer><p class=number>{head}</p>{text}{table}</div>"


def _took(run: Run) -> str:
    s = run.summary
    wall, search = (
        NONE if s[key] is None else str(timedelta(seconds=round(s[key])))
        for key in ("wall_seconds", "search_seconds")
    )
    states = ", ".join(f"{count} {state}" for state, count in s["trials"].items() if count)
    return _table([
        ["study", f"{s['study']}: {s['state']}, data {s['dataset']}"],
        ["trials", states or "none"],
        ["epochs trained", _say(s["epochs_trained"], ",d")],
        ["time (h:min:s)", f"{wall}, of which search {search}"],
        ["slots busy", _say(s["slot_busy_fraction"], ".1%")],
        ["start-up", f"{_say(s['startup_seconds_per_trial'], '.2f')} s a trial (median)"],
        ["speed", f"{_say(s['images_per_second'], ',.0f')} images/s in a trial"],
    ])  # fmt: skip


def _evidence(run: Run, drawn: dict[str, course.Drawn]) -> str:
    shown, missing = [], []
    for name, figure in drawn.items():
        if isinstance(figure, str):
            missing.append([name.replace("_", " "), figure])
            continue
        title, layout = figure.layout.title.text, figure.layout
        figure.update_layout(title=None, margin_t=12 if layout.showlegend is False else 50)
        plot = figure.to_html(
            full_html=False, include_plotlyjs=False, div_id=name, default_width="100%",
            default_height=f"{layout.height or layout.template.layout.height}px",
            config={"responsive": True, "displayModeBar": False},
        )  # fmt: skip
        shown.append(f"<h3>{escape(title)}</h3><p>{escape(layout.meta)}</p>{plot}")
    errors = run.trained["error"].dropna()
    said = [[", ".join(map(str, own.index[:8])), text] for text, own in errors.groupby(errors)]
    return "".join([
        "<p class=small>Accuracy axes are stretched towards 1, where trials differ. Hover or tap "
        "for values.</p>",
        *shown,
        "<h3>Errors of trials</h3>" + _table(said[:10], ["trials", "error"]) if said else "",
        "<h3>Not drawn</h3>" + _table(missing, ["plot", "because"]) if missing else "",
    ])  # fmt: skip


def _again(run: Run) -> str:
    s = run.summary
    config = yaml.safe_dump(run.config, sort_keys=False, default_flow_style=None)
    config = masked(config)  # the file is passed on
    steps = [f"python -m vgg_search.run --config config.yaml --name {s['study']}-again"]
    if s["state"] != "completed":
        again = resume_command(s["study"], run.config.get("storage_path", RUNS))
        steps.insert(0, f"{again}    # goes on with this one")
    facts = {"commit": s["commit"], "seed": s["seed"], "data": s["dataset"]}
    facts |= {"data digest": run.model["digest"]} if run.model and "digest" in run.model else {}
    facts |= s["versions"] or {}
    table = _table([[key, str(value)] for key, value in facts.items()])
    return (
        f"<pre>{escape(chr(10).join(steps))}</pre>{table}"
        f"<details open><summary>config.yaml</summary><pre>{escape(config)}</pre></details>"
    )


def make_report(folder: Path, pages: bool = False, hurry: bool = False) -> Path:
    """Write `report.html` into a run folder and return its path; with `pages`, the figures as pages
    of their own too; in a hurry, without what takes seconds. Raises ReportError."""
    run = load(Path(folder))
    drawn = draw_all(run, hurry)
    if pages:  # before the report takes the figures' titles for its own headings
        make_plots(run.folder, drawn)
    title = escape(f"{run.summary['study']}: depth, width and learning rate")
    warned = "".join(f"<li>{escape(text)}</li>" for text in health(run)) or "<li>No warning.</li>"
    body = (
        f"<h1>{title}</h1>{_answer(run)}"
        f"<h2>Before you trust it</h2><ul class=warnings>{warned}</ul>"
        f"<h2>What it took</h2>{_took(run)}<h2>Evidence</h2>{_evidence(run, drawn)}"
        f"<h2>Do it again</h2>{_again(run)}"
    )
    path = run.folder / "report.html"
    draft = path.with_suffix(".tmp")
    draft.write_text(PAGE.format(title=title, plotlyjs=get_plotlyjs(), body=body), "utf-8")
    os.replace(draft, path)
    return path


def make_plots(folder: Path, drawn: dict[str, course.Drawn] | None = None) -> Path:
    """Write each figure as a page into `plots/` of a run folder, for MLflow to show. Raises
    ReportError."""
    drawn = draw_all(load(Path(folder))) if drawn is None else drawn
    target = Path(folder) / "plots"
    target.mkdir(exist_ok=True)
    packed = b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    for name, figure in drawn.items():
        if isinstance(figure, str):
            continue
        title, layout = figure.layout.title.text, figure.layout
        page = PLOT.format(
            title=escape(title), look=escape(layout.meta), packed=packed,
            height=layout.height or layout.template.layout.height,
            figure=figure.to_json().replace("<", "\\u003c"),
        )  # fmt: skip
        (target / f"{name}.html").write_text(page, "utf-8")
    return target
