"""Fair timing on a noisy machine: contenders take turns in one process, medians are compared."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BUDGET = 4.0  # seconds of measurement per case, warm-up aside
ROUNDS = (7, 60)
SAMPLE = 3e-4  # a sample repeats a short call until it lasts this long


def synchronise() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(contenders: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Milliseconds of each contender: median, p20, p80; every round runs each of them once."""
    repeats, estimate = {}, 0.0
    for name, call in contenders.items():
        call()
        call()
        seconds = _timed(call, 1)
        repeats[name] = max(1, min(100, int(SAMPLE / seconds)))
        estimate += _timed(call, repeats[name])
    low, high = ROUNDS
    rounds = max(low, min(high, int(BUDGET / estimate)))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            samples[name].append(_timed(call, repeats[name]) / repeats[name])
    return {name: _summary(values) for name, values in samples.items()}


def _timed(call: Callable[[], Any], repeats: int) -> float:
    synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronise()
    return time.perf_counter() - start


def _summary(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = len(ordered) // 5
    return {
        "median_ms": statistics.median(ordered) * 1e3,
        "p20_ms": ordered[at] * 1e3,
        "p80_ms": ordered[-1 - at] * 1e3,
    }


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most memory that tensors made during ``call`` held at once."""
    call()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        synchronise()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        kept = call()
    results: Any = profile.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    del kept
    events = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    held = most = 0
    for _, change in sorted(events, key=lambda e: e[0]):
        held += change
        most = max(most, held)
    return most


def saved_bytes(call: Callable[[], Tensor], given: list[Tensor]) -> int:
    """Bytes kept for backward beyond the inputs and the output."""
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = call()
    for t in (*given, out):
        kept.pop(t.untyped_storage().data_ptr(), None)
    return sum(kept.values())
