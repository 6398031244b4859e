"""The cluster a search runs on: what its nodes are, and room for trials there.

Nothing is assumed of a node: before the first trial each one says which versions it has and whether
it sees the study's storage. Nodes that join later get trials too, and are not asked.
"""

import hashlib
import importlib.metadata
import logging
import platform
import time
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vgg_search.config import Config
from vgg_search.engine.connection import PACKAGE
from vgg_search.engine.environment import LOCAL, address_of
from vgg_search.engine.room import at_a_time, packed, resources
from vgg_search.errors import DeviceError, InputError, last_line
from vgg_search.storage.place import Place, StorageError

if TYPE_CHECKING:
    from vgg_search.engine.checkpoints import DistributedTraining
    from vgg_search.engine.packing import GpuMemory

PROBE_SECONDS = 120.0  # for a node to be probed: to import torch may take a minute there
GPU_SECONDS = 60.0  # for a GPU to be free and measured
LIST_SECONDS = 2.0  # between two readings of the list of nodes

log = logging.getLogger("vgg_search")


class NodeError(InputError):
    """Nodes that cannot take part."""


def versions() -> dict[str, str]:
    """What has to be the same on every node; of this package, a digest of its sources."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)}\n".encode() + file.read_bytes())
    libraries = {name: importlib.metadata.version(name) for name in ("ray", "torch")}
    return {"Python": platform.python_version(), **libraries, "vgg_search": digest.hexdigest()[:12]}


def probe(place: Place, key: str, gpu: bool) -> tuple[dict[str, str], str]:
    """On a node: its versions, and what is wrong with the storage as seen from it, or with its
    `gpu`, if trials are to train on one ("": nothing).

    A trial's imports are made too: they may be what fails, and Ray keeps the process that has made
    them for the node's first trial.
    """
    import vgg_search.engine.worker  # noqa: F401

    if gpu and (trouble := gpu_trouble()):
        return versions(), trouble
    try:
        with place.reading("driver/key") as file:
            if file is None or file.read_text() != key:
                return versions(), "storage_path is not the driver's: another disk lies there"
        with place.writing("node") as folder:
            folder.mkdir(exist_ok=True)
            (folder / uuid.uuid4().hex).touch()
    except (OSError, StorageError) as error:
        return versions(), str(error)
    return versions(), ""


def gpu_trouble() -> str:
    """Why torch cannot use the GPUs that Ray counts here, which may need no more than a driver."""
    from vgg_search.training.device import cuda_trouble

    trouble = cuda_trouble()
    return f"Ray counts a GPU, but {trouble}" if trouble else ""


def unsound_nodes(
    nodes: list[dict[str, Any]], storage_path: str, gpus: bool = True
) -> dict[str, str]:
    """What is wrong with each node that cannot take part, by its id; asked of all of them at once.
    `gpus`: whether trials train on GPUs where there are any.

    Raises StorageError where the driver itself cannot use the storage.
    """
    key, existed = uuid.uuid4().hex, Path(storage_path).exists()
    place = Place.of(storage_path, f".probe-{key}")
    place.make()
    with place.writing("driver") as folder:
        folder.mkdir(exist_ok=True)
        (folder / "key").write_text(key)
    task: Any = ray.remote(num_cpus=0, max_retries=0)(probe)
    answers = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        gpu = gpus and bool(node["Resources"].get("GPU"))
        answers[node["NodeID"]] = task.options(scheduling_strategy=there).remote(place, key, gpu)
    ray.wait(list(answers.values()), num_returns=len(answers), timeout=PROBE_SECONDS)
    troubles = {node_id: _trouble(answer) for node_id, answer in answers.items()}
    place.remove("")
    if not existed:  # it was made for this
        with suppress(OSError):
            Path(storage_path).rmdir()
    return {node_id: text for node_id, text in troubles.items() if text}


def _trouble(answer: Any) -> str:
    """What the answer of a node's probe, a reference, says against it."""
    try:
        theirs, trouble = ray.get(answer, timeout=0)
    except GetTimeoutError:
        return f"no answer in {PROBE_SECONDS:g} s"
    except RayError as error:
        return last_line(error)
    ours = versions()
    different = [name for name in ours if theirs[name] != ours[name]]
    texts = [f"{name} {theirs[name]}, the driver has {ours[name]}" for name in different]
    return "; ".join(texts + ([trouble] if trouble else []))


