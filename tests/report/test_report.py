"""The report: its numbers, its figures, its warnings, and what it says of poor studies."""

import csv
import json
import math
import random
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from plotly.offline import get_plotlyjs

from vgg_search.models.images import contact_sheet
from vgg_search.report.health import EPOCH_COLUMNS, TRIAL_COLUMNS, load
from vgg_search.report.landscape import importances
from vgg_search.report.page import FIGURES, ReportError, health, make_plots, make_report, plots
from vgg_search.report.plots import LOOKS
from vgg_search.space.arch import depth, describe, network_costs, width
from vgg_search.space.search_space import Space

CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
]  # fmt: skip
SPACE = {
    "num_blocks": [1, 3],
    "num_convs": [1, 2],
    "out_channels": [16, 32, 64],
    "hidden_features": {"choices": [64, 128, 256]},
    "num_hidden": 1,
    "batch_norm": [True, False],
    "dropout": [0.0, 0.5],
    "lr": [0.02, 0.5],
    "weight_decay": [1e-5, 2e-3],
}
MAX_EPOCHS = 9


def score(candidate: Any, epoch: int, noise: random.Random) -> float:
    """A made-up but plausible val_accuracy: deeper wants a smaller lr, wider is better."""
    off = math.log(candidate.lr / (0.3 / depth(candidate.arch)))
    top = 0.952 - 0.06 / depth(candidate.arch) - 0.4 / width(candidate.arch) - 0.006 * off**2
    top += 0.008 * candidate.batch_norm - 0.01 * abs(candidate.dropout - 0.2)
    return max(0.1, top - 0.25 * math.exp(-0.6 * epoch) + noise.gauss(0, 0.006))


