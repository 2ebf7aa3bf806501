"""One pass of a network before the first step: which backends run, and whether a batch can."""

import copy
import os

import torch
from lightning_fabric import Fabric
from torch import nn

from ..config import TrainConfig
from ..data import Table
from ..engine import OpWatch
from ..errors import UserError
from ..kernels import backend_report

_LAYERS = {  # the layer that calls an op
    "eca": "ECA",
    "gate": "AttentionGate",
    "mde": "MDEFilter",
    "position": "PositionAttention",
    "triplet": "TripletAttention",
    "split": "SplitAttention",
}


def run_once(
    config: TrainConfig, fabric: Fabric, network: nn.Module, table: Table
) -> dict[str, str]:
    """Runs one blank image through the network and says which backend each op took."""
    network.eval()
    blank = torch.zeros(1, table.channels, config.size, config.size, device=fabric.device)
    try:
        with torch.no_grad(), fabric.autocast(), OpWatch() as watch:
            network(blank)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        if not reason.startswith("backend "):
            raise
        asked = config.backend != "auto"
        flag = f"--backend {config.backend}" if asked else "the variable MEDSEG_BACKEND"
        raise UserError(f"{flag}: {reason}.") from None
    layers = {type(module).__name__ for module in network.modules()}
    return {
        op: _describe(op, watch.seen.get(op, {}), reasons, config.backend)
        for op, reasons in backend_report(fabric.device.type).items()
        if op in watch.seen or _LAYERS.get(op) in layers
    }


def check_single(config: TrainConfig, fabric: Fabric, network: nn.Module, table: Table) -> None:
    """Refuses steps of one image where a batch norm would see a single number of each channel."""
    of_each = config.patches if isinstance(config.patches, int) else 1
    images = len(table.part("train")) * of_each // fabric.world_size
    if min(images, config.images) > 1:
        return
    blank = torch.zeros(1, table.channels, config.size, config.size, device=fabric.device)
    try:
        with torch.no_grad(), fabric.autocast():
            copy.deepcopy(network).train()(blank)
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        flag = f"--batch {config.batch}, " if images > 1 else ""
        other = " or --batch" if images > 1 else ""
        raise UserError(
            f"{flag}--size {config.size}: batch norm cannot train on one image this small a step; "
            f"take a larger --size{other}."
        ) from None


def _describe(op: str, seen: dict[str, int], reasons: dict[str, str | None], wanted: str) -> str:
    if seen:
        return ", ".join(f"{name} (fused, {n} x a forward pass)" for name, n in seen.items())
    if wanted == "reference" or os.environ.get("MEDSEG_BACKEND") == "reference":
        return "reference (plain PyTorch, as asked for)"
    if None in (reason for name, reason in reasons.items() if name != "reference"):
        return "reference (plain PyTorch, the fastest on maps this small)"
    why = "; ".join(reason for reason in reasons.values() if reason)
    return f"reference (plain PyTorch, since {why})"
