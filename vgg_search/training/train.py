"""Training: a generator of one row an epoch from (network, resident data, recipe, seed).

Knows no Ray: who runs it decides how long, and what becomes of the rows. The data lie on the device
as bytes; batches are cut, augmented, normalised and resized there.
"""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.sgd import sgd
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vgg_search.data.source import DatasetInfo
from vgg_search.data.splits import Splits
from vgg_search.records import METRIC, diverged
from vgg_search.training import augment
from vgg_search.training.device import plan, to_device
from vgg_search.training.graphs import Graphs
from vgg_search.training.inference import VAL_METRICS, prepare, validate
from vgg_search.training.model import VGG
from vgg_search.training.recipe import RECIPE_SIDE, Recipe, lr_at
from vgg_search.training.threads import Threads

# The average of weights is brought up to date once in so many steps, at a quarter of the cost.
EMA_EVERY = 4
# It reaches back over this share of the steps so far: right for any length, at any epoch. Measured
# on ((1,32),(2,64),(1,128)), val_accuracy after 5 and after all 10 epochs: 0.924, 0.935; with 0.1
# 0.922, 0.935; with 0.2 0.918, 0.930; without an average 0.906, 0.935.
EMA_REACH = 0.05


@dataclass(frozen=True, eq=False)
class Resident:
    """A data set on one device: images (N, C, H, W) uint8, labels (N,) int64; or no validation."""

    train_images: Tensor
    train_labels: Tensor
    info: DatasetInfo
    val_images: Tensor | None = None
    val_labels: Tensor | None = None

    @classmethod
    def load(cls, splits: Splits, device: torch.device | str, whole: bool = False) -> "Resident":
        """The data of `splits` on `device`; `whole`: train on validation too, and have none."""
        images, labels = splits.whole() if whole else (splits.train_images, splits.train_labels)
        train = (to_device(images, device), to_device(labels, device).long())
        if whole:
            return cls(*train, splits.info)
        val = (to_device(splits.val_images, device), to_device(splits.val_labels, device).long())
        return cls(*train, splits.info, *val)


