"""The cluster: what its nodes have room for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vgg_search.config import Config, ConfigError
from vgg_search.engine.connection import ray_cluster, refusal
from vgg_search.engine.nodes import alive, probe, versions
from vgg_search.engine.packing import GpuMemory
from vgg_search.engine.room import at_a_time, packed, resources
from vgg_search.errors import DeviceError
from vgg_search.machine import cores
from vgg_search.storage.place import Place

CORES = cores()


def asked_of(config: Config, nodes: list[dict[str, float]]) -> tuple[dict[str, float], int]:
    """What a trial asks for, and how many there is room for at a time."""
    needed = resources(config, nodes)
    return needed, at_a_time(config, nodes, **needed)


def resources_of(config: Config) -> tuple[dict[str, float], int]:
    return asked_of(config, [node["Resources"] for node in alive()])


@pytest.mark.usefixtures("cluster")
def test_a_trial_has_a_core_and_as_many_run_as_there_are() -> None:
    assert resources_of(Config()) == ({"cpu": 1.0, "gpu": 0.0}, CORES)
    assert resources_of(Config(max_concurrent=1))[1] == 1
    assert resources_of(Config(max_concurrent=1000))[1] == CORES
    assert resources_of(Config(cpus_per_trial=0.5)) == ({"cpu": 0.5, "gpu": 0.0}, 2 * CORES)
    assert resources_of(Config(cpus_per_trial=CORES))[1] == 1


@pytest.mark.usefixtures("cluster")
def test_what_no_node_has_is_refused_before_anything_starts() -> None:
    text = rf"^cpus_per_trial must be <= {CORES}, the most that a node has, got {CORES + 1}$"
    with pytest.raises(DeviceError, match=text):
        resources_of(Config(cpus_per_trial=CORES + 1))
    text = r"^gpus_per_trial must be <= 0, the most that a node has, got 0\.5$"
    with pytest.raises(DeviceError, match=text):
        resources_of(Config(gpus_per_trial=0.5))
    text = (
        rf"^workers_per_trial must be <= {CORES}, the processes that there is room for, "
        rf"got {CORES + 1}$"
    )
    with pytest.raises(DeviceError, match=text):
        resources_of(Config(workers_per_trial=CORES + 1))
    assert resources_of(Config(workers_per_trial=CORES))[1] == 1
    text = "^this experiment needs a GPU, none found; add --needs-gpu false to train on the CPU$"
    with pytest.raises(DeviceError, match=text):
        resources_of(Config(needs_gpu=True))


def test_processes_of_a_trial_share_no_gpu() -> None:
    nodes = [{"CPU": 8.0, "GPU": 2.0}]
    text = r"^gpus_per_trial must be a whole number with workers_per_trial > 1, .*, got 0\.5$"
    with pytest.raises(DeviceError, match=text):
        resources(Config(workers_per_trial=2, gpus_per_trial=0.5), nodes)
    assert asked_of(Config(workers_per_trial=2, gpus_per_trial=1), nodes)[1] == 1
    assert asked_of(Config(workers_per_trial=2, gpus_per_trial=0), nodes)[1] == 4


@pytest.mark.parametrize(
    ("fields", "nodes", "trials"),
    [
        ({"num_trials": 24}, [{"CPU": 16.0, "GPU": 1.0}], 4),
        ({"num_trials": 24}, [{"CPU": 2.0, "GPU": 1.0}], 2),  # cores
        ({"num_trials": 4}, [{"CPU": 64.0, "GPU": 8.0}], 1),  # a GPU each
        ({"num_trials": 24, "max_concurrent": 2}, [{"CPU": 16.0, "GPU": 1.0}], 2),
        ({"num_trials": 24}, [{"CPU": 64.0, "GPU": 8.0}], 3),
        ({"num_trials": 24}, [{"CPU": 16.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 4.0}], 1),
    ],
)
def test_trials_are_spread_over_the_gpus(
    fields: dict[str, Any], nodes: list[dict[str, float]], trials: int
) -> None:
    assert packed(Config(**fields), GpuMemory(2**30, 0, 80 * 2**30), nodes) == trials


FAKE_GPU = """
import os, sys
from vgg_search.engine.environment import RAY_ENVIRONMENT
os.environ.update(RAY_ENVIRONMENT)
import ray
ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
from vgg_search.config import Config
from vgg_search.engine import nodes
from vgg_search.storage.place import Place
"""
REFUSED = """
import vgg_search
try:
    vgg_search.search(storage_path=sys.argv[1], dataset="sample", num_trials=1)
