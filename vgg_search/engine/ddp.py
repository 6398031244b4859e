"""One network trained by several processes at once: DDP, as Ray Train starts and restarts it.

Every process (rank) has the whole data and draws the same batches; each trains on its part of each
batch, and gradients are averaged before a step: batch size, order and learning rates are those of
one process. Batch norm sees the whole batch on GPUs (torch's SyncBatchNorm, which has no kernel for
CPUs); on CPUs each process's part has statistics of its own. A rank that dies takes the others with
it; Ray Train starts them all again, from the last checkpoint. Starting them takes 10 to 20 s.
"""

import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Empty, Queue
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vgg_search.engine.checkpoints import Row, TrainingTask
from vgg_search.storage.place import StorageError
from vgg_search.training.device import peak_memory_mib, pick_device, prepare_process
from vgg_search.training.model import VGG, build
from vgg_search.training.recipe import Recipe
from vgg_search.training.train import Resident, Training

RESTARTS = 2  # of all ranks, because one of them died


class Rank(Training):
    """One process's part of a training."""

    def __init__(
        self, network: VGG, data: Resident, recipe: Recipe, seed: int, rank: int, ranks: int
    ) -> None:
        if data.train_images.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        super().__init__(network, data, recipe, seed, rank)
        self.ranks = ranks
        self.graphs.refused = True
        self.forward = DistributedDataParallel(self.network)

    def check_start(self) -> None:
        """Raise StorageError unless all processes are at the same epoch: one that does not see the
        checkpoint would average its gradients with those of another network, and nobody would know.
        """
        mine = torch.tensor([self.epoch], device=self.lr.device)
        all_epochs = [torch.zeros_like(mine) for _ in range(self.ranks)]
        dist.all_gather(all_epochs, mine)
        epochs = [int(epoch) for epoch in all_epochs]
        if len(set(epochs)) > 1:
            rule = "storage_path must be a place that all processes of a trial see"
            raise StorageError(f"{rule}, got checkpoints of epochs {epochs}")

    def _step(self, batch: Tensor) -> None:
        before, part = self.totals.clone(), batch[:, self.rank :: self.ranks]
        # Gradients are averaged over ranks, whose parts of a batch may differ by an image
        self.weight.fill_(self.ranks * part.shape[1] / batch.shape[1])
        super()._step(part)
        step = self.totals - before
        dist.all_reduce(step)  # loss and hits of the whole batch, and the same end for all
        self.totals.copy_(before + step)


def train_distributed(
    task: TrainingTask,
    data: Any,
    processes: int,
    resources: dict[str, float],
    selector: dict[str, str],
) -> Iterator[Row]:
    """Rows of the epochs trained by so many processes, each asking for `resources` on nodes of
    `selector`; a row once, also if ranks were restarted. `data` is a reference to Splits. Raises
    what ended the ranks for good.
    """
    rows = Queue(actor_options={"num_cpus": 0})
    where: dict[str, Any] = {"label_selector": selector} if selector else {}
    with tempfile.TemporaryDirectory(prefix="vgg_search-") as scratch:
        trainer = TorchTrainer(
            train_rank,
            train_loop_config={
                "task": task,
                "data": [data],
                "rows": rows,
                "gpu": resources["gpu"] > 0,
            },
            scaling_config=ScalingConfig(
                num_workers=processes,
                use_gpu=resources["gpu"] > 0,
                resources_per_worker={k.upper(): v for k, v in resources.items() if v},
                **where,
            ),
            run_config=RunConfig(
                storage_path=scratch, failure_config=FailureConfig(max_failures=RESTARTS)
            ),
        )
        with ThreadPoolExecutor(1) as pool:
            fit = pool.submit(trainer.fit)
            yield from _new_rows(rows, fit)
            fit.result()
    rows.shutdown()


def _new_rows(rows: Queue, fit: Future[Any]) -> Iterator[Row]:
    """What comes through the queue until `fit` has ended, each epoch once."""
    last = 0
    while True:
        ended = fit.done()
        try:
            row = rows.get(timeout=0.2)
        except Empty:
            if ended:
                return
            continue
        if row["epoch"] > last:
            last = row["epoch"]
            yield row


def train_rank(config: dict[str, Any]) -> None:
    """What each rank does; the first one reports the rows and keeps the checkpoints."""
    task: TrainingTask = config["task"]
    rank, ranks = get_context().get_world_rank(), get_context().get_world_size()
    prepare_process(task.threads)
    device = pick_device(config["gpu"])
    if device.type == "cuda":  # all of a node's are visible to each of its ranks
        device = get_device()
    data = task.data(ray.get(config["data"][0]), device)
    if rank:  # the first alone looks at validation
        data = Resident(data.train_images, data.train_labels, data.info)
    training = Rank(build(task.network, task.seed), data, task.recipe, task.seed, rank, ranks)
    task.checkpoints.resume(training)
    training.check_start()
    if rank == 0:
        config["rows"].put_nowait_batch(task.checkpoints.unreported_rows(training))
    while _all_go_on(not training.diverged and training.epoch < task.checkpoints.until, device):
        row = next(training.run(training.epoch + 1))
        row["peak_memory_mib"] = peak_memory_mib(device)  # of the first: who listens trains nothing
        if rank == 0:
            task.checkpoints.save(row, training)
            config["rows"].put(row)


def _all_go_on(first: bool, device: torch.device) -> bool:
    """What the first rank says, so that none waits for one that has stopped."""
    answer = torch.tensor(int(first), device=device)
    dist.broadcast(answer, 0)
    return bool(answer.item())
