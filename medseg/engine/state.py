"""The state of a training: what a checkpoint holds, and how an engine goes on from it."""

from typing import Any

import torch

from ..errors import UserError
from .engine import Engine


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
        UserError: the state is of another network, or of a run with other flags that cannot change.
    """
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
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [""])[-1].strip()
        raise UserError(f"--resume: the saved run has another network ({reason}).") from None
    engine.fabric.strategy.precision.load_state_dict(state["precision"])
    engine.epoch, engine.step = state["epoch"], state["step"]
    engine._losses = [torch.tensor(x, device=engine.fabric.device) for x in state["losses"]]
    engine.best, engine.best_epoch = state["best"], state["best_epoch"]
    engine.best_weights, engine.history = state["best_weights"], list(state["history"])
