"""Mistakes at the command line: one line that says what is wrong, exit code 2, and no trace."""

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from vgg_search.cli.arguments import load_config, parse_options, resumed_config
from vgg_search.cli.commands import COMMANDS, DATASET, EPOCHS, main
from vgg_search.config import Config

ROOT = Path(__file__).parents[2]
FILES = {
    "list.yaml": "- 1\n- 2\n",
    "number.yaml": "7: 8\n",
    "text.yaml": "just words\n",
    "torn.yaml": "num_trials: 4\nspace: {num_blocks: [1\n",
    "tab.yaml": "space:\n\tlr: 1\n",
    "binary.yaml": "\x00\x01",
    "unknown.yaml": "num_trial: 4\n",
    "wrong.yaml": "num_trials: many\n",
    "seven.yaml": "space: {num_blocks: 7, out_channels: 8, lr: 0.1}\nbaseline: null\n",
    "lr.yaml": "space: {num_blocks: 2, out_channels: 8, lr: [0.5, 0.1]}\n",
    "spaceless.yaml": "space:\n",
    "typo.yaml": "space: {num_blocks: 2, out_channel: 8, lr: 0.1}\n",
    "queue.yaml": "enqueue:\n- {lr: 5}\n",
    "queued_arch.yaml": "enqueue:\n- {arch: [[1, 8], [1]]}\n",
    "queued_words.yaml": "enqueue:\n- {arch: deep}\n",
    "queued_deep.yaml": "enqueue:\n- {arch: [[1, 8], [1, 8], [1, 8], [1, 8], [1, 8]]}\n",
    "queue_of_numbers.yaml": "enqueue: [1]\n",
}
DATASET_RULE = (
    "dataset must be auto, fashion-mnist, sample, mnist, kmnist, emnist-balanced, emnist-letters, "
    "cifar10, cifar100, svhn, a folder of class folders or an .npz file, got 'cifar'"
)
BUDGET = "time_budget must be a time such as 90s, 6m or 1h30m, got"
URI = "tracking_uri must be a path or an address that begins with sqlite, "

