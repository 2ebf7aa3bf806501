"""What a call costs: milliseconds and memory."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .report import Cost

ROUNDS, BUDGET = (3, 15), 2.0  # calls of each contender, and seconds that they may take together

Call = Callable[[], Any]


def costs(calls: list[Call], device: torch.device) -> list[Cost]:
    """Median milliseconds and peak memory of each call; they take turns, after one run unmeasured.

    Args:
        calls: what is measured.
        device: where it runs, and is waited for.
    """
    times = milliseconds(calls, device)
    peaks = [peak_bytes(call, device) / 2**20 for call in calls]
    return [Cost(ms, mb) for ms, mb in zip(times, peaks, strict=True)]


def milliseconds(calls: list[Call], device: torch.device, budget: float = BUDGET) -> list[float]:
    """Median milliseconds of each call, all together for some ``budget`` seconds."""
    once = sum(_seconds(call, device) for call in calls)  # warms up
    rounds = max(ROUNDS[0], min(ROUNDS[1], int(budget / once)))
    turns = [[_seconds(call, device) for call in calls] for _ in range(rounds)]
    return [statistics.median(samples) * 1e3 for samples in zip(*turns, strict=True)]


def _seconds(call: Call, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(call: Call, device: torch.device) -> int:
    """The most memory that tensors made during ``call`` held at once; it has run before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Held() as held:
        kept = call()
    del kept
    return held.most


class _Held(TorchDispatchMode):
    """Counts the bytes of the tensors that ops have made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {StorageWeakRef(t.untyped_storage()) for t in _tensors((args, kwargs))}
        self._sizes = {ref: size for ref, size in self._sizes.items() if not ref.expired()}
        for t in _tensors(out):
            storage = t.untyped_storage()
            ref = StorageWeakRef(storage)
            if ref not in given:
                self._sizes[ref] = storage.nbytes()
        self.most = max(self.most, sum(self._sizes.values()))
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]
