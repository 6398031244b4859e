"""The cluster a search runs on: what its nodes are, and room for trials there.

Nothing is assumed of a node: before the first trial each one says which versions it has and whether
it sees the study's storage, and a node that joins later is asked when it does.
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
from ray._private.state import state
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vgg_search.config import Config
from vgg_search.engine.connection import LOCAL, PACKAGE, address_of
from vgg_search.errors import InputError
from vgg_search.storage.place import Place, StorageError

if TYPE_CHECKING:
    from vgg_search.engine.checkpoints import Together

ANSWER_SECONDS = 120.0  # for a node to be looked at: to import torch may take a minute there
LOOK_SECONDS = 2.0  # between two looks at the list of nodes

log = logging.getLogger("vgg_search")


class DeviceError(InputError):
    """The cluster lacks what a trial asks for."""


class NodeError(InputError):
    """Nodes that cannot take part."""


def versions() -> dict[str, str]:
    """What has to be the same on every node; of this package, a digest of its sources."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)}\n".encode() + file.read_bytes())
    found = {name: importlib.metadata.version(name) for name in ("ray", "torch")}
    return {"Python": platform.python_version(), **found, "vgg_search": digest.hexdigest()[:12]}


def look(place: Place, key: str) -> tuple[dict[str, str], str | None]:
    """On a node: its versions, and what is wrong with the storage as seen from it.

    A trial's imports are made too: they may be what fails, and Ray keeps the process that has made
    them for the node's first trial.
    """
    import vgg_search.engine.worker  # noqa: F401

    try:
        with place.reading("driver/key") as file:
            if file is None or file.read_text() != key:
                return versions(), "storage_path is not the driver's: another disk lies there"
        with place.writing("node") as folder:
            folder.mkdir(exist_ok=True)
            (folder / uuid.uuid4().hex).touch()
    except (OSError, StorageError) as error:
        return versions(), str(error)
    return versions(), None


class Cluster:
    """The nodes of a connected cluster, and how many trials have room on those that are sound."""

    def __init__(self, config: Config, place: Place) -> None:
        """Asks every node. Raises NodeError if one is unsound, unless `skip_bad_nodes`, and
        DeviceError if no node has room for a trial."""
        self.config, self.place = config, place
        self._look()
        self._sound: dict[str, bool] = {}  # by the node's id, once it is known
        self._asked: dict[Any, tuple[dict[str, Any], Place]] = {}  # by reference to the answer
        if address_of(config) == LOCAL:  # this machine and nothing else
            self._sound = {node["NodeID"]: True for node in self._alive}
        else:
            self._check_all()
        self.packing = ""  # how many trials share a GPU, and why
        if config.gpus_per_trial == "auto" and config.workers_per_trial == 1:
            config = self._packed(config)
        self.wanted, _ = resources(config, self.nodes())

    def _look(self) -> None:
        self._alive, self._listed = alive(), time.monotonic()
        self._draining = state.get_draining_nodes()

    def _packed(self, config: Config) -> Config:
        """With as many trials a GPU as one of the GPUs was found to bear."""
        gpus = [node for node in self.nodes() if node.get("GPU")]
        if not gpus:
            return config
        from vgg_search.engine.packing import measure, share  # torch: without GPUs it can wait

        asked: dict[str, Any] = {"num_cpus": config.cpus_per_trial, "num_gpus": 1}
        probe = ray.remote(**asked, max_retries=0, label_selector=self.selector)(measure)
        try:
            load = ray.get(probe.remote(config))
        except RayError as error:
            self.packing = f"a GPU for each trial: {str(error).strip().splitlines()[-1]}"
            return config
        if load is None:
            return config
        cores = min(node.get("CPU", 0.0) / node["GPU"] for node in gpus)
        trials = load.trials(int(cores / config.cpus_per_trial))
        self.packing = f"{trials} trials a GPU: {load}"
        return config.model_copy(update={"gpus_per_trial": share(trials)})

    def _check_all(self) -> None:
        self._ask(self._alive)
        until = time.monotonic() + ANSWER_SECONDS
        while self._asked and time.monotonic() < until:
            self._hear(0.2)
        for node, probe in self._asked.values():
            self._judge(node, f"no answer in {ANSWER_SECONDS:g} s")
            probe.remove("")
        self._asked.clear()
        with suppress(OSError):  # if it was made for this
            Path(self.config.storage_path).rmdir()
        rest, every = sum(self._sound.values()), len(self._sound)
        if rest < every and not (rest and self.config.skip_bad_nodes):
            raise NodeError(
                f"{every - rest} of {every} nodes cannot take part"
                + (f"; --skip-bad-nodes true starts on the other {rest}" if rest else "")
            )

    def _ask(self, nodes: list[dict[str, Any]]) -> None:
        key = uuid.uuid4().hex
        probe = Place.of(self.config.storage_path, f".probe-{key}")
        with probe.writing("driver") as folder:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "key").write_text(key)
        asking: Any = ray.remote(num_cpus=0, max_retries=0)(look)
        for node in nodes:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answer = asking.options(scheduling_strategy=where).remote(probe, key)
            self._asked[answer] = node, probe

    def _hear(self, seconds: float) -> None:
        ours = versions()
        for answer in ray.wait(list(self._asked), timeout=seconds)[0]:
            node, probe = self._asked.pop(answer)
            try:
                theirs, trouble = ray.get(answer)
            except RayError as error:
                theirs, trouble = ours, str(error).strip().splitlines()[-1]
            other = [name for name in ours if theirs[name] != ours[name]]
            wrong = [f"{name} {theirs[name]}, the driver has {ours[name]}" for name in other]
            if node["NodeID"] in [node["NodeID"] for node in alive()]:  # else it is gone
                self._judge(node, "; ".join(wrong + ([trouble] if trouble else [])))
            if probe not in [other for _, other in self._asked.values()]:
                probe.remove("")

    def _judge(self, node: dict[str, Any], trouble: str) -> None:
        self._sound[node["NodeID"]] = not trouble
        if trouble:
            log.warning("node %s: %s", node["NodeManagerAddress"], trouble)

    @property
    def selector(self) -> dict[str, str]:
        """Ray's label selector of the nodes that are not known as unsound."""
        bad = [node_id for node_id, sound in self._sound.items() if not sound]
        return {"ray.io/node-id": f"!in({','.join(bad)})"} if bad else {}

    def nodes(self) -> list[dict[str, float]]:
        """What each node has that trials may be sent to."""
        return [node["Resources"] for node in self._open()]

    def _open(self) -> list[dict[str, Any]]:
        sound = [node for node in self._alive if self._sound.get(node["NodeID"])]
        return [node for node in sound if node["NodeID"] not in self._draining]

    def only(self) -> dict[str, str]:
        """Ray's label selector of just these nodes; one that joined and is not known yet waits."""
        ids = [node["NodeID"] for node in self._open()]
        return {"ray.io/node-id": f"in({','.join(ids) or 'none'})"}

    def leaving(self) -> set[str]:
        """Addresses of the nodes that are being drained."""
        return {n["NodeManagerAddress"] for n in self._alive if n["NodeID"] in self._draining}

    def places(self) -> int:
        """Trials that there is room for now, as nodes come and go."""
        if time.monotonic() - self._listed > LOOK_SECONDS:
            self._look()
            asked = self._sound.keys() | {node["NodeID"] for node, _ in self._asked.values()}
            joined = [node for node in self._alive if node["NodeID"] not in asked]
            try:
                if joined:
                    self._ask(joined)
                if self._asked:
                    self._hear(0)
            except StorageError as error:
                log.warning("%s; nodes that joined wait for it", error)
        return at_a_time(self.config, sum(room(node, **self.wanted) for node in self.nodes()))

    def together(self) -> "Together | None":
        """How several processes train one network; None where a trial has one."""
        number, wanted = self.config.workers_per_trial, self.wanted
        if number == 1:
            return None
        from vgg_search.engine.ddp import train_together  # seconds, which most searches save

        return partial(train_together, ranks=number, wanted=wanted, selector=self.selector)

    def bundle(self) -> dict[str, float]:
        """What Ray is asked for to run a trial."""
        bundle = {name.upper(): amount for name, amount in self.wanted.items() if amount}
        if self.config.workers_per_trial > 1:  # Ray Train asks for its workers' own
            return {"memory": 2.0**20}
        return bundle


def alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def resources(config: Config, nodes: list[dict[str, float]]) -> tuple[dict[str, float], int]:
    """(what a trial asks for, trials at a time). Raises DeviceError if no node has room for one."""
    there = {name: max(node.get(name.upper(), 0.0) for node in nodes) for name in ("cpu", "gpu")}
    gpus = config.gpus_per_trial
    if gpus == "auto":
        gpus = 1.0 if there["gpu"] else 0.0
    if config.needs_gpu and not there["gpu"]:
        raise DeviceError(
            "this experiment needs a GPU, none found; add --needs-gpu false to train on the CPU"
        )
    wanted = {"cpu": config.cpus_per_trial, "gpu": float(gpus)}
    for name, amount in wanted.items():
        if amount > there[name]:
            raise DeviceError(
                f"{name}s_per_trial must be <= {there[name]:g}, the most that a node has, "
                f"got {amount:g}"
            )
    processes = sum(room(node, **wanted) for node in nodes)
    if not processes:
        raise DeviceError(
            f"no node has what a trial asks for: {wanted['cpu']:g} CPUs and {wanted['gpu']:g} GPUs"
        )
    if config.workers_per_trial > processes:
        raise DeviceError(
            f"workers_per_trial must be <= {processes}, the processes that there is room for, "
            f"got {config.workers_per_trial}"
        )
    return wanted, at_a_time(config, processes)


def at_a_time(config: Config, processes: int) -> int:
    """Trials that so many processes train side by side, those of a trial perhaps on several nodes;
    never more than asked for."""
    there = processes // config.workers_per_trial
    return min(there, config.max_concurrent or there)


def room(node: dict[str, float], cpu: float, gpu: float) -> int:
    """How many trials a node has room for; a share of a GPU is one GPU's."""
    by_cpu, gpus = int(node.get("CPU", 0.0) / cpu), node.get("GPU", 0.0)
    if not gpu:
        return by_cpu
    return min(by_cpu, int(gpus) * int(1 / gpu) if gpu < 1 else int(gpus / gpu))