# (command line, what its line says)
MISTAKES: list[tuple[str, str]] = [
    # values
    ("--num-trials many", "num_trials must be an integer, got 'many'"),
    ("--num-trials 0", "num_trials must be >= 1, got '0'"),
    ("--num-trials 1.5", "num_trials must be an integer, got '1.5'"),
    ("--seed -1", "seed must be >= 0, got '-1'"),
    ("--seed 4294967296", "seed must be < 4294967296, got '4294967296'"),
    ("--dataset cifar", DATASET_RULE),
    (
        "--scheduler sha",
        "scheduler must be one of 'asha', 'asha-promote' or 'none', got 'sha'",
    ),
    (
        "--sampler grid",
        "sampler must be one of 'curves', 'tpe', 'tpe-joint', 'random', 'gp' or 'cmaes', got "
        "'grid'",
    ),
    ("--precision fp8", "precision must be one of 'auto', 'fp32' or 'bf16', got 'fp8'"),
    ("--flip maybe", "flip must be true or false, got 'maybe'"),
    ("--momentum 1", "momentum must be < 1, got '1'"),
    ("--momentum nan", "momentum must be"),
    ("--resolution 1", "resolution must be >= 2, got '1'"),
    ("--crop 17", "crop must be <= 16, got '17'"),
    ("--reduction-factor 1", "reduction_factor must be >= 2, got '1'"),
    ("--cpus-per-trial 0", "cpus_per_trial must be > 0, got '0'"),
    ("--gpus-per-trial some", "gpus_per_trial must be"),
    ("--time-budget soon", f"{BUDGET} 'soon'"),
    ("--gpu-hours -1", "gpu_hours must be > 0, got '-1'"),
    ("--time-budget inf", f"{BUDGET} 'inf'"),
    (
        "--name a/b",
        "name must be letters, digits, '.', '_' or '-', at most 100, the first a letter",
    ),
    ("--name .hidden", "the first a letter or digit, got '.hidden'"),
    ("--experiment=", "experiment must not be empty, got ''"),
    ("--baseline deep", "baseline"),
    ("--baseline [[1]]", "baseline must be a list of [num_convs, out_channels] pairs"),
    ('--baseline {"lr":5}', "baseline: an enqueued lr must lie in the space, got 5"),
    ("--baseline [[0,8]]", "baseline: num_convs must be >= 1, got 0"),
    ("--baseline [[1,0]]", "baseline: out_channels must be >= 1, got 0"),
    (
        "--baseline [[1,8],[1,8],[1,8],[1,8],[1,8]]",
        "num_blocks must be <= 4 at resolution 28, got 5",
    ),
    ("--grace-epochs 7", "grace_epochs must be <= max_epochs (4), got 7"),
    ("--tracking-uri ftp://host", f"{URI}"),
    ("--tracking-uri localhost:5000", f"{URI}"),
    ("--tracking-uri http://", "tracking_uri must be http://HOST:PORT, got"),
    ("--tracking-uri https://host:65536/x", "tracking_uri must have a PORT of 1 to 65535, got"),
    ("--tracking-uri http://u:99999@host:0", "tracking_uri must have a PORT of 1 to 65535, got"),
    ("--tracking-uri http:host:5000", "tracking_uri must be http://HOST:PORT, got"),
    ("--tracking-uri sqlite://mlflow.db", "tracking_uri must be sqlite:///FILE, FILE a path"),
    ("--tracking-uri sqlite:///:memory:", "tracking_uri must be sqlite:///FILE, FILE a path"),
    ("--storage-path ~nobody-here/runs", "storage_path must be a folder; of ~ there is no home"),
    ("--config=~nobody-here/x.yaml", "argument --config: must be a folder; of ~ there is no"),
    # flags
    ("--num-trial 4", "unknown flag --num-trial; did you mean --num-trials?"),
    ("--sample tpe", "unknown flag --sample; did you mean --sampler?"),
    ("--num_trials=4", "unknown flag --num_trials; did you mean --num-trials?"),
    ("quick", "unexpected argument quick"),
    ("--num-trials", "argument --num-trials: expected one argument"),
    # files
    (
        "--config nowhere.yaml",
        "cannot read experiment file nowhere.yaml: No such file or directory",
    ),
    ("--config .", "cannot read experiment file .: Is a directory"),
    ("--config list.yaml", "experiment file list.yaml must be a map of fields, got [1, 2]"),
    ("--config number.yaml", "experiment file number.yaml must be a map of fields, got {7: 8}"),
    ("--config text.yaml", "experiment file text.yaml must be a map of fields, got 'just words'"),
    ("--config torn.yaml", "experiment file torn.yaml, line 3 is not valid YAML"),
    ("--config tab.yaml", "experiment file tab.yaml, line 2 is not valid YAML"),
    ("--config binary.yaml", "experiment file binary.yaml is not valid YAML"),
    ("--config latin.yaml", "cannot read experiment file latin.yaml: it is not text"),
    ("--config unknown.yaml", "unknown field 'num_trial'; did you mean num_trials?"),
    ("--config wrong.yaml", "num_trials must be an integer, got 'many'"),
    # spaces and what is enqueued
    ("--config seven.yaml", "num_blocks must be <= 4 at resolution 28, got 7"),
    ("--config lr.yaml", "space.lr must have low <= high, got [0.5, 0.1]"),
    ("--config spaceless.yaml", "space must be"),
    ("--config typo.yaml", "space has no dimension 'out_channel'; did you mean out_channels?"),
    ("--config queue.yaml", "enqueue: an enqueued lr must lie in the space, got 5"),
    ("--config queued_arch.yaml", "enqueue must hold each arch as a list of [num_convs, out_chan"),
    ("--config queued_words.yaml", "enqueue must hold each arch as a list of [num_convs, out_cha"),
    ("--config queued_deep.yaml", "enqueue: num_blocks must be <= 4 at resolution 28, got 5"),
    ("--config queue_of_numbers.yaml", "enqueue must be"),
    ("--space {", "space"),
    # names
    ("--resume nothing", "no study named nothing in runs"),
    ("--resume ../up", "name must be letters"),
    ("--name taken --storage-path elsewhere", "name must be a new study's, got 'taken': "),
]
OUTSIDE = ["..", "../up", "a/../../up", "/tmp", "~/x", "a\0b", "a\n", "-a", "a" * 101]
DATA_MISTAKES = [
    ("--dataset fashion-mnist --data-dir nowhere", "nowhere"),
    ("--data-dir corrupt", "corrupt"),
    ("--dataset sample --val-images 1000 --train-images 5 --batch-size 8", "train_images"),
]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with the files above, and the environment as it was afterwards."""
    for field in Config.model_fields:
        monkeypatch.delenv(f"VGG_SEARCH_{field.upper()}", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    Path("latin.yaml").write_bytes("name: déjà".encode("latin-1"))
    Path("elsewhere/taken").mkdir(parents=True)
    Path("corrupt").mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        Path(f"corrupt/{name}-ubyte.gz").write_bytes(b"not what it says")
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def refused(argv: list[str], text: str, capfd: pytest.CaptureFixture[str]) -> None:
    files = sorted(Path().rglob("*"))
    assert main(argv) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("vgg-search: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert text in err
    assert sorted(Path().rglob("*")) == files, "something was left behind"


@pytest.mark.parametrize(("line", "text"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line(line: str, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    refused(["run", *line.split()], text, capfd)


@pytest.mark.parametrize("command", ["run --name", "run --resume", "status", "report", "sync"])
def test_a_study_s_name_cannot_lead_out_of_the_run_folders(
    command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("up").mkdir()
    for file in ("study.journal", "outbox.db", "config.yaml"):
        Path("up", file).touch()
    for name in OUTSIDE:
        *words, flag = command.split()
        argv = [*words, f"{flag}={name}"] if words else [flag, name]
        if name.startswith("-") and not words:
            continue  # a flag, and none that there is
        refused(argv, "name must be letters, digits", capfd)


@pytest.mark.parametrize(("line", "text"), DATA_MISTAKES, ids=[line for line, _ in DATA_MISTAKES])
def test_a_mistake_in_the_data_is_one_line(
    line: str, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    refused(["run", *line.split()], text, capfd)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("rum", "unknown command rum; did you mean run?"),
        ("raport", "unknown command raport; did you mean report?"),
        ("zzz", f"unknown command zzz of {', '.join(COMMANDS)}"),
        ("predict", "the following arguments are required: IMAGE"),
        ("predict --modle x a.png", "unknown flag --modle; did you mean --model?"),
        ("evaluate --dataset cifar", DATASET_RULE),
        ("refine --champion-epochs 0", "champion_epochs must be >= 1, got '0'"),
        ("refine --seed -1", "seed must be >= 0, got '-1'"),
        ("sync --timeout long", "argument --timeout: invalid float value: 'long'"),
        ("export --out x", "the following arguments are required: --format"),
    ],
)
def test_a_mistake_in_a_command_is_one_line(
    line: str, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    refused(line.split(), text, capfd)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("VGG_SEARCH_NUM_TRIALS", "many", "num_trials must be an integer, got 'many'"),
        ("VGG_SEARCH_SPACE", "{", "space must be valid JSON"),
        ("VGG_SEARCH_ENQUEUE", "{}", "enqueue must be a valid list, got {}"),
        ("MLFLOW_TRACKING_URI", "ftp://host", "MLFLOW_TRACKING_URI must be a path or an address"),
    ],
)
def test_a_mistake_in_the_environment_is_one_line(
    name: str,
    value: str,
    text: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(name, value)
    refused(["run"], text, capfd)


@pytest.mark.parametrize(
    ("name", "value", "line", "text"),
    [
        ("STORAGE_PATH", "elsewhere", "status", "no study found under elsewhere"),
        ("STORAGE_PATH", "nowhere", "status --storage-path other", "no study found under other"),
        ("STORAGE_PATH", "elsewhere", "predict a.png", "no champion found under elsewhere"),
        ("STORAGE_PATH", "", "status", "no study found under runs"),
        ("STORAGE_PATH", "", "predict a.png", "no champion found under runs"),
        ("STORAGE_PATH", "elsewhere", "run --resume gone", "no study named gone in elsewhere"),
        ("TRACKING_URI", "ftp://host", "refine", "must be a path or an address"),
        ("TRACKING_URI", "ftp://host", "refine --tracking-uri=", "no champion found under runs"),
        ("SEED", "-1", "refine", "seed must be >= 0, got '-1'"),
        ("CHAMPION_EPOCHS", "0", "refine", "champion_epochs must be >= 1, got '0'"),
        ("CHAMPION_EPOCHS", "0", "refine --champion-epochs 1", "no champion found under runs"),
        ("DATASET", "cifar", "evaluate", DATASET_RULE),
        ("DATASET", "cifar", "status", "no study found under runs"),  # it has no such flag
    ],
)
def test_other_commands_read_the_environment(
    name: str,
    value: str,
    line: str,
    text: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(f"VGG_SEARCH_{name}", value)
    refused(line.split(), text, capfd)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_variable_of_no_field(
    command: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = {"predict": ["a.png"], "export": ["--format", "pt2", "--out", "x"]}
    monkeypatch.setenv("VGG_SEARCH_NUM_TRIAL", "7")
    text = "VGG_SEARCH_NUM_TRIAL must name a field, got 'num_trial'; did you mean num_trials?"
    refused([command, *needs.get(command, [])], text, capfd)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VGG_SEARCH_NUM_TRIAL", ""),
        # What Kubernetes sets in the containers of a namespace for a service vgg-search-head-svc
        ("VGG_SEARCH_HEAD_SVC_SERVICE_HOST", "10.0.0.1"),
        ("VGG_SEARCH_HEAD_SVC_SERVICE_PORT_CLIENT", "10001"),
        ("VGG_SEARCH_HEAD_SVC_PORT", "tcp://10.0.0.1:10001"),
        ("VGG_SEARCH_HEAD_SVC_PORT_10001_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_what_is_empty_or_of_a_service_is_no_mistake(
    name: str, value: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    refused(["status"], "no study found under runs", capfd)


@pytest.mark.parametrize("field", Config.model_fields)
def test_an_empty_variable_is_as_if_unset(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"VGG_SEARCH_{field.upper()}", "")
    assert load_config(["--name", "a"])[0] == Config(name="a")


@pytest.mark.parametrize(
    ("field", "default", "variable", "flag"),
    [
        ("storage_path", "runs", "of_environment", "of_flag"),
        ("tracking_uri", None, "sqlite:///a.db", "sqlite:///b.db"),
        ("experiment", "vgg-search", "of_environment", "of_flag"),
        ("dataset", None, "sample", "fashion-mnist"),
        ("data_dir", None, Path("of_environment"), Path("of_flag")),
        ("seed", 0, 7, 8),
        ("champion_epochs", None, 7, 8),
    ],
)
def test_flag_beats_environment_beats_default_in_other_commands(
    field: str, default: object, variable: object, flag: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: dict[str, Any] = {"dataset": DATASET, "champion_epochs": EPOCHS}

    def command() -> None:
        """a command that has the field"""

    def value(*argv: str) -> object:
        shared = [] if field in own else [field]
        return getattr(parse_options(command, argv, [], shared, **own), field)

    name = f"VGG_SEARCH_{field.upper()}"
    assert value() == default
    monkeypatch.setenv(name, str(variable))
    assert value() == variable
    assert value(f"--{field.replace('_', '-')}", str(flag)) == flag
    monkeypatch.setenv(name, "")
    assert value() == default


class RemoteError(RuntimeError):
    """As a worker's, which brings its traceback along."""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\nb"), "ValueError: a b (--debug tells more)"),
        (OSError("disk"), "OSError: disk (--debug tells more)"),
        (ConnectionError("away"), "away"),
        (
            RemoteError("ray::f()\nTraceback (most recent call last):\n  f()\nKeyError: 7\n"),
            "RemoteError: KeyError: 7 (--debug tells more)",
        ),
    ],
)
def test_what_is_unexpected_is_one_line_too(
    error: Exception,
    text: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(_: object) -> None:
        raise error

    monkeypatch.setitem(COMMANDS, "status", fails)
    assert main(["status"]) == 1
    assert capfd.readouterr().err == f"vgg-search: {text}\n"


def test_debug_shows_where_a_mistake_came_from() -> None:
    with pytest.raises(ValueError, match="num_trials must be an integer, got 'many'"):
        main(["run", "--num-trials", "many", "--debug"])


def test_help_and_no_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main([]) == 2
    out, err = capfd.readouterr()
    assert err == ""
    assert all(f"  {command} " in out for command in COMMANDS)


@pytest.mark.slow
def test_a_cluster_without_room_is_one_line() -> None:
    """Two starts of Ray, which reads its environment when it is imported: each in its own process.
    CUDA devices are hidden from it, so that there is no GPU anywhere."""
    command = [sys.executable, "-m", "vgg_search", "run", "--dataset", "sample"]
    loud = "USING THE BUNDLED SAMPLE"
    for flags, text in (
        (["--needs-gpu", "true"], "this experiment needs a GPU, none found; add --needs-gpu false"),
        (["--cpus-per-trial", "10000"], "cpus_per_trial must be <= "),
    ):
        files = sorted(Path().rglob("*"))
        ran = subprocess.run(
            [*command, *flags],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
        lines = [line for line in ran.stderr.splitlines() if loud not in line]
        assert len(lines) == 1, ran.stderr
        assert lines[0].startswith("vgg-search: ")
        assert text in lines[0]
        assert sorted(Path().rglob("*")) == files


def mlflow_database(file: Path, experiment: str = "", delete: bool = False) -> None:
    """A database of a real MLflow, with an experiment in it."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{file.absolute()}")
    if experiment:
        number = client.create_experiment(experiment)
        if delete:
            client.delete_experiment(number)


def edit(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(statement)


TRIED = [  # what lies in m.db, flags, what is said
    ("", "--tracking-uri ./mlruns", "`mlflow migrate-filestore`"),
    ("", "--tracking-uri file:///srv/mlruns", "sqlite:///mlflow.db is a database in a file"),
    ("", "--tracking-uri sqlite:///no/m.db", "/no; make it, or --tracking-uri"),
    ("", "--tracking-uri sqlite:////proc/m.db", "/proc cannot be written to"),
    ("text", "--tracking-uri sqlite:///m.db", "file is not a database"),
    ("other", "--tracking-uri sqlite:///m.db", "the database is not MLflow's"),
    ("deleted", "--tracking-uri sqlite:///m.db", "mlflow experiments restore --experiment-id 1"),
    ("moved", "--tracking-uri sqlite:///m.db", "keeps its files in /nowhere/mlruns/1"),
    ("proc", "--tracking-uri sqlite:///m.db", "keeps its files in /proc/mlruns/1"),
]


@pytest.mark.parametrize(("content", "line", "text"), TRIED, ids=[f"{a} {b}" for a, b, _ in TRIED])
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
def test_a_tracker_that_cannot_work_is_refused_before_anything_is_trained(
    content: str, line: str, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = Path("m.db")
    if content == "text":
        file.write_text("no database" * 1000)
    elif content == "other":
        edit(file, "CREATE TABLE users (name TEXT)")
    elif content:
        mlflow_database(file, "vgg-search", delete=content == "deleted")
    if content in ("moved", "proc"):
        place = {"moved": "file:///nowhere/mlruns/1", "proc": "/proc/mlruns/1"}[content]
        edit(file, f"UPDATE experiments SET artifact_location = '{place}'")
    capfd.readouterr()  # MLflow's own
    refused(["run", "--dataset", "sample", *line.split()], text, capfd)


def test_a_resumed_study_keeps_its_tracker_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vgg_search.tracking.outbox import Outbox

    home = f"sqlite:///{tmp_path / 'mlflow.db'}"
    Path("mlflow.db").touch()
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(Config(name="a").dump())
    Outbox(folder, home, "vgg-search", "a")
    Path("elsewhere/here").mkdir()
    monkeypatch.chdir("elsewhere/here")

    def tracker(*argv: str) -> str | None:
        config, _ = load_config(["--storage-path", str(tmp_path / "runs"), *argv])
        return resumed_config(config, "a")[0].tracking_uri

    assert tracker() == home
    assert tracker("--tracking-uri", "http://other:5000") == "http://other:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env:5000")
    assert tracker() is None  # the environment's, as in a new study


def test_a_home_is_expanded_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("e.yaml").write_text("{storage_path: ~/runs, data_dir: '~', warm_start: ~/runs/old}")
    config, options = load_config(["--config=~/e.yaml", "--name", "a"])
    assert config.storage_path == f"{tmp_path}/runs"
    assert config.data_dir == tmp_path
    assert config.warm_start == f"{tmp_path}/runs/old"
    assert options.config == tmp_path / "e.yaml"
    assert Config(storage_path="./~").storage_path == "./~"


@pytest.mark.parametrize(
    ("file", "stem"),
    [
        *[("é.yaml", "quick"), (".my exp.yaml", "my-exp"), ("-x%2Fy#.yaml", "x-2Fy-")],
        *[("a.yaml", "a"), (f"{'a' * 90}.yaml", "a" * 77)],
    ],
)
def test_a_file_of_any_name_gives_a_study_a_name(file: str, stem: str) -> None:
    Path(file).write_text("seed: 1\n")
    name = load_config([f"--config={file}"])[0].name
    assert name
    assert re.fullmatch(rf"{re.escape(stem)}-\d{{8}}-\d{{6}}\.\d{{6}}", name)
