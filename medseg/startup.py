"""What must be settled before PyTorch is loaded: huge pages and short waits on the CPU.

PyTorch reads THP_MEM_ALLOC_ENABLE once, when the first CPU tensor is allocated; its OpenMP runtime
reads GOMP_SPINCOUNT once, when `import torch` loads it. So medseg's commands call `settle` before
they import anything else.
"""

import os
import sys
from pathlib import Path

# How often a thread looks again before it sleeps, where threads meet. libgomp's own
# 300000 is milliseconds: where other programs hold a core, the threads spin their time away instead
# of leaving it to the one they wait for. A training step on two cores beside one and two busy
# programs took 3.7 and 16 times as long, with 10000 it is 1.8 and 1.9; alone it is noise.
_SPINS = "10000"
_FLAG = "THP_MEM_ALLOC_ENABLE"
_KERNEL_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_PROBE_BYTES = 16 << 20


def settle() -> None:
    """Asks for huge pages and short waits; a value the caller has set already is kept."""
    if sys.platform == "linux":
        os.environ.setdefault(_FLAG, "1")
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def describe_huge_pages() -> str:
    """One sentence on whether large CPU tensors get huge pages, found by counting page faults."""
    if sys.platform != "linux":
        return f"off: {sys.platform} has no {_FLAG}"
    if os.environ.get(_FLAG, "0") in ("", "0"):
        return f"off: {_FLAG}=0 in the environment"
    if _KERNEL_SWITCH.exists() and "[never]" in _KERNEL_SWITCH.read_text(encoding="utf-8"):
        return f"off: {_KERNEL_SWITCH} says never"
    faults = _faults_of_a_fresh_tensor()
    if faults > _PROBE_BYTES // 4096 // 4:
        return f"off: {_FLAG}=1 came after the first tensor of this process; export it beforehand"
    return f"on: {_FLAG}=1, {faults} page faults for {_PROBE_BYTES >> 20} MB"


def _faults_of_a_fresh_tensor() -> int:
    """Page faults of touching a new tensor; the least of three, since other threads fault too."""
    import resource

    import torch

    counts = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(_PROBE_BYTES // 4)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts)
