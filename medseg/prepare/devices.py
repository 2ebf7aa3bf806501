"""The devices, processes and precision of a run, and its repeatable numbers."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from lightning_fabric import Fabric

from ..config import PRECISIONS, TrainConfig
from ..errors import UserError


def open_fabric(config: TrainConfig) -> Fabric:
    """Opens Fabric on the devices and precision asked for; under torchrun, on its processes.

    Raises:
        UserError: the machine has no such device, or the device no such precision.
    """
    kind, count = config.accelerator_and_count()
    gpus = torch.cuda.device_count()
    if kind == "auto":
        kind = "cuda" if gpus else "cpu"
    if kind == "cuda" and gpus < (count or 1):
        found = f"finds {gpus} GPUs" if gpus else "finds no GPU"
        raise UserError(f"--devices {config.devices}: PyTorch {found} here; take --devices cpu.")
    if kind == "cpu" and config.precision == "fp16":
        raise UserError("--precision fp16: needs a GPU; take bf16 or fp32 on the CPU.")
    nodes = 1
    if "TORCHELASTIC_RUN_ID" in os.environ:
        count = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // count
    for name in ("lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return Fabric(
        accelerator=kind,
        devices=count or 1,
        num_nodes=nodes,
        precision=PRECISIONS[config.precision],  # pyright: ignore[reportArgumentType]
    )


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Same seed, same numbers inside the block, as far as PyTorch has such kernels."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    switches: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), switches.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    switches.fill_uninitialized_memory = False  # it would cost a write of every output
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        switches.fill_uninitialized_memory = before[1]
