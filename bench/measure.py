"""Fair timing on a noisy machine: contenders take turns in one process, medians are compared."""

import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from medseg.kernels import keep_pages

ROUNDS = (7, 60)
FEWEST = 3
SAMPLE = 3e-4  # on a CPU a sample repeats a short call until it lasts this long

Calls = dict[str, Callable[[], Any]]
Samples = dict[str, list[float]]


def on_gpu() -> bool:
    """Whether the GPU is measured, not the CPU."""
    return torch.cuda.is_available()


def synchronise() -> None:
    """Waits for the GPU, if there is one."""
    if on_gpu():
        torch.cuda.synchronize()


def interleaved(contenders: Calls, budget: float, rounds: tuple[int, int] = ROUNDS) -> Samples:
    """Seconds of each call; every round runs each contender once, after two runs unmeasured.

    A contender that would take the whole budget for itself runs in some of the rounds only.

    Args:
        contenders: what to time, by name.
        budget: seconds to spend, the first runs aside.
        rounds: how many at least and at most.
    """
    repeats, seconds = {}, {}
    for name, call in contenders.items():
        call()
        once = sample(call, 1)
        repeats[name] = 1 if on_gpu() else max(1, min(100, int(SAMPLE / once)))
        seconds[name] = once * repeats[name]
    low, high = rounds
    count = max(low, min(high, int(budget / sum(seconds.values()))))
    turns = {k: min(count, max(FEWEST, int(budget / s))) for k, s in seconds.items()}
    found: Samples = {name: [] for name in contenders}
    for turn in range(count):
        for name, call in contenders.items():
            if turn * turns[name] % count < turns[name]:
                found[name].append(sample(call, repeats[name]))
    return found


def sample(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of a call; on a GPU of one that finds its L2 cache cold."""
    if on_gpu():
        return _gpu_sample(call)
    return _returned(call, repeats)


def _gpu_sample(call: Callable[[], Any]) -> float:
    """The host runs ahead while the cache is flushed, so that launches do not count."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _flusher().zero_()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@cache
def _flusher() -> Tensor:
    """Four times the L2 cache: writing it leaves nothing of the last call there."""
    return torch.empty(4 * cache_bytes(), dtype=torch.int8, device="cuda")


def cache_bytes() -> int:
    """The GPU's L2 cache."""
    return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size


def host_seconds(contenders: Calls, blocks: int, calls: int = 100) -> dict[str, float]:
    """Seconds until a call returns, whether or not a GPU has finished it; medians of blocks."""
    found: Samples = {name: [] for name in contenders}
    for _ in range(blocks):
        for name, call in contenders.items():
            call()
            synchronise()
            found[name].append(_returned(call, calls if blocks > 1 else 1))
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def _returned(call: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def summary(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: median, p20, p80."""
    ordered = sorted(seconds)
    at = len(ordered) // 5
    return {
        "median_ms": statistics.median(ordered) * 1e3,
        "p20_ms": ordered[at] * 1e3,
        "p80_ms": ordered[-1 - at] * 1e3,
    }


def matmul_gflops() -> float:
    """Float32 operations a second of a square matrix product: the roof that few ops come near."""
    side = 8192 if on_gpu() else 1024
    a = torch.rand(side, side, device="cuda" if on_gpu() else "cpu")
    samples = interleaved({"matmul": lambda: a @ a}, budget=0.3)
    return 2 * side**3 / statistics.median(samples["matmul"]) / 1e9


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most memory that tensors made during ``call`` held at once; it has run before."""
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        synchronise()
        return torch.cuda.max_memory_allocated() - before
    before = keep_pages(0)  # the profiler sees what PyTorch allocates, and no kept page counts
    with torch.profiler.profile(profile_memory=True) as profile:
        kept = call()
    keep_pages(before)
    results: Any = profile.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    del kept
    events = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    held = most = 0
    for _, change in sorted(events, key=lambda e: e[0]):
        held += change
        most = max(most, held)
    return most


def saved_bytes(call: Callable[[], tuple[Tensor, ...]], given: list[Tensor]) -> int:
    """Bytes kept for backward beyond the inputs and the outputs."""
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        outs = call()
    for t in (*given, *outs):
        kept.pop(t.untyped_storage().data_ptr(), None)
    return sum(kept.values())