def simulate(folder: Path, num_trials: int, seed: int = 0, workers: int = 2) -> None:
    """A run folder as a stop-ASHA study leaves it, its proposals from a real Optuna journal."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = random.Random(seed)
    space = Space(SPACE, 28, 128)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.create_study(
        storage=storage, study_name=folder.name, direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
    )  # fmt: skip
    baseline = ((1, 16), (1, 32), (2, 64))
    study.enqueue_trial(space.enqueued({"arch": baseline})[0])
    clock = {f"127.0.0.1-{100 + w}": 2.0 + w for w in range(workers)}
    rungs: dict[int, list[float]] = {1: [], 3: []}
    trials, epochs = [], []
    for number in range(num_trials):
        trial = study.ask()
        c = space.sample(trial)
        worker = min(clock, key=clock.__getitem__)
        started = clock[worker]
        flops = network_costs(c.arch, hidden_features=c.hidden_features, num_hidden=1)[1]
        seconds = 1 + flops / 1e7
        state, last, best, best_epoch, now = "completed", 0.0, 0.0, 0, started + 0.1
        for epoch in range(1, MAX_EPOCHS + 1):
            now += seconds * noise.uniform(0.9, 1.1)
            diverged = c.lr > 0.1 and depth(c.arch) > 3
            last = math.nan if diverged else score(c, epoch, noise)
            trial.report(last, epoch)
            epochs.append(
                [number, epoch, math.nan if diverged else 0.4, 0.9, 0.3, last, c.lr, seconds,
                 50_000 / seconds, now]
            )  # fmt: skip
            if diverged:
                state = "diverged"
                break
            if last > best:
                best, best_epoch = last, epoch
            if epoch in rungs:
                rungs[epoch].append(last)
                if last < sorted(rungs[epoch])[-math.ceil(len(rungs[epoch]) / 3)]:
                    state = "pruned"
                    break
        clock[worker] = now + 0.05
        trial.set_user_attr("state", state)
        done = state == "completed"
        final = optuna.trial.TrialState.COMPLETE if done else optuna.trial.TrialState.PRUNED
        study.tell(trial, last if done else None, state=final)
        trials.append(
            [number, state, describe(c.arch), depth(c.arch), width(c.arch), len(c.arch), c.lr,
             c.weight_decay, c.dropout, c.hidden_features, c.batch_norm, c.batch_size,
             network_costs(c.arch, hidden_features=c.hidden_features, num_hidden=1,
                          batch_norm=c.batch_norm)[0],
             flops, epoch, last, best, best_epoch, now - started, started, now, worker, ""]
        )  # fmt: skip
    write_table(folder / "trials.csv", TRIAL_COLUMNS, trials)
    write_table(folder / "epochs.csv", EPOCH_COLUMNS, epochs)
    done = [t for t in trials if t[1] == "completed"]
    top = max(done, key=lambda t: t[15]) if done else None
    config = {
        "name": folder.name, "seed": seed, "dataset": "fashion-mnist", "resolution": 28,
        "val_images": 10_000, "num_trials": num_trials, "max_epochs": MAX_EPOCHS, "batch_size": 128,
        "baseline": [list(block) for block in baseline], "space": SPACE,
        "tracking_uri": "http://me:secret@tracker/", "champion_epochs": 12,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    arch = [list(map(int, b.split("x"))) for b in top[2].split("-")] if top else None
    champion = {
        "val_accuracy": top[15], "test_accuracy": round(top[15] - 0.0031, 4), "num_params": top[12],
        "model_uri": "models:/vgg-search@champion", "run_id": "0" * 32,
    } if top else None  # fmt: skip
    states = ["completed", "pruned", "diverged", "infeasible", "failed", "interrupted"]
    end = max((t[20] for t in trials), default=0.0)
    summary = {
        "study": folder.name, "state": "completed", "dataset": "fashion-mnist",
        "num_trials": num_trials,
        "trials": {s: sum(t[1] == s for t in trials) for s in states},
        "epochs_trained": len(epochs), "best_val_accuracy": top[15] if top else None,
        "best_trial": top[0] if top else None, "best_arch": arch,
        "best_lr": top[6] if top else None,
        "baseline_val_accuracy": trials[0][15] if trials else None, "champion": champion,
        "wall_seconds": end + 60, "search_seconds": end, "startup_seconds_per_trial": 0.11,
        "slot_busy_fraction": 0.97, "images_per_second": 31_234.5,
        "versions": {"torch": "2.15.0", "optuna": optuna.__version__}, "commit": "abc1234",
        "seed": seed,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    if champion:
        rows = [[noise.choice([0, 0, 2, 9, 30]) for _ in CLASSES] for _ in CLASSES]
        for i, row in enumerate(rows):
            row[i] = 1000 - sum(row) + row[i]
        tests = [champion["test_accuracy"], champion["test_accuracy"] + 0.001]
        card = {
            "options": {"arch": arch}, "epochs": 12, "digest": "0123456789abcdef",
            "classes": CLASSES,
            "metrics": {"test_accuracy": tests[0], "test_accuracies": tests, "confusion": rows},
        }  # fmt: skip
        worst = [
            {"image": i, "class": "Shirt", "predicted": "Coat", "probability": 0.9}
            for i in range(7)
        ]
        card["metrics"]["worst"] = worst
        contact_sheet(np.zeros((7, 28, 28), np.uint8)).save(folder / "worst.png")
        (folder / "champion").mkdir(exist_ok=True)
        (folder / "champion" / "model.json").write_text(json.dumps(card))


def write_table(path: Path, columns: tuple[str, ...], rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of 80 trials, read-only by agreement; tests that edit take `study`."""
    folder = tmp_path_factory.mktemp("runs") / "full"
    simulate(folder, 80)
    return folder


@pytest.fixture
def study(full: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(full, tmp_path / "full"))


def edit(folder: Path, file: str, **values: Any) -> None:
    """Set columns of a table, or keys of a map."""
    path = folder / file
    if file.endswith(".csv"):
        pd.read_csv(path).assign(**values).to_csv(path, index=False)
    else:
        content = yaml.safe_load(path.read_text())
        path.write_text(json.dumps(content | values))


def told(folder: Path) -> str:
    """The report's text, without plotly's own."""
    return re.sub(r"<script>.*?</script>", "", make_report(folder).read_text(), flags=re.DOTALL)


def test_the_answer_holds_the_files_numbers(full: Path) -> None:
    summary, text = json.loads((full / "summary.json").read_text()), told(full)
    best, base = summary["best_val_accuracy"], summary["baseline_val_accuracy"]
    test = summary["champion"]["test_accuracy"]
    for number in (best, base, test):
        assert f"{number:.4f}" in text
    for gap in (best - base, best - test):
        assert f"<b>{gap:+.4f}</b>" in text
    assert f"{summary['champion']['num_params']:,}" in text
    assert text.index("The champion reaches") < text.index("Before you trust it")
    assert text.index("Before you trust it") < text.index("Evidence") < text.index("Do it again")
    for fact in (
        "abc1234",
        "2.15.0",
        "0123456789abcdef",
        "num_blocks: [1, 3]",
        "--name full-again",
    ):
        assert fact in text


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

    before = content()
    before.pop(study / "report.html", None)
    path = make_report(study)
    after = content()
    assert path == study / "report.html"
    del after[path]
    assert after == before


