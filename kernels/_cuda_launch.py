"""What the launchers of the compiled CUDA kernels share."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ._backend import is_channels_last

DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}


@contextlib.contextmanager
def on_device(x: Tensor) -> Iterator[tuple[int, int]]:
    """Makes the device of ``x`` current; yields its index and the address of its current stream."""
    with torch.cuda.device(x.device):
        yield x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def parameter(given: Tensor | None) -> tuple[int, int]:
    """Address and dtype of a contiguous parameter, (0, 0) for none; kernels read either dtype."""
    return (0, 0) if given is None else (given.data_ptr(), DTYPES[given.dtype])


def scratch(x: Tensor, size: int) -> Tensor:
    """``size`` bytes of working memory beside ``x``; PyTorch's allocator orders it by stream."""
    return torch.empty(size, dtype=torch.uint8, device=x.device)


def rows_dense(x: Tensor) -> Tensor:
    """``x`` itself if its innermost memory axis is dense, else a contiguous copy."""
    return x if is_channels_last(x) or x.stride(3) == 1 else x.contiguous()


def planes_dense(x: Tensor) -> Tensor:
    """``x`` itself if its (H, W) planes are dense or it is channels_last, else a dense copy."""
    if is_channels_last(x) or (x.stride(3) == 1 and x.stride(2) == x.shape[3]):
        return x
    return x.contiguous()


def strides_of(x: Tensor, last: bool) -> tuple[int, int]:
    """Elements from image to image, and from plane to plane or, channels_last, pixel to pixel.

    Pixels lie densely; what ``stride`` says of an axis of length 1 means nothing.
    """
    return x.stride(0), x.shape[1] if last else x.stride(1)
