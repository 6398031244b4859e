"""A real search for several objectives: killed, gone on with, replayed, and another one crowned."""

import json
from pathlib import Path

import pytest
from drivers import FLAGS, live, search, trial_runs, wait_for
from replay import replay

from vgg_search.storage.checksums import read_cards
from vgg_search.study.record import read_study, rows_of

START = " ".join(FLAGS).replace("champion-epochs 0", "champion-epochs 1").split()
START += ["--objectives", "val_accuracy,num_params", "--champions", "2", "--scheduler", "asha"]


@pytest.mark.slow
def test_a_front_is_searched_for_and_another_network_of_it_is_crowned(tmp_path: Path) -> None:
    with search(tmp_path, *START) as driver:
        wait_for(tmp_path, lambda ts: sum(len(rows_of(t)) for t in ts) >= 4 and live(ts))
        driver.kill()
    with search(tmp_path, "--resume", "study") as driver:
        _, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err
    folder = tmp_path / "runs" / "study"
    assert replay(folder)["completed"] >= 1
    study, summary = read_study(folder), json.loads((folder / "summary.json").read_text())
    assert study
    front = {row["number"]: row for row in summary["front"]}
    assert front.keys() == {trial.number for trial in study.best_trials}
    assert [row["knee"] for row in front.values()].count(True) == 1
    marks = {
        int(run.data.tags["trial_number"]): run.data.tags["on_front"]
        for run in trial_runs(tmp_path)
        if "on_front" in run.data.tags
    }
    assert {number for number, mark in marks.items() if mark == "True"} == front.keys()
    assert ", the knee</td>" in (folder / "report.html").read_text("utf-8")
    told = [summary["champion"], *summary.get("more_champions", [])]
    assert [card["trial"] for card in read_cards(folder)] == [row["trial"] for row in told]
    assert told[0]["trial"] == summary["best_trial"]

    least = summary["front"][-1]["num_params"]
    with search(tmp_path, "--resume", "study", "--pick", f"num_params<={least}") as driver:
        out, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err
    assert "champion  test_accuracy" in out
    again = json.loads((folder / "summary.json").read_text())["champion"]
    assert again["num_params"] <= least
    assert read_cards(folder)[0]["trial"] == again["trial"]