except ValueError as error:
    print(type(error).__name__, error)
"""
HELD = """
nodes.gpu_trouble = lambda: ""
nodes.GPU_SECONDS = 2.0

@ray.remote(num_gpus=0.5)
class Holder:
    def there(self): return True

holder = Holder.remote()
ray.get(holder.there.remote())
cluster = nodes.Cluster(Config(), Place(sys.argv[1]))
print(cluster.packing, cluster.resources)
"""


def with_a_fake_gpu(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", FAKE_GPU + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="Ray is told of a GPU that is not there")
def test_a_gpu_that_torch_cannot_use_ends_the_search_before_it_starts(tmp_path: Path) -> None:
    line = with_a_fake_gpu(REFUSED, str(tmp_path / "runs"))
    assert line.startswith("DeviceError Ray counts a GPU, but torch ")
    assert line.endswith("; --gpus-per-trial 0 trains on the CPU")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_gpu_that_others_hold_is_not_waited_for(tmp_path: Path) -> None:
    line = with_a_fake_gpu(HELD, str(tmp_path))
    assert line == ("a GPU for each trial: none was free within 2 s {'cpu': 1.0, 'gpu': 1.0}")


NODES = """
import json, sys, tempfile
from vgg_search.engine.environment import RAY_ENVIRONMENT
import os
os.environ.update(RAY_ENVIRONMENT)
import ray
from ray.cluster_utils import Cluster
from vgg_search.config import Config, ConfigError
from vgg_search.storage.place import Place
from vgg_search.engine import nodes
from vgg_search.engine.room import at_a_time, resources

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
cluster.add_node(num_cpus=3, num_gpus=2)
cluster.add_node(num_cpus=2, num_gpus=0)
ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
answers = []
for fields in json.loads(sys.argv[1]):
    try:
        there = [node["Resources"] for node in nodes.alive()]
        config = Config(**fields)
        needed = resources(config, there)
        answers.append((needed, at_a_time(config, there, **needed)))
    except ValueError as error:
        answers.append(str(error))
with tempfile.TemporaryDirectory() as folder:
    try:
        nodes.Cluster(Config(storage_path=folder), Place(folder))
        answers.append("all are sound")
    except ValueError as error:
        answers.append(type(error).__name__)
print(json.dumps(answers))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_places_are_counted_node_by_node() -> None:
    """A head without cores, a node of 3 cores and 2 GPUs, a node of 2 cores."""
    asked: list[tuple[dict[str, Any], Any]] = [
        ({}, [{"cpu": 1.0, "gpu": 1.0}, 2]),
        ({"gpus_per_trial": 0}, [{"cpu": 1.0, "gpu": 0.0}, 5]),
        ({"gpus_per_trial": 0, "cpus_per_trial": 2}, [{"cpu": 2.0, "gpu": 0.0}, 2]),
        ({"gpus_per_trial": 0.5}, [{"cpu": 1.0, "gpu": 0.5}, 3]),
        ({"gpus_per_trial": 0.6}, [{"cpu": 1.0, "gpu": 0.6}, 2]),
        ({"gpus_per_trial": 2}, [{"cpu": 1.0, "gpu": 2.0}, 1]),
        (
            {"gpus_per_trial": 0, "cpus_per_trial": 4},
            "cpus_per_trial must be <= 3, the most that a node has, got 4",
        ),
    ]
    done = subprocess.run(
        [sys.executable, "-c", NODES, json.dumps([fields for fields, _ in asked])],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    *answers, probed = json.loads(done.stdout.splitlines()[-1])
    assert answers == [answer for _, answer in asked]
    # Of a Ray that was joined in Python too: Ray is told of GPUs that are not there
    assert probed == ("all are sound" if torch.cuda.is_available() else "NodeError")


@pytest.mark.parametrize(
    ("address", "rest"),
    [
        ("ray://head:10001", "; from a machine outside of it: ray job submit"),
        ("http://head:8265", "; from a machine outside of it: ray job submit"),
        ("head", ""),
        ("head:port", ""),
        ("127.0.0.9:1", ": Connection refused"),
        ("nobody.invalid:6379", r": .*[Nn]ame.*"),
    ],
)
def test_an_address_where_no_cluster_is(address: str, rest: str) -> None:
    text = rf"^address must be auto or host:port of a Ray cluster, got {address}{rest}$"
    with pytest.raises(ConfigError, match=text), ray_cluster(Config(address=address)):
        pass


MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.55.0
    Python: 3.11.8
This process on Ray Client was started with:
    Ray: 2.60.0
    Python: 3.12.1
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            MISMATCH,
            "the cluster at head:1 runs Ray 2.55.0 on Python 3.11.8, "
            "this driver has Ray 2.60.0 on Python 3.12.1: they must be the same",
        ),
        (
            "Ray is already\ninitialised",
            "address must be a Ray cluster that answers, got head:1: Ray is already; of one that "
            "asks for a token RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE tell it",
        ),
    ],
)
def test_a_refusal_is_one_line(text: str, line: str) -> None:
    assert refusal("head:1", text) == line