def test_text_from_files_is_escaped(study: Path) -> None:
    edit(study, "trials.csv", error="<script>alert(1)</script>")
    assert "<script>alert" not in make_report(study).read_text()


def test_every_figure_is_drawn_from_a_full_study(full: Path) -> None:
    drawn = plots(full)
    assert list(drawn) == [draw.__name__ for draw in FIGURES]
    for name, figure in drawn.items():
        assert len(figure.data), name
        for trace in figure.data:
            values = {"heatmap": "z", "image": "source"}.get(trace.type, "y")
            assert len(trace[values]), name
        assert figure.layout.title.text, name
        assert figure.layout.meta.endswith("."), name
        json.loads(figure.to_json())


def test_each_figure_is_a_page_of_its_own(study: Path) -> None:
    pages = sorted(make_plots(study).iterdir())
    assert [page.stem for page in pages] == sorted(draw.__name__ for draw in FIGURES)
    for page in pages:
        assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//|@import", page.read_text())
        assert page.stat().st_size < 2_500_000


def test_the_worst_images_have_captions(full: Path) -> None:
    figure = plots(full)["worst_images"]
    assert figure.data[1].text[0] == "Shirt<br>as Coat"
    assert len(set(zip(figure.data[1].x, figure.data[1].y, strict=True))) == 7


def test_states_have_one_colour(full: Path) -> None:
    for name, figure in plots(full).items():
        for trace in figure.data:
            if trace.name in LOOKS:
                assert trace.marker.color == LOOKS[trace.name][0], name


def test_best_so_far_steps_up_to_the_best(full: Path) -> None:
    run = load(full)
    for name in ("incumbent_by_time", "incumbent_by_epochs"):
        figure = plots(run)[name]
        (line,) = [trace for trace in figure.data if trace.name == "best"]
        assert line.line.shape == "hv"
        assert all(a >= b for a, b in pairwise(line.y))  # an error falls
        assert 1 - line.y[-1] == pytest.approx(run.summary["best_val_accuracy"])
        (base,) = figure.layout.shapes
        assert base.line.dash == "dot"
        assert 1 - base.y0 == pytest.approx(run.summary["baseline_val_accuracy"])
    assert line.x[-1] == len(run.epochs)


def test_pareto_front_is_what_nothing_beats(full: Path) -> None:
    run = load(full)
    rows = run.completed
    (front,) = [t for t in plots(run)["accuracy_by_params"].data if t.name == "Pareto front"]
    unbeaten = {
        (row.num_params, row.val_accuracy)
        for row in rows.itertuples()
        if not (
            (rows["num_params"] <= row.num_params) & (rows["val_accuracy"] > row.val_accuracy)
            | (rows["num_params"] < row.num_params) & (rows["val_accuracy"] == row.val_accuracy)
        ).any()
    }
    assert len(front.x) == len(unbeaten)
    for params, accuracy in unbeaten:
        assert (params, pytest.approx(accuracy)) in zip(front.x, 1 - front.y, strict=True)


@pytest.mark.parametrize("name", ["lr", "num_blocks", "dropout"])
def test_importance_finds_what_the_score_is_made_of(full: Path, name: str) -> None:
    run = load(full)
    shares = importances(run, run.values[name].astype(float))
    assert max(shares, key=shares.__getitem__) == name
    assert sum(shares.values()) == pytest.approx(1)


