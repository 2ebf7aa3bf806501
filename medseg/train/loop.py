"""Epoch after epoch: train, score, write."""

import math
import time
from typing import TYPE_CHECKING, Any

from ..config import TrainConfig
from ..engine import Diverged, Engine, accidents, save_state
from ..errors import UserError
from ..metrics import summarise
from ..prepare import Job
from ..runs import RunFolder
from .board import Board

if TYPE_CHECKING:
    from ..console import Journal


def fit(job: Job, engine: Engine, run: RunFolder | None, journal: "Journal") -> UserError | None:
    """Trains epoch by epoch.

    Returns:
        The error that ended it after something was reached, with which a report can be written.

    Raises:
        UserError: what ended it before, or so that the processes can do nothing more together.
        KeyboardInterrupt: with a sentence on what was reached.
    """
    keeper = Keeper(job, engine, run)
    with journal.progress(engine.total, engine.done) as advance:
        try:
            while engine.epoch < engine.epochs and not engine.stalled:
                with accidents(job.config):
                    _one_epoch(job, engine, keeper, journal, advance)
        except KeyboardInterrupt:
            if run is None:
                raise
            raise KeyboardInterrupt(
                f"stopped in epoch {engine.epoch + 1}; {keeper.reached()}"
            ) from None
        except UserError as error:
            together = job.fabric.world_size == 1 or isinstance(error, Diverged)
            told = UserError(f"{error} {keeper.reached(error)}".strip(), error.code)
            if keeper.saved and engine.best_weights and together:
                return told
            raise told from None
    if engine.stalled:
        journal.say(f"no better Dice for {job.config.early_stop} epochs: ended early")
    return None


class Keeper:
    """Writes checkpoints beside and renames them; knows what is in the last one.

    Args:
        job, engine: of the training.
        run: its folder; None but in the first process, which alone writes.
    """

    def __init__(self, job: Job, engine: Engine, run: RunFolder | None) -> None:
        self.job, self.engine, self.run = job, engine, run
        self.board = Board(run, engine.epoch) if job.config.tensorboard and run else None
        self.saved = job.state is not None
        self.place = self._place()
        self._when = time.monotonic()
        if run is not None and engine.best_weights:
            self._write_best()  # the run may have ended between its checkpoint and them

    def after_step(self) -> None:
        """Writes a checkpoint within the epoch where --save_minutes have passed."""
        engine, minutes = self.engine, self.job.config.save_minutes
        due = minutes and time.monotonic() - self._when >= 60 * minutes
        if due and self.run is not None and engine.whole and engine.step < engine.steps:
            engine.check_finite()
            self._write()

    def after_epoch(self, better: bool) -> None:
        """Writes the checkpoint, the best weights where they are new, and the numbers."""
        if self.run is None:
            return
        self._write()
        if better:
            self._write_best()
        self.run.write_rows("metrics.csv", self.engine.history)
        if self.board is not None:
            self.board.add(self.engine.history[-1])

    def reached(self, error: UserError | None = None) -> str:
        """A sentence on the last checkpoint."""
        if self.run is None:
            return ""
        if not self.saved:
            return f"--resume {self.run.path} begins it anew." if error is None else ""
        path = self.run.path
        return f"{path / 'last.ckpt'} has the state {self.place}; --resume {path} goes on from it."

    def _write(self) -> None:
        assert self.run is not None
        self.run.write_checkpoint("last.ckpt", save_state(self.engine))
        self.saved, self.place, self._when = True, self._place(), time.monotonic()

    def _write_best(self) -> None:
        assert self.run is not None
        about = self.job.weights_metadata(self.engine)
        self.run.write_weights("best.safetensors", self.engine.best_weights, about)

    def _place(self) -> str:
        step = f", step {self.engine.step} of the next" if self.engine.step else ""
        return f"after epoch {self.engine.epoch}{step}"


def _one_epoch(job: Job, engine: Engine, keeper: Keeper, journal: "Journal", advance: Any) -> None:
    name = f"epoch {engine.epoch + 1}/{engine.epochs}"

    def tick() -> None:
        advance(name)
        keeper.after_step()

    numbers = engine.train_epoch(tick)
    start = time.perf_counter()
    rows, val_loss = engine.score()
    if not math.isfinite(val_loss):
        raise engine.diverged(val_loss, f"on the val part after epoch {engine.epoch}")
    summary = summarise([row.dice for row in rows])
    line = {"epoch": engine.epoch, "loss": numbers["loss"], "val_loss": val_loss}
    line |= {"dice": summary.dice}
    line |= dict(zip(job.dice_columns, summary.class_dice, strict=True))
    line |= {"lr": numbers["lr"], "seconds": numbers["seconds"]}
    line |= {"seconds_val": time.perf_counter() - start, "waiting": numbers["waiting"]}
    engine.history.append(line)
    better = engine.keep_if_best(summary.dice)
    keeper.after_epoch(better)
    journal.say(
        f"{name:<13} loss {line['loss']:.4f}  val {val_loss:.4f}  dice {summary.dice:.4f}"
        f"{' *' if better else '  '}  lr {line['lr']:.1e}  {line['seconds']:.1f} s"
    )


def waiting_share(config: TrainConfig, history: list[dict[str, Any]]) -> str:
    """How much of the training time went by waiting for data, in words."""
    seconds = sum(line["seconds"] for line in history)
    share = sum(line["seconds"] * line["waiting"] for line in history) / max(seconds, 1e-9)
    remedy = f"; more than {config.workers} --workers may help" if share > 0.05 else ""
    return f"{100 * share:.1f} % of the training time went by waiting for data{remedy}"
