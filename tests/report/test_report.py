"""The report of real records: its numbers, its figures, its warnings, what it says of poor studies.

A trial's val_accuracy is lr * epoch / (epoch + 1), as `fake_workers` trains it.
"""

import json
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fake_workers import Fault, Workers, experiment, opened, value_at
from plotly.offline import get_plotlyjs

from vgg_search.config import Config
from vgg_search.errors import InputError
from vgg_search.models.images import contact_sheet
from vgg_search.report.look import LOOKS
from vgg_search.report.page import PAGES, make_report, plots, warnings_of
from vgg_search.report.run import ReportError, load
from vgg_search.report.space_figures import importance
from vgg_search.report.warnings import RANDOM_TRIALS, edges
from vgg_search.space.data_shape import DataShape
from vgg_search.storage.checksums import with_checksum, with_checksums
from vgg_search.study.sampling import random_candidates
from vgg_search.study.tables import summarise, write_summary

NAMES = [figure.__name__ for _, figures in PAGES.values() for figure in figures]
CLASSES = ["Shirt", "Coat", "Bag"]
ARCH = ((1, 8), (2, 16))
LRS = {"low": 0.01, "high": 0.9, "log": False}
DIVERGED, FAILED = 7, 9


def make_study(
    folder: Path, turns: int | None = None, faults: dict[int, Fault] | None = None, **fields: Any
) -> Path:
    """A run folder as a search leaves it, stopped after so many turns."""
    given: dict[str, Any] = {
        "baseline": ARCH,
        "champion_epochs": 4,
        "tracking_uri": "http://me:secret@a/",
    }
    space = experiment().space | {"lr": LRS, "hidden_features": [16, 32, 64], "max_params": 40_000}
    config = experiment(**given | {"name": folder.name, "space": space} | fields)
    with opened(folder, config) as study:
        finished = Workers(slots=2, faults=faults or {}).run(study, turns)
        study.close()
        trials, clock = study.optuna.get_trials(), study.budget.clock
    (folder / "config.yaml").write_text(config.dump())
    summary = {"study": folder.name, "state": "completed" if finished else "interrupted"}
    summary |= {"dataset": "fashion-mnist", "val_images": 10_000, "champion": None}
    summary |= summarise(trials, 2, clock) | {"wall_seconds": clock + 60, "seed": 0}
    summary |= {"versions": {"torch": "2.15.0"}, "commit": "abc1234"}
    if summary["best_trial"] is not None:
        test = round(summary["best_val_accuracy"] - 0.005, 4)
        summary["champion"] = {"test_accuracy": test}
        write_champion(folder, summary["best_arch"], test)
    write_summary(folder, summary)
    return folder


