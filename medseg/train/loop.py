"""Epoch after epoch: train, score, write."""

import math
import time
from typing import TYPE_CHECKING, Any

from ..engine import Engine, memory_guard
from ..errors import UserError
from ..metrics import summarise
from ..prepare import Job
from ..runs import RunFolder

if TYPE_CHECKING:
    from ..console import Journal


def fit(job: Job, engine: Engine, run: RunFolder | None, journal: "Journal") -> UserError | None:
    """Trains epoch by epoch; returns the error that ended it after a finished epoch, if one did."""
    total = engine.epochs * engine.steps
    saved = engine.epoch
    with journal.progress(total, saved * engine.steps) as advance:
        try:
            if run is not None and saved == 0:  # else a first epoch cut short could not be repeated
                run.write_checkpoint("last.ckpt", engine.state())
            while saved < engine.epochs:
                with memory_guard(job.config):
                    _one_epoch(job, engine, run, journal, advance)
                saved = engine.epoch
        except KeyboardInterrupt:
            if run is None:
                raise
            raise KeyboardInterrupt(
                f"stopped in epoch {saved + 1}; {run.path / 'last.ckpt'} has the state "
                f"after epoch {saved}, and --resume {run.path} goes on from it."
            ) from None
        except UserError as error:
            if saved == 0:
                raise
            return error
    return None


def _one_epoch(
    job: Job, engine: Engine, run: RunFolder | None, journal: "Journal", advance: Any
) -> None:
    name = f"epoch {engine.epoch + 1}/{engine.epochs}"
    numbers = engine.train_epoch(lambda step: advance(name))
    start = time.perf_counter()
    rows, val_loss = engine.score()
    if not math.isfinite(val_loss):
        raise engine.diverged(val_loss, f"on the val part after epoch {engine.epoch}")
    summary = summarise([row.dice for row in rows])
    line = {"epoch": engine.epoch, "loss": numbers["loss"], "val_loss": val_loss}
    line |= {"dice": summary.dice}
    line |= dict(zip(job.dice_columns, summary.class_dice, strict=True))
    line |= {"lr": numbers["lr"], "seconds": numbers["seconds"]}
    line |= {"seconds_val": time.perf_counter() - start}
    engine.history.append(line)
    better = engine.keep_if_best(summary.dice)
    if run is None:
        return
    run.write_rows("metrics.csv", engine.history)
    if better:
        run.write_weights("best.safetensors", engine.best_weights, job.weights_metadata(engine))
    run.write_checkpoint("last.ckpt", engine.state())
    journal.say(
        f"{name:<13} loss {line['loss']:.4f}  val {val_loss:.4f}  dice {summary.dice:.4f}"
        f"{' *' if better else '  '}  lr {line['lr']:.1e}  {line['seconds']:.1f} s"
    )
