"""Launchers of the compiled CUDA kernels of ECA: allocate, look up dtypes, pass addresses."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._backend import is_channels_last, like_input, like_layout, native
from .._cuda_launch import DTYPES, on_device, parameter, scratch


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (out, saved); saved (2, N, C) float32 holds the pooled means and the gates."""
    cuda = native("_cuda")
    summed = x.new_empty(0) if residual is None else x + residual
    x = x if residual is None else summed
    out = like_input(x)
    saved = x.new_empty((2, x.shape[0], x.shape[1]), dtype=torch.float32)
    if out.numel() == 0:
        return F.max_pool2d(out, 2) if pool == 2 else out, summed, saved
    x, weight = _planes_dense(x), weight.contiguous()
    dtype, shape = DTYPES[x.dtype], _shape(cuda, x, weight)
    work = scratch(x, cuda.eca_scratch(dtype, shape))
    with on_device(x) as (device, stream):
        cuda.eca_forward(
            device, stream, dtype, shape, x.data_ptr(), parameter(weight), parameter(bias),
            out.data_ptr(), saved.data_ptr(), work.data_ptr(),
        )  # fmt: skip
    return F.max_pool2d(out, 2) if pool == 2 else out, summed, saved


def backward(
    grad_out: Tensor,
    grad_summed: Tensor | None,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    pool: int,
    need_input: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Returns (grad_x or None, grad_weight (K,), grad_bias (1,)), the last two in float32."""
    if pool == 2:
        at = F.max_pool2d(x, 2, return_indices=True)[1]
        grad_out = F.max_unpool2d(grad_out, at, 2, output_size=list(x.shape))
        grads = backward(grad_out, None, x, weight, saved, 1, need_input)
        if grads[0] is not None and grad_summed is not None:
            grads[0].add_(grad_summed)
        return grads
    cuda = native("_cuda")
    grad_x = like_input(x) if need_input else None
    grads = saved.new_empty(weight.numel() + 1)
    if x.numel() == 0:
        grads.zero_()
        return grad_x, grads[:-1], grads[-1:]
    grad_out = like_layout(x, grad_out)
    x, weight = _planes_dense(x), weight.contiguous()
    dtype, shape = DTYPES[x.dtype], _shape(cuda, x, weight)
    work = scratch(x, cuda.eca_scratch(dtype, shape))
    with on_device(x) as (device, stream):
        cuda.eca_backward(
            device, stream, dtype, shape, x.data_ptr(), grad_out.data_ptr(), parameter(weight),
            saved.data_ptr(), 0 if grad_x is None else grad_x.data_ptr(), grads.data_ptr(),
            grads[-1:].data_ptr(), work.data_ptr(),
        )  # fmt: skip
    return grad_x, grads[:-1], grads[-1:]


def _planes_dense(x: Tensor) -> Tensor:
    """``x`` itself if its (H, W) planes are dense or it is channels_last, else a dense copy."""
    if is_channels_last(x) or (x.stride(3) == 1 and x.stride(2) == x.shape[3]):
        return x
    return x.contiguous()


def _shape(cuda, x: Tensor, weight: Tensor):  # noqa: ANN001  (types of the compiled module)
    n, c, h, w = x.shape
    last = is_channels_last(x)
    pitch = x.stride(3) if last else x.stride(1)
    return cuda.EcaShape((n, c, h * w), (x.stride(0), pitch), last, weight.numel())
