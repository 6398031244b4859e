"""A report of several objectives: the front as table and figure, the knee, the champions."""

import json
from pathlib import Path

import pytest
from fake_workers import experiment
from test_report import LRS, edit, make_study, text_of

from vgg_search.report.page import plots
from vgg_search.study.ranking import Ranking
from vgg_search.study.record import costs_of, read_trials, rows_of, value_of
from vgg_search.study.tables import front_rows
from vgg_search.terminal.progress import closing

OBJECTIVES = ("val_accuracy", "num_params")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    space = experiment().space | {"lr": LRS, "hidden_features": [16, 32, 64]}
    given = {"num_trials": 40, "objectives": OBJECTIVES, "space": space, "baseline": None}
    folder, ranking = make_study(tmp_path / "front", **given), Ranking(5, several=True)
    trials = read_trials(folder)
    for trial in trials:
        costs, state = costs_of(trial.user_attrs, OBJECTIVES), trial.user_attrs["state"]
        ranking.add(trial.number, state, rows_of(trial), value_of(trial), costs)
    edit(folder, "summary.json", front=front_rows(trials, ranking))
    return folder


def test_the_front_is_shown_with_its_knee(study: Path) -> None:
    front = json.loads((study / "summary.json").read_text())["front"]
    assert len(front) > 1
    [knee] = [row for row in front if row["knee"]]
    text, figure = text_of(study), plots(study)["accuracy_by_params"]
    assert "<h2>The front</h2>" in text
    assert f"<td>{knee['number']}, the knee</td><td>{knee['arch']}</td>" in text
    line = next(trace for trace in figure.data if trace.name == "front")
    assert {*line.text} == {f"{row['number']}: {row['arch']}" for row in front}
    [star] = [trace for trace in figure.data if trace.name == "knee"]
    assert [*star.x] == [knee["num_params"]]
    assert "Not drawn</h3>" not in text or "pareto" not in text


def test_the_last_lines_name_the_front(study: Path) -> None:
    summary = json.loads((study / "summary.json").read_text())
    summary |= {"warnings": [], "refused": 0, "champion": None}
    [line] = [x for x in closing(summary, study, "sqlite:///a.db").splitlines() if "front  " in x]
    assert f"{len(summary['front'])} trials, " in line
    assert "its knee is trial " in line


def test_more_champions_than_one_are_told(study: Path) -> None:
    summary = json.loads((study / "summary.json").read_text())
    first, second = (row["number"] for row in summary["front"][:2])
    told = {"test_accuracy": 0.5, "num_params": 77_777, "val_accuracy": 0.4321}
    champion = summary["champion"] | {"trial": first}
    edit(study, "summary.json", champion=champion, more_champions=[told | {"trial": second}])
    text = text_of(study)
    assert f"<td>champion 2, of trial {second}</td>" in text
    assert "77,777" in text
    assert "0.4321" in text
