"""Studies that an older commit (d1e9672) recorded: they replay, and one that it began goes on.

`recorded/a` was killed with -9 and resumed there, `recorded/b` ran to its end. `begun/a` is the
run folder of `a` right after the kill, as small as it can be: without the best checkpoints, for
which the test puts files of the same names, and without the last one of trial 11, whose first epoch
was not in the record yet. Of its outbox only the tracker's address was changed, to a relative one.
All are of the bundled sample.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from drivers import trial_runs
from replay import main, replay

from vgg_search.study.record import read_trials, rows_of

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("study", "agreed"),
    [
        ("a", {"proposals": 21, "epochs": 26, "completed": 6, "pruned": 8, "infeasible": 7}),
        ("b", {"proposals": 23, "epochs": 28, "completed": 7, "pruned": 7, "infeasible": 9}),
    ],
)
def test_a_recorded_study_is_derived_again(study: str, agreed: dict[str, int]) -> None:
    counts = replay(HERE / "recorded" / study)
    assert agreed.items() <= counts.items()


def test_a_study_that_was_killed_is_derived_as_far_as_it_goes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([str(HERE / "begun" / "a")]) == 0
    assert "9 epochs" in capsys.readouterr().out


@pytest.mark.slow
def test_a_study_that_an_older_commit_began_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    shutil.copytree(HERE / "begun" / "a", folder)
    before = {trial.number: rows_of(trial) for trial in read_trials(folder)}
    for number in (number for number, rows in before.items() if rows):
        best = folder / "trials" / str(number) / "best"
        best.mkdir(parents=True)
        (best / "model.json").write_text("{}")
    command = [sys.executable, "-m", "vgg_search.run", "--resume", "a", "--quiet"]
    resumed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((folder / "summary.json").read_text())["state"] == "completed"

    trials = read_trials(folder)
    assert all(trial.state.is_finished() for trial in trials)
    for trial in trials:
        rows = rows_of(trial)
        assert rows[: len(before.get(trial.number, []))] == before.get(trial.number, [])
        until = trial.user_attrs.get("until", 0)
        assert [row["epoch"] for row in rows] == [*range(1, until + 1)]  # none, if untrained
    lines = map(json.loads, (folder / "study.journal").read_text().splitlines())
    written = Counter(
        (line["trial_id"], key)
        for line in lines
        for key in line.get("user_attr", {})
        if key.startswith("epoch_")
    )
    assert set(written.values()) == {1}
    assert replay(folder)["epochs"] == len(written)
    numbers = Counter(run.data.tags["trial_number"] for run in trial_runs(tmp_path))
    assert numbers == {str(trial.number): 1 for trial in trials if rows_of(trial)}
