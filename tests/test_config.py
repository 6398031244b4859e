"""Where a field's value comes from, and what an experiment may be."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from vgg_search.cli.arguments import load_config, read_yaml, resumed_config
from vgg_search.config import RESUMABLE, Config, ConfigError
from vgg_search.errors import InputError
from vgg_search.storage.checksums import with_checksum

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "ray", "optuna", "mlflow", "pandas", "plotly", "rich", "scipy")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, and none of our fields in the environment."""
    monkeypatch.chdir(tmp_path)
    for field in Config.model_fields:
        monkeypatch.delenv(f"VGG_SEARCH_{field.upper()}", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def load(*argv: str) -> Config:
    """What the command `run` makes of its command line."""
    config, options = load_config(argv)
    if options.resume is None:
        return config
    return resumed_config(config, options.resume)[0]


def write(text: str, name: str = "mine.yaml") -> str:
    Path(name).write_text(text)
    return name


# ---- layers -----------------------------------------------------------------------------------


def test_flag_beats_environment_beats_file_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().num_trials == 24
    file = write("num_trials: 5\nmax_epochs: 7\nseed: 3")
    assert load("--config", file).num_trials == 5
    monkeypatch.setenv("VGG_SEARCH_NUM_TRIALS", "6")
    monkeypatch.setenv("VGG_SEARCH_MAX_EPOCHS", "8")
    assert load("--config", file).num_trials == 6
    config = load("--config", file, "--num-trials", "9")
    assert (config.num_trials, config.max_epochs, config.seed) == (9, 8, 3)


def test_nested_values_from_flags_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    space = '{"num_blocks": 1, "out_channels": 8, "lr": [0.01, 0.1]}'
    assert load("--space", space).space["lr"] == [0.01, 0.1]
    assert load("--baseline", "[[1, 8], [2, 16]]").baseline == ((1, 8), (2, 16))
    assert load("--baseline", "null").baseline is None
    assert load("--baseline", '{"arch": [[1, 8]], "lr": 0.1}').baseline == {
        "arch": ((1, 8),),
        "lr": 0.1,
    }
    monkeypatch.setenv("VGG_SEARCH_SPACE", space)
    assert load().space["num_blocks"] == 1


def test_a_space_is_given_whole() -> None:
    file = write("space: {num_blocks: 2, out_channels: 8, lr: 1e-2}")
    assert load("--config", file).space == {"num_blocks": 2, "out_channels": 8, "lr": "1e-2"}


@pytest.mark.parametrize(
    ("flag", "value"), [("--flip", False), ("--needs-gpu", True), ("--ema", False)]
)
def test_switches_take_true_and_false(flag: str, value: bool) -> None:
    assert getattr(load(flag, str(value).lower()), flag[2:].replace("-", "_")) is value


def test_a_study_is_named_after_its_file_and_the_time() -> None:
    assert re.fullmatch(r"quick-\d{8}-\d{6}\.\d{6}", str(load().name))
    file = write("seed: 1", "my deep+1.yaml")
    assert re.fullmatch(r"my-deep-1-\d{8}-\d{6}\.\d{6}", str(load("--config", file).name))
    assert load("--name", "mine").name == "mine"


# ---- durations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("6m", 360), ("1h30m", 5400), ("1.5h", 5400), ("2h1s", 7201), ("90", 90), (7, 7)],
)
def test_a_time_is_seconds(text: Any, seconds: float) -> None:
    assert Config(time_budget=text).time_budget == seconds


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("soon", "be a time such as 90s, 6m or 1h30m, got 'soon'"),
        ("", "be a time such as 90s, 6m or 1h30m, got ''"),
        ("1.2.3h", "be a time such as 90s, 6m or 1h30m, got '1.2.3h'"),
        ("5m1h", "be a time such as 90s, 6m or 1h30m, got '5m1h'"),
        ("0m", "be > 0, got '0m'"),
        ("-5", "be a time such as 90s, 6m or 1h30m, got '-5'"),
    ],
)
def test_what_is_no_time(text: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"time_budget must {rule}")):
        load(f"--time-budget={text}")


# ---- the default experiment -------------------------------------------------------------------


def test_the_default_experiment_is_the_file() -> None:
    file = ROOT / "experiments" / "quick.yaml"
    assert Config(**read_yaml(file)) == Config()
    assert read_yaml(file).keys() == Config.model_fields.keys() - {"name"}
    head = file.read_text().split("\nseed")[0]
    assert "python -m vgg_search.run --config experiments/quick.yaml" in head
    assert "Cost:" in head


def test_dump_reads_back_as_an_equal_experiment() -> None:
    config = Config(
        name="mine",
        data_dir="somewhere",
        time_budget="1h30m",
        gpus_per_trial=0.25,
        enqueue=[{"arch": [[1, 16]], "lr": 0.1}, {"lr": 0.2}],
        tracking_uri="http://127.0.0.1:5000",
    )
    assert Config(**yaml.safe_load(config.dump())) == config
    assert Config(**yaml.safe_load(Config().dump())) == Config()
    assert "!!" not in config.dump()


