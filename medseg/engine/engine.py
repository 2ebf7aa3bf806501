"""One network in training: its epochs, its scores, its state."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from ..config import TrainConfig
from ..data import Table
from ..errors import UserError
from ..losses import build_loss
from .schedule import learning_rate
from .scoring import Scored, Scorer
from .sets import augmentation, class_weights, open_sets

_LOOK_EVERY = 16  # steps between looks at the loss: each one waits for the GPU


@dataclass
class Engine:
    """Trains and scores one network.

    Args:
        config: the settings.
        table: the checked data set.
        fabric: launched; decides device, precision and processes.
        network: made by `create_model`, with its first weights.
    """

    config: TrainConfig
    table: Table
    fabric: Fabric
    network: nn.Module
    epoch: int = 0  # finished ones
    best: float = -1.0
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Puts the network on its device and opens the two parts of the data."""
        config = self.config
        self.epochs = config.epochs or 1
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=config.lr)
        self.model, self.optimizer = self.fabric.setup(self.network, optimizer)
        weights = class_weights(config, self.table)
        self.loss = build_loss(config.loss, len(self.table.names), weights)
        self.augment = augmentation(config)
        self.train_set, self.val_set = open_sets(config, self.table, self.fabric)
        self._scorer = Scorer(self.val_set, self.fabric, self.loss, config.batch)
        self._sampler = DistributedSampler(
            self.train_set,
            num_replicas=self.fabric.world_size,
            rank=self.fabric.global_rank,
            seed=config.seed,
        )
        workers = config.workers or 0
        # not through fabric.setup_dataloaders, which counts epochs from 0 again after --resume
        self._loader = DataLoader(
            self.train_set,
            batch_size=config.batch,
            sampler=self._sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.fabric.device.type == "cuda",
            drop_last=len(self._sampler) >= config.batch,
            generator=torch.Generator().manual_seed(config.seed),
        )

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self._loader)

    def train_epoch(self, tick: Callable[[int], None] = lambda step: None) -> dict[str, float]:
        """Goes once through the training part; returns mean loss, learning rate and seconds.

        The numbers drawn depend on seed, epoch and process alone, so a resumed run draws the same.

        Raises:
            UserError: the loss is no longer a finite number.
        """
        start, number = time.perf_counter(), self.epoch + 1
        torch.manual_seed((self.config.seed * 1009 + number) * 1009 + self.fabric.global_rank)
        self._sampler.set_epoch(number)
        self.model.train()
        losses: list[Tensor] = []
        rate = 0.0
        for step, loaded in enumerate(self._loader, 1):
            batch = self.fabric.to_device(loaded)
            rate = self._set_rate((number - 1) * self.steps + step)
            losses.append(self._step(batch["image"], batch["mask"]))
            if step % _LOOK_EVERY == 0 or step == self.steps:
                self._check_finite(losses, number)
            tick(step)
        mean: Any = self.fabric.all_reduce(torch.stack(losses).mean(), reduce_op="mean")
        self.epoch = number
        return {"loss": mean.item(), "lr": rate, "seconds": time.perf_counter() - start}

    def _step(self, image: Tensor, mask: Tensor) -> Tensor:
        if self.augment is not None:
            image, mask = self.augment(image, mask)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.model(image), mask)
        self.fabric.backward(loss)
        self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=1.0, error_if_nonfinite=False
        )
        self.optimizer.step()
        return loss.detach()

    def _set_rate(self, step: int) -> float:
        rate = learning_rate(self.config.lr, step, self.epochs * self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _check_finite(self, losses: list[Tensor], epoch: int) -> None:
        stacked = torch.stack(losses)
        total: Any = self.fabric.all_reduce(stacked.sum(), reduce_op="sum")
        if math.isfinite(total):  # in every process, so that all stop or none
            return
        bad = (~torch.isfinite(stacked)).nonzero()
        step = int(bad[0]) + 1 if len(bad) else len(losses)
        value = float(stacked[step - 1]) if len(bad) else float(total)
        raise self.diverged(value, f"in epoch {epoch}, step {step} of {self.steps}")

    def diverged(self, loss: float, where: str) -> UserError:
        """The error to raise for a loss that is no finite number."""
        half = self.config.precision != "fp32"
        other = f", or --precision fp32 instead of {self.config.precision}" if half else ""
        return UserError(
            f"The loss became {loss} {where}: take a smaller --lr than {self.config.lr:g}{other}.",
            code=3,
        )

    def score(self) -> tuple[list[Scored], float]:
        """Scores the val part: the rows in the order of the table, and the mean loss."""
        return self._scorer.score(self.network)

    def predict(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Returns the predicted class of every pixel of images of the val part."""
        return self._scorer.predict(self.network, indices)

    def keep_if_best(self, dice: float) -> bool:
        """Keeps a copy of the weights if their score is the best so far."""
        if self.best_weights and not dice > self.best:
            return False
        self.best, self.best_epoch = dice, self.epoch
        weights = self.network.state_dict()
        self.best_weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
        return True

    def use_best(self) -> None:
        """Puts the best weights into the network."""
        self.network.load_state_dict(self.best_weights)

    def state(self) -> dict[str, Any]:
        """Returns what `load_state` needs to go on: tensors, numbers and text only."""
        return {
            "epoch": self.epoch,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "history": self.history,
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def load_state(self, state: dict[str, Any], best_weights: dict[str, Tensor]) -> None:
        """Goes back to a state, and to the best weights until then.

        Raises:
            UserError: the state is of another network.
        """
        try:
            self.network.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = (str(error).strip().splitlines() or [""])[-1].strip()
            raise UserError(f"--resume: the saved run has another network ({reason}).") from None
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.epoch, self.history = state["epoch"], list(state["history"])
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.best_weights = best_weights
