"""Real nodes on this machine: joined, looked at, lost, and gone on without."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import MlflowServer
from mlflow import MlflowClient
from mlflow.entities import ViewType
from nodes import EXPERIMENTS, LocalNodes, s3_server
from optuna.trial import FrozenTrial

import vgg_search
from vgg_search.config import Config
from vgg_search.data.splits import load_splits
from vgg_search.engine.environment import THREADS
from vgg_search.study.record import candidate_of, read_trials, rows_of
from vgg_search.training.model import build
from vgg_search.training.recipe import recipe_of
from vgg_search.training.train import Resident, Training

pytestmark = pytest.mark.slow
pytest.importorskip("aiohttp_cors", reason="a cluster needs the extra 'cluster'")

PACKAGE = Path(vgg_search.__file__).parent
RAY = str(Path(sys.executable).parent / "ray")
# Epochs long enough for both nodes to have a trial: a worker takes seconds to start
SMALL = {
    "dataset": "sample",
    "val_images": 500,
    "num_trials": 5,
    "max_epochs": 2,
    "champion_epochs": 1,
    "top_k": 2,
    "time_budget": "null",
    "baseline": "null",
    "precision": "fp32",
}
SPACE = {"num_blocks": 2, "num_convs": [1, 2], "out_channels": [16, 24, 32], "hidden_features": 64}
SPACE |= {"num_hidden": 1, "dropout": 0.0, "lr": [0.02, 0.1]}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head without cores, and two nodes of one core; all of them can reach a bucket."""
    with s3_server() as bucket, LocalNodes(tmp_path_factory.mktemp("nodes")) as on:
        on.environment |= bucket
        for number in range(3):
            on.start(num_cpus=min(number, 1))
        yield on


def flags(**fields: Any) -> list[str]:
    given = SMALL | {"space": json.dumps(SPACE)} | fields
    return [text for k, v in given.items() for text in (f"--{k.replace('_', '-')}", str(v))]


def start(folder: Path, nodes: Any, *argv: str, **environment: str) -> subprocess.Popen[str]:
    """A driver in `folder`; its output goes to files there."""
    command = [sys.executable, "-m", "vgg_search.run", "--quiet", *argv]
    # Where the package is does not follow from where the driver runs
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    given = os.environ | nodes.environment | {"PYTHONPATH": path} | environment
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        return subprocess.Popen(command, cwd=folder, env=given, stdout=out, stderr=err, text=True)


def finish(driver: subprocess.Popen[str], folder: Path) -> tuple[int, str]:
    """Exit code and what was said on stderr, but for the sample's line."""
    try:
        code = driver.wait(400)
    finally:
        driver.kill()
    said = (folder / "err").read_text().splitlines()
    return code, "\n".join(line for line in said if "BUNDLED SAMPLE" not in line)


def placed(trials: list[FrozenTrial]) -> dict[str, list[int]]:
    """Numbers of the trials of each worker."""
    found: dict[str, list[int]] = {}
    for trial in trials:
        for row in rows_of(trial):
            numbers = found.setdefault(row["worker"], [])
            if trial.number not in numbers:
                numbers.append(trial.number)
    return found


def test_a_driver_elsewhere_takes_its_package_along(nodes: Any, tmp_path: Path) -> None:
    """The nodes have no such package: this one differs from what is installed."""
    there = tmp_path / "elsewhere"
    shutil.copytree(PACKAGE, there / "vgg_search", ignore=shutil.ignore_patterns("__pycache__"))
    with (there / "vgg_search" / "config.py").open("a") as file:
        file.write("# another version\n")
    paths = os.pathsep.join([str(there), os.environ.get("PYTHONPATH", "")])
    driver = start(
        tmp_path,
        nodes,
        *flags(name="a", address=nodes.address),
        PYTHONPATH=paths,
        RAY_ADDRESS="127.0.0.9:1",  # the flag goes first
    )
    code, said = finish(driver, tmp_path)
    assert (code, said) == (0, "")
    summary = json.loads((tmp_path / "runs" / "a" / "summary.json").read_text())
    assert summary["champion"]["test_accuracy"] > 0.3
    trials = read_trials(tmp_path / "runs" / "a")
    assert len(placed(trials)) == 2, placed(trials)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"a"}  # no probe is left
    assert not list((tmp_path / "runs" / "a" / "trials").glob("champion*"))