def test_an_experiment_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 1  # type: ignore[misc]


def test_the_default_search_space_is_read() -> None:
    assert Config().search_space.limits == {"max_flops": 20_000_000}
    baseline = {
        "arch": ((1, 16), (1, 32), (2, 64)),
        "batch_norm": False,
        "dropout": 0.5,
        "lr": 0.02,
    }
    assert Config().trials_by_hand == [baseline]
    own = Config(space={"num_blocks": [1, 3], "out_channels": 8, "lr": [0.01, 0.1]})
    assert own.trials_by_hand == [{"arch": baseline["arch"]}], "which may lack the values"


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///mlflow.db", "postgresql://a:b@host/db", "mysql+pymysql://a@host/db",
        "mssql+pyodbc://host/db", "http://127.0.0.1:5000", "https://host", "file:///tmp/x",
        "databricks", "databricks://profile", "/tmp/mlruns", "mlruns",
    ],
)  # fmt: skip
def test_addresses_of_trackers(uri: str) -> None:
    assert Config(tracking_uri=uri).tracking_uri == uri


# ---- resume -----------------------------------------------------------------------------------


@pytest.fixture
def stored() -> Config:
    config = Config(name="old", num_trials=5, data_dir="somewhere")
    Path("runs/old").mkdir(parents=True)
    Path("runs/old/config.yaml").write_text(config.dump())
    return config


def test_a_resumed_study_has_its_stored_experiment(stored: Config) -> None:
    assert load("--resume", "old") == stored


def test_a_resumed_study_may_have_other_budgets_cluster_and_tracking(stored: Config) -> None:
    given = {
        "num_trials": "50", "time_budget": "2h", "gpu_hours": "3", "address": "auto",
        "cpus_per_trial": "2", "gpus_per_trial": "0.5", "max_concurrent": "3",
        "workers_per_trial": "2", "skip_bad_nodes": "true", "insecure_cluster": "true",
        "tracking_uri": "sqlite:///other.db", "experiment": "other",
        "data_dir": "elsewhere", "stop_when_converged": "true", "champions": "3",
        "pick": "num_params<=50000",
    }  # fmt: skip
    assert given.keys() | {"storage_path"} == RESUMABLE
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    resumed = load("--resume", "old", *flags)
    changed = {f for f in Config.model_fields if getattr(resumed, f) != getattr(stored, f)}
    assert changed == given.keys()


def test_a_damaged_stored_experiment_is_refused(stored: Config) -> None:
    path = Path("runs/old/config.yaml")
    path.write_text(with_checksum(stored.dump()))
    assert load("--resume", "old") == stored
    changed = path.read_text().replace("num_trials: 5", "num_trials: 7")
    path.write_text(changed)
    with pytest.raises(InputError, match=r"config\.yaml is not as it was written: restore it"):
        load("--resume", "old")
    path.write_text(changed.partition("\n")[2])  # as the message says
    assert load("--resume", "old").num_trials == 7


@pytest.mark.parametrize("size", [0, 9, 70, 100, 500])
def test_a_stored_experiment_that_was_cut_is_refused(stored: Config, size: int) -> None:
    """What is left of it could be an experiment: fields that lack would have their defaults."""
    path = Path("runs/old/config.yaml")
    path.write_text(with_checksum(stored.dump())[:size])
    with pytest.raises(InputError, match=r"config\.yaml is not as it was written: restore it"):
        load("--resume", "old")


def test_a_stored_experiment_whose_checksum_comes_last_is_read(stored: Config) -> None:
    path = Path("runs/old/config.yaml")
    checksum, _, text = with_checksum(stored.dump()).partition("\n")
    path.write_text(f"{text}{checksum}\n")
    assert load("--resume", "old") == stored
    path.write_text(f"{text}top_k: 3\n{checksum}\n")
    with pytest.raises(InputError, match=r"config\.yaml is not as it was written"):
        load("--resume", "old")


def test_fields_that_belong_together_are_judged_with_those_of_the_study() -> None:
    fields = {"name": "old", "objectives": ("val_accuracy", "num_params"), "max_epochs": 12}
    Path("runs/old").mkdir(parents=True)
    Path("runs/old/config.yaml").write_text(Config(**fields, grace_epochs=6).dump())
    assert load("--resume", "old", "--pick", "knee").pick == "knee"
    assert load("--resume", "old", "--grace-epochs", "6").grace_epochs == 6
    with pytest.raises(ConfigError, match=r"^stop_when_converged must have one objective"):
        load("--resume", "old", "--stop-when-converged", "true")
    with pytest.raises(ConfigError, match=r"^pick must be knee with several objectives only$"):
        load("--resume", "new", "--name", "new", "--pick", "knee")