class Cluster:
    """The nodes of a connected cluster, and how many trials have room on those that are sound."""

    def __init__(self, config: Config, place: Place) -> None:
        """Probes every node. Raises NodeError if one is unsound, unless `skip_bad_nodes`, and
        DeviceError if no node has room for a trial."""
        self.config, self.place = config, place
        self._unsound: set[str] = set()  # ids of nodes
        self._alive, self._listed = alive(), time.monotonic()
        if address_of(config) != LOCAL or len(self._alive) > 1:  # of a Ray joined in Python
            self._check_nodes()
        elif config.gpus_per_trial and self._gpus() and (trouble := gpu_trouble()):
            raise DeviceError(f"{trouble}; --gpus-per-trial 0 trains on the CPU")
        self.selector = {}  # Ray's label selector of the nodes that are not known as unsound
        if self._unsound:
            self.selector["ray.io/node-id"] = f"!in({','.join(sorted(self._unsound))})"
        self.packing = ""  # how many trials share a GPU, and why
        if config.gpus_per_trial == "auto" and config.workers_per_trial == 1:
            config = self._packed(config)
        self.resources = resources(config, self.nodes())  # of a trial

    def _check_nodes(self) -> None:
        nodes = {node["NodeID"]: node for node in self._alive}
        gpus = self.config.gpus_per_trial != 0
        troubles = unsound_nodes(self._alive, self.config.storage_path, gpus)
        self._alive, self._listed = alive(), time.monotonic()
        self._unsound = troubles.keys() & {node["NodeID"] for node in self._alive}  # else gone
        for node_id in self._unsound:
            log.warning("node %s: %s", nodes[node_id]["NodeManagerAddress"], troubles[node_id])
        unsound, every = len(self._unsound), len(self._alive)
        sound = every - unsound
        if unsound and not (sound and self.config.skip_bad_nodes):
            raise NodeError(
                f"{unsound} of {every} nodes cannot take part"
                + (f"; --skip-bad-nodes true starts on the other {sound}" if sound else "")
            )

    def _gpus(self) -> list[dict[str, Any]]:
        """Sound nodes with GPUs, as Ray lists them."""
        return [node for node in self._sound() if node["Resources"].get("GPU")]

    def _packed(self, config: Config) -> Config:
        """With as many trials a GPU as one of each kind was measured to have room for."""
        nodes = self._gpus()
        if not nodes:
            return config
        from vgg_search.engine.packing import share

        memory = _smallest(config, nodes)
        if isinstance(memory, str):
            self.packing = f"a GPU for each trial: {memory}"
            return config
        trials = packed(config, memory, [node["Resources"] for node in nodes])
        self.packing = f"{trials} trials a GPU: {memory}"
        return config.model_copy(update={"gpus_per_trial": share(trials)})

    def nodes(self) -> list[dict[str, float]]:
        """What each node has that trials may be sent to: "CPU", "GPU" and other names of Ray's."""
        return [node["Resources"] for node in self._sound()]

    def _sound(self) -> list[dict[str, Any]]:
        return [node for node in self._alive if node["NodeID"] not in self._unsound]

    def slots(self) -> int:
        """Trials that there is room for now, as nodes come and go."""
        if time.monotonic() - self._listed > LIST_SECONDS:
            self._alive, self._listed = alive(), time.monotonic()
        return at_a_time(self.config, self.nodes(), **self.resources)

    def distributed_training(self) -> "DistributedTraining | None":
        """How several processes train one network; None where a trial has one."""
        number = self.config.workers_per_trial
        if number == 1:
            return None
        from vgg_search.engine.ddp import train_distributed  # seconds, which most searches save

        return partial(
            train_distributed, processes=number, resources=self.resources, selector=self.selector
        )

    def bundle(self) -> dict[str, float]:
        """What Ray is asked for to run a trial."""
        if self.config.workers_per_trial > 1:  # Ray Train asks for its workers' own
            return {"memory": 2.0**20}
        return {name.upper(): amount for name, amount in self.resources.items() if amount}


def _smallest(config: Config, nodes: list[dict[str, Any]]) -> "GpuMemory | str":
    """What the largest network leaves of a GPU: measured on one of each kind, that of the least
    room; or why that is not known."""
    from vgg_search.engine.packing import MOST, measure  # torch: without GPUs it can wait

    kinds = {_accelerator(node): node["NodeID"] for node in nodes}
    options: dict[str, Any] = {"num_cpus": config.cpus_per_trial, "num_gpus": 1, "max_retries": 0}
    task = ray.remote(**options)(measure)
    answers = []
    for node_id in kinds.values():
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        answers.append(task.options(scheduling_strategy=there).remote(config))
    try:
        memories: list[GpuMemory] = ray.get(answers, timeout=GPU_SECONDS)
    except GetTimeoutError:
        for answer in answers:
            ray.cancel(answer, force=True)
        return f"none was free within {GPU_SECONDS:g} s"
    except RayError as error:
        return last_line(error)
    return min(memories, key=lambda memory: memory.trials(MOST))


def _accelerator(node: dict[str, Any]) -> str:
    """The kind of a node's GPUs, for which Ray counts a resource."""
    return next((name for name in node["Resources"] if name.startswith("accelerator_type:")), "")


def alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]