ENVIRONMENT = """
import json, os
from vgg_search.engine.environment import RAY_ENVIRONMENT
os.environ.update(RAY_ENVIRONMENT)
from vgg_search.engine.connection import ray_cluster
from vgg_search.config import Config
with ray_cluster(Config(address="local")):
    import ray
    print(json.dumps(ray.get_runtime_context().runtime_env["env_vars"]))
    assert ray.get(ray.remote(lambda: os.environ["PL_DISABLE_FORK"]).remote()) == "1"
"""


def test_workers_have_the_environment_that_tune_asks_for() -> None:
    done = subprocess.run([sys.executable, "-c", ENVIRONMENT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"PL_DISABLE_FORK": "1"}


def test_a_node_says_what_it_sees(tmp_path: Path) -> None:
    here, there = Place(str(tmp_path / "here")), Place(str(tmp_path / "there"))
    here.make()
    with here.writing("driver") as folder:
        folder.mkdir()
        (folder / "key").write_text("abc")
    assert probe(here, "abc", gpu=False) == (versions(), "")
    assert versions().keys() == {"Python", "ray", "torch", "vgg_search"}
    other = "storage_path is not the driver's: another disk lies there"
    assert probe(there, "abc", gpu=False) == (versions(), other)
    assert probe(here, "def", gpu=False) == (versions(), other)


LEAVING = """
import gc, threading, time
import ray
from vgg_search.config import Config
from vgg_search.engine.connection import ray_cluster

gc.disable()

class Held:
    pass

def collect():
    while True:
        time.sleep(0.05)
        gc.collect()

with ray_cluster(Config(address="local")):
    for _ in range(2000):  # as Tune leaves its trials behind, each in a cycle
        held = Held()
        held.itself, held.object = held, ray.put(b"")
    del held
    threading.Thread(target=collect, daemon=True).start()
"""


def test_ray_is_left_while_another_thread_frees_what_was_ray_s(tmp_path: Path) -> None:
    """Ray ends a process that frees an object's reference while it is being left."""
    done = subprocess.run([sys.executable, "-c", LEAVING], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("TMPDIR", "{}/" + "x" * 100, "TMPDIR must have at most 39 bytes, or Ray's sockets have"),
        ("RAY_TMPDIR", "{}/" + "x" * 100, "RAY_TMPDIR must have at most 39 bytes, or Ray's sock"),
        ("RAY_TMPDIR", "/dev/null/x", "RAY_TMPDIR must be a folder that can be written to, got"),
    ],
)
def test_a_temporary_folder_that_ray_cannot_use(
    name: str, value: str, text: str, tmp_path: Path
) -> None:
    env = {n: v for n, v in os.environ.items() if n not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    command = [sys.executable, "-m", "vgg_search.run", "--dataset", "sample"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=env | {name: value.format(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"vgg-search: {text}")
    assert list(tmp_path.iterdir()) == []
