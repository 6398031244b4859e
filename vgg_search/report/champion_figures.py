"""What the champion gets wrong on the test split."""

from base64 import b64encode

import plotly.graph_objects as go
from PIL import Image

from vgg_search.report import look
from vgg_search.report.run import Content, Run
from vgg_search.storage.folder import WORST_COLUMNS, WORST_IMAGES

MOST_COUNTS = 20  # classes whose counts can be read in their cells


def _card(run: Run) -> Content:
    if run.card is None:
        raise look.NotDrawnError("there is no champion")
    return run.card


def confusion(run: Run) -> go.Figure:
    """What the champion mixes up

    The darkest cells are the pairs that it takes for each other (images of the test split); in
    blue, on the diagonal, what it gets right.
    """
    counts, names = _card(run)["metrics"]["confusion"], _card(run)["classes"]
    figure = go.Figure()
    for is_right, colours in ((False, ["white", look.RED]), (True, ["#D6E6F2", "#D6E6F2"])):
        cells = [
            [count if (i == j) == is_right else None for j, count in enumerate(line)]
            for i, line in enumerate(counts)
        ]
        figure.add_heatmap(z=cells, x=names, y=names, colorscale=colours, hoverongaps=False)
    figure.update_traces(
        texttemplate="%{z}" if len(names) <= MOST_COUNTS else "",
        textfont={"size": 11},
        hoverinfo="all",
        hovertemplate="true %{y}, predicted %{x}: %{z}<extra></extra>",
    )
    # Names such as 7 and 500 are no places on an axis
    figure.update_xaxes(type="category", title="predicted", tickangle=-60, showgrid=False)
    figure.update_yaxes(type="category", title="true", autorange="reversed", showgrid=False)
    if len(names) > MOST_COUNTS:  # every name in a line of its own
        figure.update_xaxes(dtick=1, tickfont_size=8, tickangle=-90)
        figure.update_yaxes(dtick=1, tickfont_size=8)
    return figure.update_layout(height=max(520, 120 + 11 * len(names)), showlegend=False)


def worst_images(run: Run) -> go.Figure:
    """The champion's worst images

    Those of the test split with the highest loss, worst first: the true class, and what the
    champion took it for. Some could puzzle a person too.
    """
    worst, file = _card(run)["metrics"]["worst"], run.folder / WORST_IMAGES
    if not file.is_file():
        raise look.NotDrawnError(f"{WORST_IMAGES} was not kept")
    with Image.open(file) as sheet:
        width = sheet.width / WORST_COLUMNS
        height = sheet.height / -(-len(worst) // WORST_COLUMNS)
    figure, places = go.Figure(), [divmod(i, WORST_COLUMNS) for i in range(len(worst))]
    figure.add_image(source=f"data:image/png;base64,{b64encode(file.read_bytes()).decode()}")
    figure.add_scatter(
        x=[(column + 0.5) * width - 0.5 for _, column in places],
        y=[(line + 0.97) * height - 0.5 for line, _ in places],
        text=[f"{image['class']}<br>as {image['predicted']}" for image in worst],
        hovertext=[f"image {i['image']}: probability {i['probability']:.3f}" for i in worst],
        mode="text",
        textposition="top center",
        textfont={"size": 10},
    )
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, constrain="domain", scaleanchor="x", constraintoward="top")
    return figure.update_layout(height=500, showlegend=False)


FIGURES = (confusion, worst_images)