def test_a_large_study_draws_some_curves(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vgg_search.report.plots.MOST_LINES", 10)
    figure = plots(full)["learning_curves"]
    assert figure.layout.meta.endswith("Drawn: one trial in 8, from best to worst.")
    best = load(full).epochs["val_accuracy"].max()
    assert min(y for t in figure.data for y in t.y if y) == pytest.approx(1 - best)
    assert {trace.name for trace in figure.data} == {"completed", "pruned"}


def test_a_pause_parts_a_bar_of_the_timeline(study: Path) -> None:
    epochs = pd.read_csv(study / "epochs.csv")
    bars = sum(len(trace.y) for trace in plots(study)["timeline"].data)
    assert bars == epochs["number"].nunique()
    late = (epochs["number"] == 0) & (epochs["epoch"] > 3)
    edit(study, "epochs.csv", time=epochs["time"] + 1000 * late)
    assert sum(len(trace.y) for trace in plots(study)["timeline"].data) == bars + 1


@pytest.mark.parametrize("column", ["val_accuracy", "worker", "num_params"])
def test_a_missing_column_of_trials(study: Path, column: str) -> None:
    pd.read_csv(study / "trials.csv").drop(columns=column).to_csv(study / "trials.csv")
    with pytest.raises(ReportError, match=f"trials.csv must have column '{column}', got only"):
        make_report(study)


def test_a_missing_column_of_epochs(study: Path) -> None:
    pd.read_csv(study / "epochs.csv").drop(columns="time").to_csv(study / "epochs.csv")
    with pytest.raises(ReportError, match=r"epochs\.csv must have column 'time', got only"):
        plots(study)


def test_a_sampled_dimension_without_column(study: Path) -> None:
    edit(study, "config.yaml", space=SPACE | {"num_hidden": [0, 2]})
    with pytest.raises(ReportError, match=r"trials\.csv must have column 'num_hidden'"):
        make_report(study)


@pytest.mark.parametrize(
    "file", ["config.yaml", "summary.json", "trials.csv", "epochs.csv", "champion/model.json"]
)
def test_a_missing_file(study: Path, file: str) -> None:
    (study / file).unlink()
    with pytest.raises(ReportError, match=f"cannot read {file} in "):
        make_report(study)


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("summary.json", "{}", r"summary\.json must have key 'study'"),
        ("summary.json", "[]", r"summary\.json must be a map, got \[\]"),
        ("summary.json", "{", r"summary\.json in .* cannot be parsed"),
        ("config.yaml", "space: {}", r"config\.yaml must have key 'resolution', got only space"),
        ("champion/model.json", '{"options": {}}', r"model\.json must have key 'metrics'"),
        ("trials.csv", "", r"trials\.csv in .* cannot be parsed"),
    ],
)
def test_a_broken_file(study: Path, file: str, text: str, match: str) -> None:
    (study / file).write_text(text)
    with pytest.raises(ReportError, match=match):
        make_report(study)


def test_broken_values(study: Path) -> None:
    edit(study, "trials.csv", lr="fast")
    with pytest.raises(ReportError, match=r"trials\.csv column 'lr' must hold numbers only"):
        make_report(study)
    edit(study, "trials.csv", lr=0.1, state="lost")
    with pytest.raises(ReportError, match=r"state must be one of completed, .*, got 'lost'"):
        make_report(study)
    edit(study, "trials.csv", state="pruned")
    edit(study, "config.yaml", space={"num_blocks": 0})
    with pytest.raises(ReportError, match=r"config\.yaml: space must say lr"):
        make_report(study)


@pytest.mark.parametrize("num_trials", [1, 2, 10])
def test_small_studies(tmp_path: Path, num_trials: int) -> None:
    simulate(tmp_path / "small", num_trials)
    text = told(tmp_path / "small")
    assert "Not drawn" in text
    assert f"it takes 20 trials with a score, got {num_trials}" in text
    assert {"incumbent_by_time", "learning_curves", "timeline"} <= set(plots(tmp_path / "small"))


@pytest.mark.parametrize("header", [True, False])
def test_a_study_without_trials(tmp_path: Path, header: bool) -> None:
    simulate(tmp_path / "none", 0)
    edit(tmp_path / "none", "summary.json", state="failed")
    if not header:
        (tmp_path / "none" / "trials.csv").write_text("number\n")
    assert "There is no answer" in told(tmp_path / "none")
    assert plots(tmp_path / "none") == {}
    assert "The study is failed" in health(tmp_path / "none")[0]


def test_an_interrupted_study_without_completed_trials(study: Path) -> None:
    states = pd.read_csv(study / "trials.csv")["state"].replace("completed", "interrupted")
    edit(study, "trials.csv", state=states)
    edit(
        study, "summary.json", state="interrupted", champion=None, best_val_accuracy=None,
        best_trial=None, best_arch=None,
    )  # fmt: skip
    text = told(study)
    assert "There is no answer: no trial was completed" in text
    assert "The baseline was interrupted in epoch 9, at " in text
    assert "The search took" not in text
    assert "python -m vgg_search.run --resume full    #" in text
    edit(study, "config.yaml", storage_path="/data/runs")
    assert "--resume full --storage-path /data/runs    #" in told(study)
    assert "there is no champion" in text
    assert [warning.split(":")[0] for warning in health(study)[:2]] == [
        "The study is interrupted", "No trial was completed",
    ]  # fmt: skip


