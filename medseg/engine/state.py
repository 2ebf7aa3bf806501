"""The state of a training: what a checkpoint holds, and how an engine goes on from it."""

from typing import Any

import torch

from ..errors import UserError
from .engine import Engine

_LINE = {"epoch", "loss", "val_loss", "dice", "lr", "seconds", "waiting"}  # of the history


def save_state(engine: Engine) -> dict[str, Any]:
    """Returns what `load_state` needs to go on: tensors, numbers and text only."""
    average = engine.average
    return {
        "epoch": engine.epoch,
        "step": engine.step,
        "steps": engine.steps,
        "losses": [float(loss) for loss in engine._losses],
        "best": engine.best,
        "best_epoch": engine.best_epoch,
        "best_weights": engine.best_weights,
        "history": engine.history,
        "model": engine.network.state_dict(),
        "optimizer": engine.optimizer.state_dict(),
        "precision": engine.fabric.strategy.precision.state_dict(),
        "average": None if average is None else average.network.state_dict(),
        "average_steps": 0 if average is None else average.steps,
    }


def load_state(engine: Engine, state: dict[str, Any]) -> None:
    """Goes back to a state.

    Raises:
        UserError: the state is of another network, or of a run with other flags that cannot change,
            or is none.
    """
    _refuse_odd(state)
    if state["step"] and state["steps"] != engine.steps:
        raise UserError(
            f"--resume: the run stopped within an epoch of {state['steps']} steps, with these "
            f"flags one has {engine.steps}; take its own --batch, --devices and data."
        )
    if (state["average"] is None) != (engine.average is None):
        raise UserError("--ema: a run goes on with averaged weights if it began so, else without.")
    try:
        engine.network.load_state_dict(state["model"])
        engine.optimizer.load_state_dict(state["optimizer"])
        if engine.average is not None:
            engine.average.network.load_state_dict(state["average"])
            engine.average.steps = state["average_steps"]
        _compare(engine, state["best_weights"])
        engine.fabric.strategy.precision.load_state_dict(state["precision"])
        losses = [torch.tensor(float(x), device=engine.fabric.device) for x in state["losses"]]
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [""])[-1].strip()
        raise UserError(f"--resume: the saved run has another network ({reason}).") from None
    engine.epoch, engine.step, engine._losses = state["epoch"], state["step"], losses
    engine.best, engine.best_epoch = state["best"], state["best_epoch"]
    engine.best_weights, engine.history = state["best_weights"], list(state["history"])


def _refuse_odd(state: dict[str, Any]) -> None:
    """Refuses what `save_state` does not write: the file may be anybody's."""
    counts = [state.get(name) for name in ("epoch", "step", "steps", "best_epoch", "average_steps")]
    fine = all(type(count) is int and 0 <= count < 2**40 for count in counts)
    fine = fine and isinstance(state.get("best"), float) and "average" in state
    fine = fine and all(isinstance(state.get(name), list) for name in ("losses", "history"))
    rows = state["history"] if fine else []
    fine = fine and len(rows) == state["epoch"] and len(state["losses"]) == state["step"]
    fine = fine and all(isinstance(row, dict) and row.keys() >= _LINE for row in rows)
    fine = fine and all(isinstance(x, (int, float)) for row in rows for x in row.values())
    if not fine:
        raise UserError(
            "--resume: last.ckpt is no training state, or of another version of medseg; train "
            "anew, without --resume.",
            3,
        )


def _compare(engine: Engine, best: dict[str, Any]) -> None:
    """Compares shapes of what is taken without being loaded: moments and best weights."""
    for parameter, moments in engine.optimizer.state.items():
        for value in moments.values():
            if isinstance(value, torch.Tensor) and value.shape not in ((), parameter.shape):
                raise ValueError("its optimizer has moments of other shapes")
    shapes = {name: value.shape for name, value in engine.network.state_dict().items()}
    if best and {name: value.shape for name, value in best.items()} != shapes:
        raise ValueError("its best weights have other names or shapes")
