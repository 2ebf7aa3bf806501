"""What the launchers of the compiled CPU kernels share."""

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ._backend import compiled, is_channels_last, like_input, native

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
GRAIN = 32768  # elements a thread must have to be worth waking; PyTorch's own figure
LARGE = 1 << 20  # bytes; the system's allocator keeps the pages of what is smaller
KEEP_MB, MOST_MB = 256, 1 << 40

_Given = TypeVar("_Given", Tensor, None, Tensor | None)

_limit: int | None = None  # bytes; None: what MEDSEG_KEEP_MB says, asked at a large result


def keep_pages(megabytes: int | None) -> int | None:
    """Sets how much memory of freed results the CPU kernels keep for their next ones.

    Touching a fresh page for the first time costs as much as filling it, so large results (1 MB and
    more) are made of pages that an earlier one has left. What is kept and in no use never exceeds
    the limit. Such a result is a tensor like any other, but its storage cannot be resized. The
    setting belongs to the process; forked ones inherit it.

    Args:
        megabytes: the limit; 0 keeps nothing and leaves every allocation to PyTorch, where its
            profiler sees it. None goes by ``MEDSEG_KEEP_MB``, or 256 where that is not set.

    Returns:
        The limit before, as it was given.

    Raises:
        ValueError: ``megabytes`` is no whole number from 0 to 2^40.
    """
    global _limit
    before = None if _limit is None else _limit >> 20
    if megabytes is not None:
        whole = isinstance(megabytes, int) and not isinstance(megabytes, bool)
        if not whole or not 0 <= megabytes <= MOST_MB:
            raise ValueError(
                f"megabytes must be None or a whole number from 0 to 2^40, got {megabytes!r}"
            )
        _set_limit(megabytes)
    else:
        _limit = None
    return before


def _set_limit(megabytes: int) -> None:
    global _limit
    module, _ = compiled("_cpu")
    if module is not None:
        module.keep_pages(megabytes << 20)
    _limit = megabytes << 20


def _from_environment() -> int:
    given = os.environ.get("MEDSEG_KEEP_MB", "").strip() or str(KEEP_MB)
    if not (given.isascii() and given.isdecimal() and int(given) <= MOST_MB):
        raise ValueError(
            f"MEDSEG_KEEP_MB must be a whole number of megabytes from 0 to 2^40, got {given!r}"
        )
    return int(given)


def empty_map(x: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """``like_input(x, shape)``, of kept pages where it is large."""
    n, c, h, w = sizes = x.shape if shape is None else shape
    if LARGE <= n * c * h * w * x.element_size() < MOST_MB << 20:
        if _limit is None:
            _set_limit(_from_environment())
        if _limit and compiled("_cpu")[0] is not None:
            capsule = native("_cpu").empty_map(DTYPES[x.dtype], sizes, is_channels_last(x))
            if capsule is not None:
                return from_dlpack(capsule)
    return like_input(x, shape)


def addresses(*tensors: Tensor | None) -> list[int]:
    """Where each lies, 0 for None."""
    return [0 if t is None else t.data_ptr() for t in tensors]


def parameter(given: _Given, dtype: torch.dtype) -> _Given:
    """``given`` dense and of ``dtype``; mostly it is already, and a look costs least."""
    if given is None or (given.dtype is dtype and given.is_contiguous()):
        return given
    return given.to(dtype).contiguous()  # pyright: ignore[reportReturnType]


def parameters(given: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Each as `parameter` has it, with a call for those alone that are not so already."""
    return [
        t if t is None or (t.dtype is dtype and t.is_contiguous()) else parameter(t, dtype)
        for t in given
    ]


def threads_for(x: Tensor) -> int:
    """How many threads share ``x``: PyTorch's number, fewer for a small tensor."""
    return max(1, min(torch.get_num_threads(), x.numel() // GRAIN))


def dense_planes(x: Tensor) -> Tensor:
    """``x`` itself if channels_last or of dense (H, W) planes, else a contiguous copy."""
    if x.is_contiguous() or is_channels_last(x):
        return x
    if x.stride(3) == 1 and x.stride(2) == x.shape[3]:
        return x
    return x.contiguous()