@pytest.mark.parametrize("said", [True, False])
def test_a_limit_of_null_is_no_limit_and_no_difference(stored: Config, said: bool) -> None:
    without = {k: v for k, v in stored.space.items() if k != "max_params"}
    spaces = [without, without | {"max_params": None}]
    Path("runs/old/config.yaml").write_text(Config(name="old", space=spaces[said]).dump())
    assert load("--resume", "old", "--space", json.dumps(spaces[not said])).name == "old"


def test_paths_are_taken_as_python_has_them() -> None:
    Path("mine").mkdir()
    config = Config(dataset=Path("mine"), storage_path=Path("out"), warm_start=Path("runs/a"))
    assert config.dataset == str(Path("mine").absolute())
    assert (config.storage_path, config.warm_start) == ("out", "runs/a")


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("s3://KEY:SECRET@bucket/p", "have no credentials or parameters: the environment has them"),
        ("s3://b/p?scheme=http", "have no credentials or parameters: the environment has them"),
        ("file:///tmp/x", "be a path or an address of a bucket"),
    ],
)
def test_a_storage_path_holds_no_secret(path: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"^storage_path must {rule}, got ") as raised:
        load("--storage-path", path)
    assert "SECRET" not in str(raised.value)


OTHER = {
    "seed": (1, "0"), "dataset": ("sample", "'auto'"), "resolution": (32, "None"),
    "max_epochs": (7, "4"), "grace_epochs": (2, "1"), "reduction_factor": (4, "3"),
    "scheduler": ("none", "'asha-promote'"), "sampler": ("random", "'curves'"),
    "val_images": (1, "None"),
    "batch_size": (64, "128"), "champion_epochs": (1, "12"), "ema": ("false", "True"),
    "precision": ("fp32", "'auto'"), "train_images": (9, "None"),
}  # fmt: skip


@pytest.mark.parametrize("field", OTHER)
def test_a_resumed_study_is_the_same_study(stored: Config, field: str) -> None:
    assert stored.name == "old"
    value, old = OTHER[field]
    text = f"^{field} must stay {re.escape(old)} when a study is resumed, got "
    with pytest.raises(ConfigError, match=text):
        load("--resume", "old", f"--{field.replace('_', '-')}", str(value))


def test_the_same_command_starts_a_study_and_goes_on_with_it(stored: Config) -> None:
    config, options = load_config(["--name", "old", "--resume", "old"])
    assert resumed_config(config, options.resume) == (stored, True)
    config, options = load_config(["--name", "new", "--resume", "new", "--seed", "7"])
    assert (config.name, config.seed, options.resume) == ("new", 7, "new")
    assert resumed_config(config, options.resume) == (Config(name="new", seed=7), False)
    with pytest.raises(ConfigError, match=r"^no study named new in runs$"):
        load("--name", "other", "--resume", "new")


def test_a_command_line_is_read_without_a_look_at_the_study(stored: Config) -> None:
    config, options = load_config(["--resume", "old", "--seed", "1", "--storage-path", "s3://b/p"])
    assert (config.name, config.seed, config.storage_path) == (None, 1, "s3://b/p")
    assert options.resume == stored.name


def test_a_changed_space_is_refused_with_the_dimensions_name(stored: Config) -> None:
    space = json.dumps(stored.space | {"lr": [0.02, 0.5]})
    text = r"^space\.lr must stay \[0\.02, 0\.4\] when a study is resumed, got \[0\.02, 0\.5\]$"
    with pytest.raises(ConfigError, match=text):
        load("--resume", "old", "--space", space)
    space = json.dumps(stored.space | {"max_params": 9})
    text = r"^space\.max_params must stay None when a study is resumed, got 9$"
    with pytest.raises(ConfigError, match=text):
        load("--resume", "old", "--space", space)


def test_the_environment_counts_in_a_resume_too(
    stored: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stored.seed == 0
    monkeypatch.setenv("VGG_SEARCH_SEED", "1")
    with pytest.raises(ConfigError, match="seed must stay 0 when a study is resumed, got 1"):
        load("--resume", "old")


# ---- help -------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["vgg_search.run", "vgg_search"])
def test_help_names_every_field_and_loads_nothing_heavy(module: str) -> None:
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['x', *{['run'] if module == 'vgg_search' else []!r}, '--help-all']\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        f"print('LOADED', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    text = " ".join(done.stdout.split())
    assert text.endswith("LOADED []")
    for name, field in Config.model_fields.items():
        assert f"--{name.replace('_', '-')} " in text
        first = str(field.description).split()[:4]
        assert " ".join(first) in text, f"{name} is not explained"
    for option in ("--config", "--resume", "--dry-run", "--json", "--quiet", "--debug"):
        assert option in text