def test_a_job_is_submitted(nodes: Any, tmp_path: Path) -> None:
    run = ["python", "-m", "vgg_search.run", "--quiet", *flags(name="b", num_trials=2)]
    command = [RAY, "job", "submit", "--working-dir", ".", "--", *run]
    command += ["--storage-path", str(tmp_path), "--tracking-uri", f"sqlite:///{tmp_path}/m.db"]
    done = subprocess.run(
        command,
        cwd=PACKAGE.parent,
        env=os.environ | nodes.environment | {"RAY_ADDRESS": nodes.dashboard},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["state"] == "completed"


def test_an_unsound_node_is_named_and_left_out_if_asked(nodes: Any, tmp_path: Path) -> None:
    """The third node has another torch, by what its packages say, and looks at another disk."""
    bad = nodes.start(PYTHONPATH=other_torch(tmp_path))
    try:
        code, said = finish(start(tmp_path, nodes, *flags(name="c")), tmp_path)
        assert code == 2
        first, last = said.splitlines()
        assert first.startswith(f"vgg-search: node {bad}: torch 1.2.3, the driver has ")
        assert last == (
            "vgg-search: 1 of 4 nodes cannot take part; --skip-bad-nodes true starts on the other 3"
        )
        assert not (tmp_path / "runs").exists()
        skipping = flags(name="c", skip_bad_nodes="true", num_trials=2, champion_epochs=0)
        code, said = finish(start(tmp_path, nodes, *skipping), tmp_path)
        assert (code, said) == (0, first)
        assert len(placed(read_trials(tmp_path / "runs" / "c"))) <= 2
    finally:
        nodes.end(bad)


def test_a_cluster_that_asks_for_no_token_is_joined_only_if_asked(tmp_path: Path) -> None:
    disabled = {"RAY_AUTH_MODE": "disabled"}
    with LocalNodes(tmp_path) as on:
        ip = on.start(num_cpus=1, **disabled)
        code, said = finish(start(tmp_path, on, *flags(name="e"), **disabled), tmp_path)
        line = f"got {on.address}: whoever reaches {ip} can run programs there; start it with "
        assert code == 2
        assert said.startswith("vgg-search: address must be a Ray cluster that asks for a token, ")
        assert line in said
        assert len(said.splitlines()) == 1
        assert not (tmp_path / "runs").exists()
        joining = flags(name="e", insecure_cluster="true", num_trials=1, champion_epochs=0)
        assert finish(start(tmp_path, on, *joining, **disabled), tmp_path) == (0, "")


def test_a_driver_without_the_token_is_told_how_to_name_it(nodes: Any, tmp_path: Path) -> None:
    none = {"RAY_AUTH_TOKEN_PATH": "", "HOME": str(tmp_path)}
    code, said = finish(start(tmp_path, nodes, *flags(name="f"), **none), tmp_path)
    assert code == 2
    assert said == (
        f"vgg-search: address must be a Ray cluster that answers, got {nodes.address}: Token "
        "authentication is enabled but no authentication token was found; of one that asks for "
        "a token RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE tell it"
    )


# ---- what comes and goes while a search runs ---------------------------------------------------


def wait_for(condition: Callable[[], Any], driver: subprocess.Popen[str], folder: Path) -> Any:
    """What `condition` gives, once it is true; the driver is to be alive until then."""
    until = time.monotonic() + 240
    while not (found := condition()):
        assert driver.poll() is None, (folder / "err").read_text()
        assert time.monotonic() < until, (folder / "err").read_text()
        time.sleep(0.1)
    return found


def so_far(study: Path) -> list[FrozenTrial]:
    with contextlib.suppress(ValueError, KeyError):  # not begun, or in the middle of a line
        return read_trials(study)
    return []


def node_of(nodes: Any, worker: str) -> str | None:
    """The address of the node on which a worker runs; None if it is gone."""
    with contextlib.suppress(ProcessLookupError):
        session = os.getsid(int(worker.rpartition(":")[2]))
        return next((ip for ip, node in nodes.nodes.items() if node.pid == session), None)
    return None


def at_work(nodes: Any, study: Path, seen: dict[str, str]) -> set[str]:
    """Nodes of which a worker has told a row so far; `seen` remembers workers and their nodes."""
    for worker in placed(so_far(study)).keys() - seen.keys():
        if ip := node_of(nodes, worker):
            seen[worker] = ip
    return set(seen.values())


def test_nodes_come_and_go_and_nothing_is_lost(nodes: Any, tmp_path: Path) -> None:
    """One is killed, and one joins. Trials take a second, less than a worker's start."""
    space = json.dumps(SPACE | {"num_blocks": 1, "num_convs": 1})
    # More trials than can be done meanwhile
    work = {"max_epochs": 30, "scheduler": "none", "train_images": 1000, "champion_epochs": 0}
    given = flags(name="d", space=space, num_trials=5000, **work)
    driver, study = start(tmp_path, nodes, *given), tmp_path / "runs" / "d"
    seen: dict[str, str] = {}

    def half_done_on(node: str) -> bool:
        at_work(nodes, study, seen)
        live = [rows_of(t) for t in so_far(study) if "state" not in t.user_attrs]
        return any(0 < len(rows) < 20 and seen.get(rows[-1]["worker"]) == node for rows in live)

    try:
        first, second = nodes.running[1:]
        wait_for(lambda: at_work(nodes, study, seen) >= {first, second}, driver, tmp_path)
        wait_for(lambda: half_done_on(second), driver, tmp_path)
        nodes.end(second)
        third = nodes.start()  # as it was
        wait_for(lambda: third in at_work(nodes, study, seen), driver, tmp_path)
        driver.terminate()
        code, said = finish(driver, tmp_path)
        assert code == 143, said
        (tmp_path / "again").mkdir()
        more = ["--num-trials", str(len(read_trials(study))), "--storage-path", str(study.parent)]
        driver = start(tmp_path / "again", nodes, "--resume", "d", *more)
        code, said = finish(driver, tmp_path / "again")
    finally:
        driver.kill()
    assert code == 0, said
    trials = read_trials(study)
    assert {trial.user_attrs["state"] for trial in trials} <= {"completed", "diverged", "duplicate"}
    moved = 0
    for trial in trials:
        rows = rows_of(trial)
        assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
        moved += len({row["worker"] for row in rows}) > 1
    assert moved >= 1  # went on elsewhere, from its checkpoint
    assert set(seen.values()) == {first, second, third}


def test_workers_have_what_tune_hands_on_of_the_drivers_environment(
    nodes: Any, tmp_path: Path
) -> None:
    """Credentials and Ray Train's settings, which the nodes do not have of their own."""
    given = {"AWS_SESSION_TOKEN": "the driver's", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "61"}
    more = flags(name="i", num_trials=2, max_epochs=30, scheduler="none", champion_epochs=0)
    driver, study = start(tmp_path, nodes, *more, **given), tmp_path / "runs" / "i"
    try:
        wait_for(lambda: at_work(nodes, study, {}), driver, tmp_path)
        for worker in placed(so_far(study)):
            file = Path("/proc") / worker.rpartition(":")[2] / "environ"
            pairs = [pair.partition("=") for pair in file.read_text().split("\0")]
            there = {name: value for name, _, value in pairs}
            assert {name: there.get(name) for name in given} == given
            assert THREADS.items() <= there.items()
        driver.terminate()
        assert finish(driver, tmp_path)[0] == 143
    finally:
        driver.kill()


@pytest.mark.skipif("OTHER_PYTHON" not in os.environ, reason="OTHER_PYTHON: one with another Ray")
def test_a_cluster_of_another_ray_is_refused_in_one_line(tmp_path: Path) -> None:
    import ray

    other = os.environ["OTHER_PYTHON"]
    ask = [other, "-c", "import ray; print(ray.__version__)"]
    theirs = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    assert theirs != ray.__version__
    (tmp_path / "nodes").mkdir()
    with LocalNodes(tmp_path / "nodes", other) as on:
        on.start(num_cpus=0)
        code, said = finish(start(tmp_path, on, *flags(name="j")), tmp_path)
    assert code == 2
    (line,) = said.splitlines()
    assert f"the cluster at {on.address} runs Ray {theirs} on Python " in line
    assert f", this driver has Ray {ray.__version__} on Python " in line
    assert not (tmp_path / "runs").exists()


def other_torch(folder: Path) -> str:
    """PYTHONPATH of a node that has another torch, by what its packages say."""
    shim = folder / "shim" / "torch-1.2.3.dist-info"
    shim.mkdir(parents=True)
    (shim / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.2.3\n")
    return os.pathsep.join([str(shim.parent), os.environ.get("PYTHONPATH", "")])


@pytest.mark.skipif(torch.cuda.is_available(), reason="Ray is told of a GPU that is not there")
def test_a_node_whose_gpu_torch_cannot_use_is_refused(nodes: Any, tmp_path: Path) -> None:
    """Each node is asked for itself; without GPUs in the trials it is as good as others."""
    poor = nodes.start(num_gpus=1)
    given = flags(name="h", num_trials=2, max_epochs=1, gpus_per_trial=1, champion_epochs=0)
    driver = start(tmp_path, nodes, *given)
    try:
        code, err = finish(driver, tmp_path)
    finally:
        driver.kill()
        nodes.end(poor)
    assert code == 2
    assert err.count("Ray counts a GPU, but torch ") == 1
    assert "1 of 4 nodes cannot take part" in err
    assert not (tmp_path / "runs" / "h").exists()


@pytest.fixture
def tracking(nodes: Any, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server, on PostgreSQL where that is installed, whose artifacts go to
    the bucket. It alone knows their credentials."""
    try:
        store = request.getfixturevalue("postgres").database("cluster")
    except pytest.skip.Exception:
        store = None
    (tmp_path / "server").mkdir()
    server = MlflowServer(tmp_path / "server", store, "s3://bucket/mlflow", **nodes.environment)
    server.start()
    yield server.uri
    server.kill()


def test_another_machine_goes_on_from_the_bucket(nodes: Any, tracking: str, tmp_path: Path) -> None:
    """The driver is killed and its disk is lost; checkpoints and record are in the bucket."""
    given = flags(name="e", num_trials=4, max_epochs=3, scheduler="none", train_images=2000)
    where = {"VGG_SEARCH_STORAGE_PATH": "s3://bucket/studies", "MLFLOW_TRACKING_URI": tracking}
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    driver, study = start(here, nodes, *given, **where), here / "runs" / "e"
    try:

        def half_done() -> list[FrozenTrial]:
            trials = so_far(study)
            live = [t for t in trials if "state" not in t.user_attrs and rows_of(t)]
            return trials if live and sum("state" in t.user_attrs for t in trials) >= 1 else []

        before = wait_for(half_done, driver, here)
    finally:
        driver.kill()
        driver.wait()
    shutil.rmtree(here)
    code, said = finish(start(there, nodes, "--name", "e", "--resume", "e", **where), there)
    assert code == 0
    after = {trial.number: trial for trial in read_trials(there / "runs" / "e")}
    for old in before:
        # What had been told and was not yet copied is told again, with the same values
        assert after[old.number].params == old.params
        assert after[old.number].intermediate_values.items() >= old.intermediate_values.items()
    assert all(trial.state.is_finished() for trial in after.values())
    kept = {path.parent.name for path in (there / "runs" / "e" / "trials").glob("*/best")}
    assert len(kept) == SMALL["top_k"]
    client = MlflowClient(tracking)
    (experiment,) = client.search_experiments(filter_string="name = 'vgg-search'")
    # A run begun after the copy that was brought is deleted, and its trial has another
    deleted = client.search_runs([experiment.experiment_id], run_view_type=ViewType.DELETED_ONLY)
    why = "begun after the last state this folder has"
    lines = [f"vgg-search: tracker: deleted run {run.info.run_id}, {why}" for run in deleted]
    assert sorted(said.splitlines()) == sorted(lines)
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'trial'")
    assert len(runs) == sum(1 for trial in after.values() if rows_of(trial))
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        files = [file.path for file in client.list_artifacts(run.info.run_id, "best")]
        assert bool(files) == (run.data.tags["trial_number"] in kept)
    summary = json.loads((there / "runs" / "e" / "summary.json").read_text())
    champion = client.get_model_version_by_alias("vgg-search", "champion")
    assert champion.run_id == summary["champion"]["run_id"]


def test_two_workers_train_one_network_and_one_may_die(nodes: Any, tmp_path: Path) -> None:
    given = flags(
        name="f",
        num_trials=1,
        max_epochs=3,
        champion_epochs=2,
        workers_per_trial=2,
        baseline="null",
    )
    driver, study = start(tmp_path, nodes, *given), tmp_path / "runs" / "f"
    try:

        def ranks() -> list[int]:
            if not any(rows_of(trial) for trial in so_far(study)):
                return []
            found = [pid for pid in processes() if b"RayTrainWorker" in command_of(pid)]
            return [pid for pid in found if node_of(nodes, f":{pid}")]

        alive = wait_for(ranks, driver, tmp_path)
        assert len({node_of(nodes, f":{pid}") for pid in alive}) == 2  # one on each node
        os.kill(alive[0], signal.SIGKILL)
        code, said = finish(driver, tmp_path)
    finally:
        driver.kill()
    assert (code, said) == (0, "")
    (trial,) = read_trials(study)
    rows = rows_of(trial)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    card = json.loads((study / "champion" / "model.json").read_text())
    assert card["epochs"] == 2
    # The same by one process, in this one
    config = Config(**yaml.safe_load((study / "config.yaml").read_text()))
    candidate, splits = candidate_of(trial.user_attrs), load_splits("sample", None, 500)
    training = Training(
        build(candidate.network(28), trial.user_attrs["seed"]),
        Resident.load(splits, "cpu"),
        recipe_of(config, candidate, 3),
        trial.user_attrs["seed"],
    )
    for ours, theirs in zip(training.run(3), rows, strict=True):
        assert theirs["lr"] == ours["lr"]
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=0.1)
        assert theirs["val_accuracy"] == pytest.approx(ours["val_accuracy"], abs=0.04)


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def command_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


# ---- a batch system -----------------------------------------------------------------------------

# What Slurm's commands do that the script uses. A node is an address of this machine.
SRUN = """#!/usr/bin/env bash
here=(127.0.1.2)
while [[ $1 == --* ]]; do
  if [[ $1 == --nodelist ]]; then here=(127.0.1.1 --include-dashboard false); fi
  shift 2
done
exec "$@" --node-ip-address "${here[@]}" --temp-dir "$NODES/${here[0]}-$$" \\
  --object-store-memory 200000000 --dashboard-agent-listen-port "$((20000 + RANDOM))"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf '127.0.1.1\n127.0.1.2\n'; else echo "$@" >>"$REQUEUED"; fi
"""


def test_a_preempted_job_is_requeued_and_goes_on(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]),
        "VENV": str(Path(sys.executable).parent.parent),
        "REQUEUED": str(tmp_path / "requeued"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "STUDY": "g",
        # Short: Ray's sockets lie there
        "NODES": (folder := tempfile.mkdtemp(prefix="vgg-")),
    }
    request.addfinalizer(lambda: shutil.rmtree(folder, ignore_errors=True))
    script = [str(EXPERIMENTS / "slurm.sbatch"), "--quiet"]
    given = flags(
        num_trials=3, max_epochs=4, scheduler="none", train_images=3000, champion_epochs=0
    )

    def job() -> subprocess.Popen[str]:
        with (tmp_path / "err").open("a") as log:
            return subprocess.Popen(
                [*script, *given],
                cwd=tmp_path,
                env=environment,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    study, first = tmp_path / "runs" / "g", job()
    try:
        wait_for(lambda: any(rows_of(t) for t in so_far(study)), first, tmp_path)
        first.terminate()  # as --signal=B:TERM@60 does: to the script alone
        assert first.wait(60) == 143, (tmp_path / "err").read_text()
    finally:
        end_session(first)
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    before = read_trials(study)
    assert any(not trial.state.is_finished() for trial in before)
    second = job()
    try:
        assert second.wait(200) == 0, (tmp_path / "err").read_text()
    finally:
        end_session(second)
    after = {trial.number: trial for trial in read_trials(study)}
    assert all(trial.state.is_finished() for trial in after.values())
    for old in before:  # an epoch trained again would have another time
        assert rows_of(after[old.number])[: len(rows_of(old))] == rows_of(old)
    assert not list(tmp_path.glob(".ray-token*"))


def end_session(leader: subprocess.Popen[str]) -> None:
    """What a batch system does at the end: whatever of the job is left is killed."""
    for pid in processes():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == leader.pid:
                os.kill(pid, signal.SIGKILL)
    leader.wait()