def write_champion(folder: Path, arch: Any, test: float) -> None:
    worst = {"image": 3, "class": "Shirt", "predicted": "Coat", "probability": 0.9}
    metrics = {"test_accuracy": test, "test_accuracies": [test], "worst": [worst] * 7}
    metrics["confusion"] = [[3_000, 200, 100], [100, 3_000, 200], [50, 50, 3_300]]
    card = {"options": {"arch": arch}, "classes": CLASSES, "num_params": 12_345, "epochs": 4}
    contact_sheet(np.zeros((7, 1, 28, 28), np.uint8)).save(folder / "worst.png")
    (folder / "champion").mkdir()
    text = json.dumps(card | {"digest": "0123456789abcdef", "metrics": metrics})
    (folder / "champion" / "model.json").write_text(text)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of 60 trials, read-only by agreement; tests that edit take `study`."""
    faults = {DIVERGED: Fault("diverged"), FAILED: Fault("failed")}
    return make_study(tmp_path_factory.mktemp("runs") / "full", num_trials=60, faults=faults)


@pytest.fixture
def study(full: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(full, tmp_path / "full"))


def edit(folder: Path, file: str, **values: Any) -> None:
    """Set keys of a map."""
    path = folder / file
    path.write_text(json.dumps(yaml.safe_load(path.read_text()) | values))


def text_of(folder: Path) -> str:
    """The report's text, without plotly's own."""
    return re.sub(r"<script.*?</script>", "", make_report(folder).read_text(), flags=re.DOTALL)


def test_the_answer_holds_the_files_numbers(full: Path) -> None:
    summary, text = json.loads((full / "summary.json").read_text()), text_of(full)
    best, base = summary["best_val_accuracy"], summary["baseline_val_accuracy"]
    test = summary["champion"]["test_accuracy"]
    for number in (best, base, test):
        assert f"{number:.4f}" in text
    for gap in (best - base, best - test):
        assert f"<b>{gap:+.4f}</b>" in text
    order = ["The champion reaches", "Before you trust it", "Evidence", "Do it again"]
    assert sorted(order, key=text.index) == order
    facts = ["abc1234", "2.15.0", "0123456789abcdef", "num_blocks: [1, 3]", "--name full-again"]
    for fact in [*facts, "12,345", "10,000 images", f"{summary['epochs_trained']} epochs"[:3]]:
        assert fact in text
    assert "RuntimeError: failed" in text


def test_one_file_without_network_or_secret(full: Path) -> None:
    page = make_report(full).read_text()
    assert page.count(get_plotlyjs()) == 1
    text = page.replace(get_plotlyjs(), "")
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//|@import|url\(", text)
    assert "default-src 'none'" in text
    assert "width=device-width" in text
    assert "secret" not in text


def test_only_the_report_is_written(study: Path) -> None:
    def content() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in study.rglob("*") if p.is_file()}

    (study / "report.html").unlink(missing_ok=True)
    before = content()
    path = make_report(study)
    after = content()
    assert path == study / "report.html"
    del after[path]
    assert after == before


def test_text_from_files_is_escaped(study: Path) -> None:
    edit(study, "summary.json", commit="<script>alert(1)</script>")
    assert "<script>alert" not in make_report(study).read_text()


def test_names_of_files_need_not_be_text(study: Path) -> None:
    """As Python has those that are not UTF-8."""
    edit(study, "summary.json", dataset="/data/caf\udce9")
    edit(study, "champion/model.json", classes=["caf\udce9", "Coat", "Bag"])
    assert "/data/caf?" in make_report(study, hurry=True).read_text("utf-8")


def test_long_lists_of_errors_are_cut_and_counted(tmp_path: Path) -> None:
    """Ten trials with one error, and eleven with one of their own."""
    trials = [{"arch": ARCH, "lr": lr / 100} for lr in range(10, 32)]
    faults = {number: Fault("failed") for number in range(1, 22)}
    folder = make_study(tmp_path / "a", num_trials=23, enqueue=trials, faults=faults)
    journal, error = folder / "study.journal", "RuntimeError: failed"
    ends = iter([""] * 10 + [f" in {i}" for i in range(11)])
    lines = re.sub(r',"crc32":\d+', "", journal.read_text())  # as in older records
    journal.write_text(re.sub(error, lambda _: error + next(ends), lines))
    text = text_of(folder)
    assert text.count(error) == 10
    assert f"<td>1, 2, 3, 4, 5, 6, 7, 8 and 2 more</td><td>{error}</td>" in text
    assert f"<td>11</td><td>{error} in 0</td>" in text
    assert "<p>and 2 more kinds</p>" in text


def test_every_figure_is_drawn_from_a_full_study(full: Path) -> None:
    drawn = plots(full)
    assert list(drawn) == NAMES
    for name, figure in drawn.items():
        shown = [trace for trace in figure.data if trace.visible is not False]
        assert shown, name
        for trace in shown:
            values = {"heatmap": "z", "image": "source"}.get(trace.type, "y")
            assert len(trace[values]), name
        assert figure.layout.title.text, name
        assert figure.layout.meta.endswith("."), name
        assert len(figure.to_json()) < 300_000, name


def test_pages_hold_each_figure_once(study: Path) -> None:
    make_report(study, pages=True)
    pages = sorted((study / "plots").iterdir())
    assert [page.stem for page in pages] == sorted(PAGES)
    for page in pages:
        text = page.read_text().replace(get_plotlyjs(), "")
        assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//|@import", text)
        ids = re.findall(r'<div id="(\w+)" class=plot', text)
        assert ids == [figure.__name__ for figure in PAGES[page.stem][1]]


def test_in_a_hurry_what_takes_seconds_is_left_out(study: Path) -> None:
    make_report(study, hurry=True)
    text = (study / "report.html").read_text()
    assert text.count("the study was stopped, and it takes seconds") == 3
    assert 'id="learning_curves"' in text


def test_the_worst_images_have_captions(full: Path) -> None:
    captions = plots(full)["worst_images"].data[1]
    assert captions.text[0] == "Shirt<br>as Coat"
    assert len(set(zip(captions.x, captions.y, strict=True))) == 7


def test_confusion_counts_every_image(full: Path) -> None:
    wrong, right = plots(full)["confusion"].data
    assert list(wrong.x) == CLASSES
    assert [line[i] for i, line in enumerate(right.z)] == [3_000, 3_000, 3_300]
    assert list(wrong.z[0]) == [None, 200, 100]


def test_a_confusion_of_100_classes_names_each(study: Path) -> None:
    """Folders called by numbers too, which are names."""
    names = [str(i * i) for i in range(100)]
    card = json.loads((study / "champion" / "model.json").read_text())
    metrics = card["metrics"] | {"confusion": np.eye(100, dtype=int).tolist()}
    edit(study, "champion/model.json", classes=names, metrics=metrics)
    figure = plots(study)["confusion"]
    assert list(figure.data[0].y) == names
    assert not any(trace.texttemplate for trace in figure.data)
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        assert (axis.type, axis.dtick) == ("category", 1)
    assert figure.layout.height - 120 >= 11 * 100  # px: a line of text each


def test_states_have_one_colour(full: Path) -> None:
    seen = set()
    for name, figure in plots(full).items():
        for trace in figure.data:
            if trace.name in LOOKS:
                assert trace.marker.color == LOOKS[trace.name]["color"], name
                seen.add(trace.name)
    assert seen >= {"completed", "pruned", "diverged"}


def test_best_so_far_steps_up_to_the_best(full: Path) -> None:
    run = load(full)
    for name in ("incumbent_by_time", "incumbent_by_epochs"):
        figure = plots(full)[name]
        (line,) = [trace for trace in figure.data if trace.name == "best"]
        assert line.line.shape == "hv"
        assert all(a >= b for a, b in pairwise(line.y))  # an error falls
        assert 1 - line.y[-1] == pytest.approx(run.summary["best_val_accuracy"])
        (base,) = figure.layout.shapes
        assert base.line.dash == "dot"
        assert 1 - base.y0 == pytest.approx(run.summary["baseline_val_accuracy"])
    assert line.x[-1] == run.summary["epochs_trained"]


def test_ticks_of_accuracy_say_where_they_are(full: Path) -> None:
    axis = plots(full)["learning_curves"].layout.yaxis
    assert len(axis.tickvals) > 3
    for tick, text in zip(axis.tickvals, axis.ticktext, strict=True):
        assert float(text) == pytest.approx(1 - tick, abs=5e-4)
        assert axis.range[0] >= np.log10(tick) >= axis.range[1]


def test_pareto_front_is_what_nothing_beats(full: Path) -> None:
    run = load(full)
    trials = {(row["num_params"], row["val_accuracy"]) for row in run.completed}
    (front,) = [t for t in plots(full)["accuracy_by_params"].data if t.name == "Pareto front"]
    unbeaten = sorted(
        (params, value)
        for params, value in trials
        if not any((p <= params and v > value) or (p < params and v == value) for p, v in trials)
    )
    assert list(front.x) == [params for params, _ in unbeaten]
    assert [1 - y for y in front.y] == pytest.approx([value for _, value in unbeaten])


def test_importance_finds_what_the_score_is_made_of(full: Path) -> None:
    bars = plots(full)["importance"].data[0]
    assert bars.y[-1] == "lr"
    assert sum(bars.x) == pytest.approx(1)


def test_importance_where_one_network_alone_lacks_a_block(tmp_path: Path) -> None:
    """Optuna warns of it; the terminal is not the place."""
    lrs = np.linspace(0.1, 0.8, 24)
    archs = [ARCH[:1], *(((1, 8), (1 + i % 2, 16)) for i in range(23))]
    trials = [{"arch": arch, "lr": float(lr)} for arch, lr in zip(archs, lrs, strict=True)]
    folder = make_study(
        tmp_path / "a", num_trials=24, enqueue=trials, baseline=None, scheduler="none"
    )
    assert "lr" in importance(load(folder)).data[0].y


@pytest.mark.parametrize("name", ["num_blocks", "hidden_features"])
def test_importance_of_another_score(
    full: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load(full)
    scores = {row["number"]: float(run.params[row["number"]][name]) for row in run.ranked}
    monkeypatch.setattr(
        "vgg_search.report.space_figures.scores_at_one_epoch", lambda _: (1, dict(scores))
    )
    assert importance(run).data[0].y[-1] == name


def test_choices_are_the_dimensions_that_differ(full: Path) -> None:
    figure, run = plots(full)["parallel_coordinates"], load(full)
    names = set(figure.layout.yaxis.ticktext)
    assert names == {"rank (%)", "depth", "width", "num_blocks", "lr", "hidden_features"}
    assert len(figure.data) == len(run.ranked)
    assert figure.data[-1].x[0] == 0  # the best is drawn last, on top


def test_a_learning_curve_is_the_trials_record(full: Path) -> None:
    run = load(full)
    best = plots(full)["learning_curves"].data[-1]
    lr = run.completed[0]["lr"]
    assert list(best.x) == [1, 2, 3, 4]
    assert [1 - y for y in best.y] == pytest.approx([value_at(lr, epoch) for epoch in best.x])


def test_a_large_study_draws_some_curves(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vgg_search.report.search_figures.MOST_LINES", 10)
    figure, run = plots(full)["learning_curves"], load(full)
    assert "one trial in 6 is drawn" in figure.layout.xaxis.title.text
    assert len(figure.data) == 10
    best = max(row["best_val_accuracy"] for row in run.trained if row["best_val_accuracy"])
    assert min(figure.data[-1].y) == pytest.approx(1 - best)


def test_a_bar_of_the_timeline_is_an_epoch(full: Path) -> None:
    run = load(full)
    bars = [trace for trace in plots(full)["timeline"].data if trace.visible]
    assert sum(len(trace.y) for trace in bars) == run.summary["epochs_trained"]
    assert {length for trace in bars for length in trace.x} == {2.0}


def test_untrained_proposals_are_in_no_figure(full: Path) -> None:
    run = load(full)
    untrained = set(run.proposals) - {row["number"] for row in run.trained}
    assert untrained
    assert not untrained & set(run.curves)
    assert len(plots(full)["history"].data[0].x) == len(run.ranked)


@pytest.mark.parametrize("file", ["config.yaml", "summary.json", "champion/model.json"])
def test_a_missing_file(study: Path, file: str) -> None:
    (study / file).unlink()
    with pytest.raises(ReportError, match=f"cannot read {file} in "):
        make_report(study)


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("summary.json", "{}", r"summary\.json must have key 'champion', got only none"),
        ("summary.json", "[]", r"summary\.json must be a map, got \[\]"),
        ("summary.json", "{", r"summary\.json in .* cannot be parsed"),
        ("config.yaml", "a: [", r"config\.yaml in .* cannot be parsed"),
        ("config.yaml", "space: {}", r"config\.yaml must have key 'resolution', got only space"),
        ("config.yaml", "{space: {num_blocks: 0}, resolution: 28, batch_size: 1}",
         r"config\.yaml: space must say lr"),
        ("champion/model.json", '{"options": {}}', r"model\.json must have key 'metrics'"),
        ("study.journal", "{\n{\n", r"^line 1 of .*study\.journal is no JSON; restore"),
        ("study.journal", "", r"no study in .*study\.journal yet"),
    ],
)  # fmt: skip
def test_a_broken_file(study: Path, file: str, text: str, match: str) -> None:
    (study / file).write_text(text)
    with pytest.raises(InputError, match=match) as error:
        make_report(study)
    assert "\n" not in str(error.value)


def test_a_record_that_was_cut_is_named(study: Path) -> None:
    """Between two lines, so that what is left is a record."""
    journal = study / "study.journal"
    whole = make_report(study).read_text()
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]))  # how the last trial ended
    make_report(study)
    journal.write_text("".join(lines[: len(lines) // 2]))
    with pytest.raises(
        ReportError, match=r"study\.journal in .* has \d+ epochs, summary\.json \d+; r"
    ):
        make_report(study)
    journal.write_text("".join(lines))
    assert make_report(study).read_text() == whole


@pytest.mark.parametrize("file", ["config.yaml", "champion/model.json"])
def test_a_flipped_bit_is_named(study: Path, file: str) -> None:
    config, card = study / "config.yaml", study / "champion" / "model.json"
    config.write_text(with_checksum(config.read_text()))
    (card.parent / "model.safetensors").write_bytes(b"weights")
    card.write_text(json.dumps(with_checksums(json.loads(card.read_text()), card.parent)))
    make_report(study)
    content = bytearray((study / file).read_bytes())
    content[content.index(b"1")] ^= 2
    (study / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"{file} is not as it was written: restore it"):
        make_report(study)


def test_a_missing_record(study: Path) -> None:
    (study / "study.journal").unlink()
    with pytest.raises(InputError, match=r"no study in .*: study\.journal is missing"):
        warnings_of(study)


@pytest.mark.parametrize("num_trials", [1, 2, 10])
def test_small_studies(tmp_path: Path, num_trials: int) -> None:
    folder = make_study(tmp_path / "small", num_trials=num_trials)
    text = text_of(folder)
    assert "Not drawn" in text
    assert f"it takes 20 trials with a score, got {num_trials}" in text
    assert {"incumbent_by_time", "learning_curves", "timeline"} <= set(plots(folder))


def test_a_study_without_trials(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "none", turns=0)
    edit(folder, "summary.json", state="failed")
    assert "There is no answer" in text_of(folder)
    assert plots(folder) == {}
    assert "The study is failed" in warnings_of(folder)[0]


def test_an_interrupted_study_without_completed_trials(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "part", turns=2)
    text = text_of(folder)
    assert "There is no answer: no trial was completed" in text
    assert "The baseline was interrupted in epoch 2, at " in text
    assert "The search took" not in text
    assert "python -m vgg_search.run --resume part    #" in text
    edit(folder, "config.yaml", storage_path="/data/runs")
    assert "--resume part --storage-path /data/runs    #" in text_of(folder)
    assert "there is no champion" in text
    assert {"learning_curves", "timeline"} <= set(plots(folder))
    assert [warning.split(":")[0] for warning in warnings_of(folder)[:2]] == [
        "The study is interrupted",
        "No trial was completed",
    ]


def test_a_baseline_that_was_stopped_early_is_not_compared_with(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "a", num_trials=3, faults={0: Fault("diverged", epoch=2)})
    text = text_of(folder)
    assert "The baseline diverged in epoch 2, at 0.1000: too early to compare with it" in text
    assert "The search took" not in text


def test_no_champion(study: Path) -> None:
    edit(study, "summary.json", champion=None)
    assert "no champion was trained" in text_of(study)


def test_no_baseline(study: Path) -> None:
    edit(study, "summary.json", baseline_val_accuracy=None)
    assert "no score of a baseline" in text_of(study)
    assert not plots(study)["learning_curves"].layout.shapes


def warned(folder: Path, start: str) -> bool:
    return any(warning.startswith(start) for warning in warnings_of(folder))


@pytest.mark.parametrize(("num_trials", "small"), [(18, True), (19, False)])
def test_warns_of_a_small_budget(tmp_path: Path, num_trials: int, small: bool) -> None:
    folder = make_study(tmp_path / "small", num_trials=num_trials)
    text = f"The budget is small for the space: {num_trials} trials for 9 sampled dimensions"
    assert warned(folder, text) == small


def test_the_default_experiment_does_not_warn_of_its_own_budget() -> None:
    config = Config()
    assert config.num_trials >= RANDOM_TRIALS + len(config.search_space.sampled())


@pytest.mark.parametrize(
    ("lrs", "side"), [((0.87, 0.9), "upper"), ((0.4, 0.5), None), ((0.01, 0.04), "lower")]
)
def test_warns_of_edges(tmp_path: Path, lrs: tuple[float, float], side: str | None) -> None:
    trials = [{"arch": ARCH, "lr": float(lr)} for lr in np.linspace(*lrs, 12)]
    fixed = {"num_blocks": [1, 3], "hidden_features": [16, 32, 64], "num_convs": [1, 2]}
    space = {"out_channels": [8, 12, 16, 24, 32], "num_hidden": 1, "lr": LRS} | fixed
    folder = make_study(
        tmp_path / "a", num_trials=12, enqueue=trials, baseline=None, scheduler="none", space=space
    )
    for end in ("lower", "upper"):
        text = f"The best trials sit at the {end} edge of "
        lines = [line for line in warnings_of(folder) if line.startswith(text)]
        assert any("lr (5 of 5)" in line for line in lines) == (end == side)


def test_copies_of_one_value_are_no_edge(tmp_path: Path) -> None:
    """The sampler tries the best learning rate again, with something else changed."""
    decays = np.geomspace(1e-4, 1e-3, 12)
    trials = [
        {"arch": ARCH, "lr": 0.9 if i < 5 else 0.3, "weight_decay": float(decay)}
        for i, decay in enumerate(decays)
    ]
    fixed = {"num_blocks": [1, 3], "hidden_features": 16, "num_convs": [1, 2], "num_hidden": 1}
    space = {"out_channels": [8, 12, 16, 24, 32], "lr": LRS, "weight_decay": [1e-5, 1e-2]} | fixed
    folder = make_study(
        tmp_path / "a", num_trials=12, enqueue=trials, baseline=None, scheduler="none", space=space
    )
    (edge,) = (edge for edge in edges(load(folder)) if (edge.name, edge.side) == ("lr", "upper"))
    assert (edge.trials, edge.at_end) == (5, 5)
    assert 0.02 < edge.chance < 0.2, "as of a single trial"
    assert not any("lr (5 of 5)" in warning for warning in warnings_of(folder))


def test_an_edge_that_the_limits_of_the_space_make_is_no_warning(tmp_path: Path) -> None:
    """Where most networks that are small enough begin with 8 channels, so do most of the best."""
    fields = {"num_blocks": 2, "num_convs": 1, "out_channels": [8, 16, 32], "hidden_features": 16}
    space = {**fields, "num_hidden": 1, "lr": LRS, "dropout": 0.0}
    trials = [{"arch": ((1, 8), (1, 8)), "lr": float(lr)} for lr in np.linspace(0.4, 0.5, 12)]
    text = "The best trials sit at the lower edge of "
    for name, limit, expected in (("free", None, True), ("tight", 8_000, False)):
        limits = {} if limit is None else {"max_params": limit}
        folder = make_study(
            tmp_path / name,
            num_trials=12,
            enqueue=trials,
            baseline=None,
            scheduler="none",
            space=space | limits,
        )
        lines = [line for line in warnings_of(folder) if line.startswith(text)]
        assert any("out_channels_1 (5 of 5)" in line for line in lines) == expected


@pytest.mark.parametrize(
    ("data", "limit"),
    [({"classes": 100}, 170_000), ({"channels": 3}, 63_200)],
)
def test_edges_are_judged_by_what_the_studys_own_data_leaves_room_for(
    data: dict[str, int], limit: int, tmp_path: Path
) -> None:
    """Of grey images of ten classes, networks of 8, 16 and 32 channels are small enough; of 100
    classes those of 8 alone, of colour those of 8 and 16."""
    space = {"num_blocks": 1, "num_convs": 1, "out_channels": [8, 16, 32], "num_hidden": 0}
    space |= {"hidden_features": 16, "dropout": 0.0, "lr": LRS, "max_params": limit}
    trials = [{"arch": ((1, 8),), "lr": float(lr)} for lr in np.linspace(0.4, 0.5, 12)]
    folder = make_study(
        tmp_path / "a", num_trials=12, enqueue=trials, baseline=None, scheduler="none", space=space
    )
    text = "The best trials sit at the lower edge of out_channels_1 (5 of 5)"
    assert warned(folder, text)  # an older summary, which does not say of which data
    edit(folder, "summary.json", **{"classes": 10, "channels": 1} | data)
    assert not warned(folder, text)
    own = experiment(space=space).for_data(DataShape(**data)).search_space
    widths = [c.arch[0][1] for c in random_candidates(own, seed=0, count=300)]
    (edge,) = (e for e in edges(load(folder)) if e[:2] == ("out_channels_1", "lower"))
    assert edge.chance == pytest.approx((widths.count(8) / 300) ** 5)


@pytest.mark.parametrize("widths", [(8, 8), (8, 16), (16, 8)])
def test_the_smaller_network_of_a_lead_within_noise_is_named(
    widths: tuple[int, int], tmp_path: Path
) -> None:
    trials = [{"arch": ((1, w),), "lr": lr} for w, lr in zip(widths, (0.5, 0.501), strict=True)]
    folder = make_study(
        tmp_path / "a", num_trials=2, enqueue=trials, baseline=None, scheduler="none"
    )
    (line,) = (line for line in warnings_of(folder) if line.startswith("Trial 1 leads trial 0 by "))
    smaller = {(8, 16): 0, (16, 8): 1}.get(widths)
    end = "." if smaller is None else f", and trial {smaller} is the smaller network."
    assert line.endswith(f"their order may be chance{end}")


def test_warns_of_a_lead_within_noise(study: Path, full: Path) -> None:
    first, second = load(full).completed[:2]
    lead = f"Trial {first['number']} leads trial {second['number']} by "
    far = first["val_accuracy"] - second["val_accuracy"]
    images = 10 if far > 0.001 else 1
    edit(study, "summary.json", val_images=images)
    assert warned(study, lead)
    assert f"standard error on {images} validation images" in " ".join(warnings_of(study))
    edit(study, "summary.json", val_images=10**9)
    assert not warned(study, lead)
    metrics = json.loads((study / "champion" / "model.json").read_text())["metrics"]
    metrics |= {"test_accuracies": [0.1, 0.5, 0.9]}
    metrics |= {"test_accuracy_mean": 0.5, "test_accuracy_std": 0.4}
    edit(study, "champion/model.json", metrics=metrics)
    assert warned(study, lead)
    assert "twice the spread over 3 champion seeds" in " ".join(warnings_of(study))
    seeds = "Over 3 seeds: mean 0.5000, standard deviation 0.4000 (0.1000, 0.5000, 0.9000)."
    assert seeds in text_of(study)


def test_warns_of_a_search_score_above_the_test_score(study: Path) -> None:
    assert not warned(study, "The search score")
    best = load(study).summary["best_val_accuracy"]
    edit(study, "summary.json", champion={"test_accuracy": best - 0.03})
    assert warned(study, f"The search score {best:.4f} is 0.0300 above the test score")
    assert "the search has fitted the validation images" in " ".join(warnings_of(study))
    edit(study, "champion/model.json", epochs=3)
    assert "the champion had fewer epochs (3) than its trial (4)." in " ".join(warnings_of(study))
    # On a tenth of the images, noise explains as much
    metrics = json.loads((study / "champion" / "model.json").read_text())["metrics"]
    metrics["confusion"] = [[count // 10 for count in line] for line in metrics["confusion"]]
    edit(study, "champion/model.json", metrics=metrics)
    edit(study, "summary.json", val_images=1_000, dataset="sample")
    assert not warned(study, "The search score")
    assert warned(study, "Trained on the bundled sample")


@pytest.mark.parametrize(("lost", "kind"), [(4, "diverged"), (5, "diverged"), (1, "failed")])
def test_warns_of_lost_trials(tmp_path: Path, lost: int, kind: str) -> None:
    faults = {number: Fault(kind) for number in range(1, 1 + lost)}
    trials = [{"arch": ARCH, "lr": lr / 100} for lr in range(10, 29)]
    folder = make_study(tmp_path / "a", num_trials=20, enqueue=trials, faults=faults)
    assert warned(folder, f"{lost} of 20 trials {kind}") == (kind == "failed" or lost > 4)
    assert warned(folder, "0 of 20") is False


def test_warns_when_the_baseline_stands(study: Path) -> None:
    assert not warned(study, "Nothing beat the baseline")
    edit(study, "summary.json", baseline_val_accuracy=0.99)
    best = load(study).summary["best_val_accuracy"]
    assert warned(study, f"Nothing beat the baseline: best {best:.4f}, baseline 0.9900")


def test_one_network_alone_is_no_search(tmp_path: Path) -> None:
    fixed = {"num_blocks": 1, "num_convs": 1, "out_channels": 8, "hidden_features": 16}
    fixed |= {"num_hidden": 1, "dropout": 0.0, "lr": 0.1, "weight_decay": 0.0, "batch_norm": True}
    folder = make_study(tmp_path / "one", num_trials=1, space=fixed, baseline=[[1, 8]])
    best = load(folder).summary["best_val_accuracy"]
    edit(folder, "summary.json", champion={"test_accuracy": best - 0.03})
    (text,) = warnings_of(folder)
    assert text.endswith(
        f"the test score {best - 0.03:.4f}: so much do two trainings of this network differ."
    )


def test_every_function_of_a_page_is_a_figure_with_a_caption() -> None:
    for _, own in PAGES.values():
        for figure in own:
            check: Callable[..., Any] = figure
            title, _, look = (check.__doc__ or "").partition("\n\n")
            assert title
            assert look
