"""What the fused ops were worth to this very run: one batch, with them and in plain PyTorch."""

import copy
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..data.normalize import normalize
from ..engine import Engine
from ..kernels import use_backend
from ..losses import build_loss
from ..prepare import Job
from ..report import Speed

_TURNS = 3
_SLOW = 2.0  # seconds of a step, from which one turn has to do


def measure(job: Job, engine: Engine) -> Speed | None:
    """Times steps of one training batch, forward and backward, fused and plain in turns.

    Returns:
        None where nothing is there to compare: no fused op ran, several processes share the
        network, or a batch in plain PyTorch does not fit into the memory.
    """
    fused = any("fused" in words for words in job.ops.values())
    if not fused or job.fabric.world_size > 1:
        return None
    config = job.config
    count = min(config.images, len(engine.train_set))
    items: list[Any] = [engine.train_set[place] for place in range(count)]
    image, mask = (torch.stack([item[key] for item in items]) for key in ("image", "mask"))
    image = normalize(image.to(job.fabric.device), config.normalize)
    mask = mask.to(job.fabric.device)
    network = copy.deepcopy(engine.scored).train().requires_grad_()  # averaged ones have none
    loss = build_loss(config.loss, len(job.table.names))

    def step() -> None:
        network.zero_grad(set_to_none=True)
        with job.fabric.autocast():
            output = network(image)
        loss(output, mask).backward()

    try:
        return _compare(step, network, tuple(image.shape), job.fabric.device.type)
    except torch.OutOfMemoryError:
        return None


def _compare(
    step: Callable[[], None], network: nn.Module, shape: tuple[int, ...], device: str
) -> Speed:
    ways: dict[str, Any] = {"fused": nullcontext, "plain": lambda: use_backend("reference")}
    seconds: dict[str, list[float]] = {}
    for name, way in ways.items():  # warm up
        with way():
            seconds[name] = [_timed(step, device)]
    if max(times[0] for times in seconds.values()) < _SLOW:
        seconds = {name: [] for name in ways}
        for _ in range(_TURNS):
            for name, way in ways.items():
                with way():
                    seconds[name].append(_timed(step, device))
    kept = {}
    for name, way in ways.items():
        with way():
            kept[name] = kept_bytes(step, network)
    ms = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    return Speed(shape, ms["fused"], ms["plain"], kept["fused"], kept["plain"])


def _timed(step: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def kept_bytes(step: Callable[[], None], network: nn.Module) -> int:
    """What `step` keeps for its backward pass, beyond the weights."""
    weights = {t.untyped_storage().data_ptr() for t in network.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        step()
    return sum(kept.values())
