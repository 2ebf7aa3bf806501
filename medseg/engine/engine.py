"""One network in training: its epochs and steps, its scores, its state."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..config import TrainConfig
from ..data import Table
from ..data.normalize import normalize
from ..errors import UserError
from ..losses import build_loss
from .accidents import Diverged
from .average import Average
from .batches import EpochBatches
from .optimizer import build_optimizer
from .schedule import learning_rate
from .scoring import Scored
from .sets import augmentation, class_weights, describe_sets, open_scorer, open_sets
from .shared import same_buffers, shared_loss

_LOOK_EVERY = 16  # steps between looks at the loss: each one waits for the GPU


@dataclass
class Engine:
    """Trains and scores one network.

    All numbers drawn in a step depend on seed, epoch, step and process alone, so a run that goes on
    from a state draws the same as one that was never stopped.

    Args:
        config: the settings.
        table: the checked data set.
        fabric: launched; decides device, precision and processes.
        network: made by `create_model`, with its first weights, on its device.
    """

    config: TrainConfig
    table: Table
    fabric: Fabric
    network: nn.Module
    epoch: int = 0  # finished ones
    step: int = 0  # done in the epoch that is not finished
    best: float = -1.0
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    first_batch: float | None = None  # when it had come, by time.perf_counter

    def __post_init__(self) -> None:
        """Puts optimizer and processes around the network and opens the two parts of the data."""
        config = self.config
        optimizer = build_optimizer(config, self.network.parameters())
        wrapped: Any = torch.compile(self.network) if config.compile else self.network
        self.model, self.optimizer = self.fabric.setup(wrapped, optimizer)
        self.average = Average(self.network, config.ema) if config.ema else None
        weights = class_weights(config, self.table)
        loss = build_loss(config.loss, len(self.table.names), weights)
        self.loss = shared_loss(loss, self.fabric)
        self.augment = augmentation(config)
        self.train_set, self.val_set = sets = open_sets(config, self.table, self.fabric)
        self.notes = describe_sets(config, self.table, *sets, weights)
        self._scorer = open_scorer(config, self.val_set, self.fabric, loss)
        self._batches = EpochBatches(
            len(self.train_set),
            config.images,
            config.seed,
            self.fabric.global_rank,
            self.fabric.world_size,
        )
        self._losses: list[Tensor] = []  # of the steps done in the unfinished epoch
        self._loader = self._open_loader(config.workers or 0)
        self.epochs = config.epochs or 1
        if config.steps is not None:
            self.epochs = math.ceil(config.steps / self.steps)

    def _open_loader(self, workers: int) -> DataLoader[Any]:
        # not through fabric.setup_dataloaders, which counts epochs from 0 again after --resume
        return DataLoader(
            self.train_set,
            batch_sampler=self._batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.fabric.device.type == "cuda",
            generator=torch.Generator(),
        )

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self._batches)

    @property
    def total(self) -> int:
        """Steps of the training."""
        return self.epochs * self.steps

    @property
    def done(self) -> int:
        """Steps done."""
        return self.epoch * self.steps + self.step

    @property
    def stalled(self) -> bool:
        """Whether --early_stop ends the training here."""
        waited = self.epoch - self.best_epoch
        return 0 < self.config.early_stop <= waited

    @property
    def scored(self) -> nn.Module:
        """The network that is scored and kept: the averaged one where there is one."""
        return self.network if self.average is None else self.average.network

    def train_epoch(self, tick: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Goes through the training part, from where the state is, to the end of the epoch.

        Args:
            tick: called after each step.

        Returns:
            Mean loss, last learning rate, seconds, and the part of them spent waiting for data.

        Raises:
            UserError: the loss is no longer a finite number.
        """
        start, waited, rate = time.perf_counter(), 0.0, 0.0
        self._set_mode()
        for batch, seconds in self._loaded():
            waited += seconds
            rate = self._set_rate()
            self._losses.append(self._step(batch["image"], batch["mask"]))
            self.step += 1
            if self.step % _LOOK_EVERY == 0 or self.step == self.steps:
                self.check_finite()
            tick()
        seconds = time.perf_counter() - start
        numbers = {"loss": float(torch.stack(self._losses).mean()), "lr": rate}
        self.epoch, self.step, self._losses = self.epoch + 1, 0, []
        same_buffers(self.fabric, self.network, self.scored)
        return numbers | {"seconds": seconds, "waiting": waited / seconds}

    def _loaded(self) -> Iterator[tuple[dict[str, Tensor], float]]:
        """Yields the batches still to come in this epoch, each with the seconds waited for it."""
        number = self.epoch + 1
        self._batches.start(number, self.step)
        self.train_set.set_epoch(number)
        self._loader.generator.manual_seed(self.config.seed + number)  # pyright: ignore
        loaded = iter(self._loader)
        for step in range(self.step, self.steps):
            start = time.perf_counter()
            batch = self.fabric.to_device(next(loaded))
            now = time.perf_counter()
            self.first_batch = self.first_batch or now
            words = f"{self.config.seed} {number} {step} {self.fabric.global_rank}"
            torch.manual_seed(int.from_bytes(hashlib.sha256(words.encode()).digest()[:7], "big"))
            yield batch, now - start

    def _set_mode(self) -> None:
        self.model.train()
        if self.config.freeze_norm:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _step(self, image: Tensor, mask: Tensor) -> Tensor:
        """One batch, and one step of the optimizer where enough batches came together."""
        if self.augment is not None:
            image, mask = self.augment(image, mask)
        first = self.step - self.step % self.config.accumulate
        together = min(self.config.accumulate, self.steps - first)
        last = self.step == first + together - 1
        with self._apart(not last):
            loss = self.loss(self.model(normalize(image, self.config.normalize)), mask)
            self.fabric.backward(loss / together)
        if last:
            self._update()
        return loss.detach()

    def _apart(self, enabled: bool) -> AbstractContextManager[Any]:
        """Lets processes exchange no gradients where they do not count yet."""
        return self.fabric.no_backward_sync(self.model, enabled=enabled)

    def _update(self) -> None:
        if self.config.clip:
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.config.clip, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.network)

    def _set_rate(self) -> float:
        losses = [line["val_loss"] for line in self.history]
        rate = learning_rate(self.config, self.done + 1, self.steps, self.total, losses)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    @property
    def whole(self) -> bool:
        """Whether the state holds all: no gradients wait for more batches."""
        return self.step % self.config.accumulate == 0

    def check_finite(self) -> None:
        """Looks at the losses of the epoch until now; they are the same in every process.

        Raises:
            UserError: one is no finite number.
        """
        losses = torch.stack(self._losses)
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            step = int(bad[0])
            where = f"in epoch {self.epoch + 1}, step {step + 1} of {self.steps}"
            raise self.diverged(float(losses[step]), where)

    def diverged(self, loss: float, where: str) -> UserError:
        """The error to raise for a loss that is no finite number."""
        half = self.config.precision != "fp32"
        other = f", or --precision fp32 instead of {self.config.precision}" if half else ""
        return Diverged(
            f"The loss became {loss} {where}: take a smaller --lr than {self.config.lr:g}{other}.",
            code=3,
        )

    def score(self) -> tuple[list[Scored], float]:
        """Scores the val part: the rows in the order of the table, and the mean loss."""
        return self._scorer.score(self.scored)

    def predict(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Returns the predicted class of every pixel of images of the val part."""
        return self._scorer.predict(self.scored, indices)

    def keep_if_best(self, dice: float) -> bool:
        """Keeps a copy of the weights if their score is the best so far."""
        if self.best_weights and not dice > self.best:
            return False
        self.best, self.best_epoch = dice, self.epoch
        self.best_weights = weights_of(self.scored)
        return True

    def use_best(self) -> None:
        """Puts the best weights into the network that is scored."""
        self.scored.load_state_dict(self.best_weights)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of the weights, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
