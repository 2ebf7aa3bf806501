"""What the launchers of the compiled CPU kernels share."""

import collections
import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ._backend import is_channels_last

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
GRAIN = 32768  # elements a thread must have to be worth waking; PyTorch's own figure
KEPT_BYTES = 16 << 20

# Fresh pages cost more than the kernels that use them, so a few buffers stay. A launcher takes one
# out and puts it back; a deque's pop and append are atomic, so threads never share one.
_kept: collections.deque[Tensor] = collections.deque()


@contextlib.contextmanager
def scratch(size: int) -> Iterator[int]:
    """The address of ``size`` bytes of working memory, aligned to 64."""
    try:
        buffer = _kept.pop()
    except IndexError:  # asked rather than looked up: another thread may take it in between
        buffer = None
    if buffer is None or buffer.numel() < size + 64:
        buffer = torch.empty(size + 64, dtype=torch.uint8)
    try:
        yield -(-buffer.data_ptr() // 64) * 64
    finally:
        if buffer.numel() <= KEPT_BYTES:
            _kept.append(buffer)


def threads_for(x: Tensor) -> int:
    """How many threads share ``x``: PyTorch's number, fewer for a small tensor."""
    return max(1, min(torch.get_num_threads(), x.numel() // GRAIN))


def dense_planes(x: Tensor) -> Tensor:
    """``x`` itself if channels_last or of dense (H, W) planes, else a contiguous copy."""
    if is_channels_last(x) or (x.stride(3) == 1 and x.stride(2) == x.shape[3]):
        return x
    return x.contiguous()
