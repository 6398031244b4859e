"""The search from Python: what it gives, what it raises, and that it leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vgg_search
from vgg_search.engine.environment import RAY_ENVIRONMENT
from vgg_search.study.study import Study

HEAD = """
import logging, os, signal, sys, threading
from pathlib import Path
import vgg_search

def tiny(**fields):
    given = dict(dataset="sample", train_images=600, val_images=200, num_trials=3, max_epochs=2,
                 champion_epochs=1, time_budget=None, storage_path=sys.argv[1] + "/runs",
                 tracking_uri=f"sqlite:///{sys.argv[1]}/mlflow.db")
    return given | fields

def state():
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    handlers += [*logging.getLogger().handlers, logging.getLogger().level]
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    threads = sorted(t.name for t in threading.enumerate() if not t.daemon)
    return dict(os.environ), handlers, children, threads
"""


def run(script: str, folder: Path, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", HEAD + script, str(folder)]
    # The second is of this process's MLflow
    ours = {*RAY_ENVIRONMENT, "_MLFLOW_TELEMETRY_SESSION_ID"}
    env = {name: text for name, text in os.environ.items() if name not in ours}
    done = subprocess.run(
        command,
        cwd=cwd or folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_names_of_the_package() -> None:
    assert {"search", "load", "Config"} <= set(dir(vgg_search))
    with pytest.raises(AttributeError, match=r"^module 'vgg_search' has no attribute 'serach'$"):
        vgg_search.serach  # noqa: B018


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"num_trials": 0}, r"^num_trials must be >= 1, got 0$"),
        ({"num_trial": 3}, r"^unknown field 'num_trial'; did you mean num_trials\?$"),
        ({"resume": "nobody"}, r"^no study named nobody in "),
        ({"space": {"num_blocks": 9, "lr": 0.1, "out_channels": 8}}, r"num_blocks must be <= 4"),
    ],
)
def test_bad_input_is_raised_and_nothing_is_written(
    fields: dict[str, object], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(vgg_search.ConfigError, match=text):
        vgg_search.search(**fields)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_search_that_was_stopped_before_its_first_trial_has_empty_tables(tmp_path: Path) -> None:
    study = Study(tmp_path, vgg_search.Config(baseline=None))
    study.open()
    study.release()
    result = vgg_search.Result(tmp_path, {"champion": None})
    assert result.trials.empty
    assert result.epochs.empty
    assert result.trials.index.name == "number"


SCRIPT = """
before = state()
result = vgg_search.search(quiet=True, **tiny())
assert state() == before, (before, state())
assert result.summary["state"] == "completed", result.summary
trials = result.trials
assert trials.index.name == "number" and {"arch", "lr", "val_accuracy", "state"} <= set(trials)
trained = trials[~trials["state"].isin(["infeasible", "duplicate"])]
assert len(trained) == 3, trained
assert len(result.epochs) == result.summary["epochs_trained"]
assert result.folder.parent == Path(sys.argv[1], "runs") and (result.folder / "log.txt").exists()
import torch
logits = result.champion(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
assert logits.shape == (2, 10)
assert "learning_curves" in result.figures

# Once more in the same process, in a thread, which has no signal handlers; then on from there
found = []
def more():
    found.append(vgg_search.search(vgg_search.Config(**tiny(name="b")), quiet=True, seed=1))
thread = threading.Thread(target=more)
thread.start(); thread.join()
assert found[0].summary["state"] == "completed" and found[0].folder.name == "b"
assert state() == before, (before, state())
on = vgg_search.search(resume="b", quiet=True, num_trials=4, storage_path=sys.argv[1] + "/runs")
assert on.summary["num_trials"] == 4, on.summary

# All trials fail: no trial is completed
try:
    huge = dict(num_blocks=1, out_channels=8, hidden_features=2**40, lr=0.1)
    vgg_search.search(quiet=True, **tiny(name="huge", baseline=None, space=huge))
except vgg_search.SearchError as error:
    assert "no trial was completed" in str(error), error
else:
    raise AssertionError("it failed")
"""


@pytest.mark.slow
def test_a_script_gets_tables_figures_and_a_network_and_keeps_its_process(tmp_path: Path) -> None:
    done = run(SCRIPT, tmp_path)
    assert (done.stdout, done.stderr) == ("", "")


OWN_RAY = """
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
result = vgg_search.search(**tiny())
assert result.summary["state"] == "completed", result.summary
assert ray.is_initialized() and ray.get(ray.remote(lambda: 1).remote()) == 1
"""


@pytest.mark.slow
def test_a_ray_that_is_initialised_is_used_and_left(tmp_path: Path) -> None:
    done = run(OWN_RAY, tmp_path)
    assert "champion  test_accuracy" in done.stdout, "it tells what came out"
    assert "USING THE BUNDLED SAMPLE" in done.stderr


@pytest.mark.slow
def test_it_runs_from_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    """/proc takes no file, from root neither."""
    run("vgg_search.search(quiet=True, **tiny())", tmp_path, cwd=Path("/proc"))
    assert (tmp_path / "mlflow.db").exists()


INTERRUPTED = """
from vgg_search.study.record import read_trials

def interrupt():
    import time
    while True:
        time.sleep(0.2)
        try:
            if any(t.intermediate_values for t in read_trials(Path(sys.argv[1], "runs", "i"))):
                return os.kill(os.getpid(), signal.SIGINT)
        except Exception:
            pass

threading.Thread(target=interrupt, daemon=True).start()
before = state()[:2]
result = vgg_search.search(quiet=True, **tiny(name="i", num_trials=40, max_epochs=4))
assert result.summary["state"] == "interrupted", result.summary
assert state()[:2] == before
assert "running" not in set(result.trials["state"])
"""


@pytest.mark.slow
def test_ctrl_c_ends_the_search_and_not_the_process(tmp_path: Path) -> None:
    run(INTERRUPTED, tmp_path)