class Training:
    """One training, an epoch at a time: stopped, saved and gone on with after any of them.

    Everything random in epoch e is drawn from (seed, e), so on one device kind a resumed training
    gives the rows of one that was never stopped. `rows` holds them all, `epoch` is their number;
    `diverged` says that the last has a loss that is not finite, after which nothing is trained.
    """

    def __init__(
        self, network: VGG, data: Resident, recipe: Recipe, seed: int, rank: int = 0
    ) -> None:
        self.data, self.recipe, self.seed, self.rank = data, recipe, seed, rank
        device = data.train_images.device
        self.plan = plan(recipe.precision, device)
        self.network = network.to(device).train().to(memory_format=torch.channels_last)
        self.forward: nn.Module = self.network  # where several processes train it, what joins them
        # What validation sees: the network itself, or the average of its past.
        self.measured = copy.deepcopy(network).eval() if recipe.ema else network
        # px of these images; the recipe's are of one of RECIPE_SIDE px
        self.crop, self.erase = (
            round(pixels * data.train_images.shape[-1] / RECIPE_SIDE)
            for pixels in (recipe.crop, recipe.erase)
        )
        self.lr = torch.zeros((), device=device)
        self.parameters: list[Tensor] = list(network.parameters())
        self.velocity: list[Tensor | None] = [
            torch.zeros_like(p) if recipe.momentum else None for p in self.parameters
        ]
        self.totals = torch.zeros(2, device=device)  # summed loss, correct answers
        self.weight = torch.ones((), device=device)  # of a step's loss in its gradient
        self.graphs = Graphs()
        self.threads = Threads(torch.get_num_threads() if device.type == "cpu" else 1)
        self.epoch = 0
        self.rows: list[dict[str, Any]] = []

    @property
    def diverged(self) -> bool:
        return bool(self.rows) and diverged(self.rows[-1])

    @property
    def best_epoch(self) -> int:
        """The epoch of the highest val_accuracy so far, the first of equals; 0 without one."""
        scored = [row for row in self.rows if math.isfinite(row.get(METRIC, math.nan))]
        return max(scored, key=lambda row: row[METRIC], default={"epoch": 0})["epoch"]

    def run(self, until: int) -> Iterator[dict[str, Any]]:
        """Train up to epoch `until`, at most `max_epochs`, and yield a row after each.

        A network whose loss is not finite is not validated: its val_ metrics are NaN.
        """
        while self.epoch < min(until, self.recipe.max_epochs) and not self.diverged:
            started = time.perf_counter()
            with self.threads.epoch():
                row = {"epoch": self.epoch + 1, **self._train_epoch()}
                row |= self._validate(row)
            row["epoch_seconds"] = time.perf_counter() - started
            self.epoch += 1
            self.rows.append(row)
            yield row

    def _validate(self, row: dict[str, Any]) -> dict[str, float]:
        data = self.data
        if data.val_images is None or data.val_labels is None:
            return {}
        if not math.isfinite(row["train_loss"]):
            return dict.fromkeys(VAL_METRICS, math.nan)
        return validate(self.measured, data.val_images, data.val_labels, data.info, self.plan)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.data.train_images) / self.recipe.batch_size)

    def _train_epoch(self) -> dict[str, float]:
        """The epoch's training and its part of the row: means over the batches as trained on."""
        device, recipe = self.lr.device, self.recipe
        count, side = len(self.data.train_images), self.data.train_images.shape[-1]
        words = np.random.SeedSequence((self.seed, self.epoch)).generate_state(2, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0]))
        started, step, seen = time.perf_counter(), self.epoch * self.steps, 0
        table = augment.draw(count, side, self.crop, self.erase, generator).to(device)
        self.totals.zero_()
        # Dropout draws from the global generators: they too start from (seed, epoch), and are
        # given back as they were.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(words[1]) + self.rank)
            # Every image once, in batches that differ by at most one: none is dropped, and no tiny
            # last batch takes a step at the full learning rate.
            for place, batch in enumerate(table.tensor_split(self.steps, dim=1)):
                lr = lr_at(step, self.steps * recipe.max_epochs, recipe)
                self.lr.fill_(lr)
                with self.threads.step(place, self.steps):
                    self.graphs.run(self._step, batch)
                step, seen = step + 1, seen + batch.shape[1]
                if recipe.ema and (step % EMA_EVERY == 0 or step % self.steps == 0):
                    self._average(step)
                # On the CPU a look costs nothing, and saves what is left of a lost epoch.
                if device.type == "cpu" and not self.totals[0].isfinite():
                    break
        loss, accuracy = (self.totals / seen).tolist()  # the epoch's one wait for the device
        speed = seen / (time.perf_counter() - started)
        return {
            "train_loss": loss,
            "train_accuracy": accuracy,
            "lr": lr,
            "images_per_second": speed,
        }

    def _step(self, batch: Tensor) -> None:
        """One step on the images that a part of the table (6, N) names."""
        recipe, order = self.recipe, batch[augment.ORDER]
        # Copies whole images; indexing by a tensor goes byte by byte (53 us instead of 3).
        images = self.data.train_images.index_select(0, order)
        labels = self.data.train_labels.index_select(0, order)
        if recipe.flip:
            images = augment.flip(images, batch[augment.FLIP])
        if self.crop:
            images = augment.shift(
                images, batch[augment.SHIFT_Y], batch[augment.SHIFT_X], self.crop
            )
        if self.erase:
            images = augment.blank(
                images, batch[augment.ERASE_Y], batch[augment.ERASE_X], self.erase
            )
        with self.plan.autocast():
            pixels = prepare(images, self.network.resolution, self.data.info)
            scores = self.forward(pixels)
        scores = scores.float()
        loss = F.cross_entropy(scores, labels, label_smoothing=recipe.label_smoothing)
        self.network.zero_grad()
        loss.backward(self.weight)
        self._descend()
        hits = (scores.argmax(1) == labels).sum()
        self.totals += torch.stack([loss.detach() * len(labels), hits])

    @torch.no_grad()
    def _descend(self) -> None:
        """A step of SGD, by the function behind torch.optim.SGD: the class imports torch's compiler
        (0.9 s of CPU in every new process)."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        sgd(
            self.parameters,
            gradients,
            self.velocity,
            lr=self.lr,
            momentum=self.recipe.momentum,
            nesterov=self.recipe.momentum > 0,
            weight_decay=self.recipe.weight_decay,
            dampening=0,
            maximize=False,
            fused=True,
        )

    def _average(self, step: int) -> None:
        """Move the measured weights and batch-norm statistics towards the network's."""
        # Near 1 at first: the average starts from weights that nobody trained.
        share = 1 / (1 + EMA_REACH * step / EMA_EVERY)
        old, new = (
            [t for t in net.state_dict().values() if t.is_floating_point()]
            for net in (self.measured, self.network)
        )
        get_ema_multi_avg_fn(1 - share)(old, new, None)

    def weights(self) -> dict[str, Tensor]:
        """State of the network that validation measured."""
        return self.measured.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """All it takes to go on; live tensors, to be saved before more is trained."""
        return {
            "epoch": self.epoch,
            "rows": self.rows,
            "network": self.network.state_dict(),
            "measured": self.measured.state_dict(),
            "velocity": self.velocity,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.rows = state["epoch"], list(state["rows"])
        self.network.load_state_dict(state["network"])
        self.measured.load_state_dict(state["measured"])
        for mine, saved in zip(self.velocity, state["velocity"], strict=True):
            if mine is not None:  # in place: captured graphs write to it
                mine.copy_(saved)
