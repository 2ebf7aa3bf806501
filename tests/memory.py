"""What tensors hold, from PyTorch's profiler; on a CPU."""

from collections.abc import Callable
from typing import Any

import torch


def largest_allocation(call: Callable[[], Any]) -> int:
    """Bytes of the largest tensor that ``call()`` made."""
    return max(_changes(call))


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most that tensors made during ``call()`` held at once; it runs twice."""
    call()
    held = most = 0
    for change in _changes(call):
        held += change
        most = max(most, held)
    return most


def _changes(call: Callable[[], Any]) -> list[int]:
    """Bytes taken (positive) and given back (negative), in the order of time."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    results: Any = profile.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    events = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    return [change for _, change in sorted(events, key=lambda event: event[0])]