def test_a_baseline_that_was_stopped_early_is_not_compared_with(study: Path) -> None:
    states = pd.read_csv(study / "trials.csv")["state"]
    states[0] = "pruned"
    edit(study, "trials.csv", state=states)
    assert "too early to compare with it" in told(study)
    assert "The search took" not in told(study)


def test_no_champion(study: Path) -> None:
    edit(study, "summary.json", champion=None)
    assert "no champion was trained" in told(study)


def test_baseline_null(study: Path) -> None:
    edit(study, "summary.json", baseline_val_accuracy=None)
    assert "no score of a baseline" in told(study)
    assert not plots(study)["learning_curves"].layout.shapes


def warned(folder: Path, start: str) -> bool:
    return any(warning.startswith(start) for warning in health(folder))


def test_warns_of_a_small_budget(study: Path) -> None:
    start = "The budget is small for the space: 80 trials for 12 sampled dimensions"
    assert warned(study, start)
    fixed = {"num_blocks": 3, "num_convs": 2, "hidden_features": 64, "dropout": 0.1}
    edit(study, "config.yaml", space=SPACE | fixed)  # 6 dimensions are left
    assert not warned(study, "The budget is small")


def test_warns_of_edges(study: Path) -> None:
    trials = pd.read_csv(study / "trials.csv")
    edit(study, "trials.csv", lr=trials["lr"].clip(0.05, 0.2), arch="2x32", num_blocks=2)
    assert not warned(study, "The best trials sit")
    edit(study, "trials.csv", lr=0.5)
    assert warned(study, "The best trials sit at the upper edge of lr (15 of 15): widen it.")
    edit(study, "trials.csv", lr=0.02, arch="2x16", dropout=0.0)  # dropout ends at 0 by nature
    edges = "out_channels_1 (15 of 15)"
    assert warned(study, f"The best trials sit at the lower edge of lr (15 of 15), {edges}: widen")


def test_warns_of_a_lead_within_noise(study: Path) -> None:
    trials = pd.read_csv(study / "trials.csv")
    best = trials["number"] == json.loads((study / "summary.json").read_text())["best_trial"]
    edit(study, "trials.csv", val_accuracy=trials["val_accuracy"].where(~best, 0.99))
    lead = f"Trial {trials['number'][best].item()} leads trial"
    assert not warned(study, lead)
    card = json.loads((study / "champion" / "model.json").read_text())["metrics"]
    wide = card | {"test_accuracies": [0.9, 0.95, 0.99]}
    edit(study, "champion/model.json", metrics=wide)
    assert warned(study, lead)
    assert "twice the spread over 3 champion seeds" in " ".join(health(study))


def test_warns_of_a_search_score_above_the_test_score(study: Path) -> None:
    assert not warned(study, "The search score")
    edit(study, "summary.json", champion={"test_accuracy": 0.92})
    assert warned(study, "The search score 0.9498 is 0.0298 above the test score 0.9200")
    edit(study, "champion/model.json", epochs=MAX_EPOCHS - 1)
    assert "the champion had fewer epochs (8) than its trial (9)." in " ".join(health(study))
    # On the small sample, noise explains twice as much.
    edit(study, "summary.json", champion={"test_accuracy": 0.935}, dataset="sample")
    assert not warned(study, "The search score")
    assert warned(study, "Trained on the bundled sample")


@pytest.mark.parametrize(("lost", "state"), [(16, "diverged"), (17, "diverged"), (1, "failed")])
def test_warns_of_lost_trials(study: Path, lost: int, state: str) -> None:
    trials = pd.read_csv(study / "trials.csv")
    states = trials["state"].replace("diverged", "pruned")
    states[states[states == "pruned"].index[:lost]] = state
    edit(study, "trials.csv", state=states)
    assert warned(study, f"{lost} of 80 trials {state}") == (state == "failed" or lost > 16)
    assert warned(study, "0 of 80") is False


def test_warns_when_the_baseline_stands(study: Path) -> None:
    assert not warned(study, "Nothing beat the baseline")
    edit(study, "summary.json", baseline_val_accuracy=0.99)
    assert warned(study, "Nothing beat the baseline: best 0.9498, baseline 0.9900")
