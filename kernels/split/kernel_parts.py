"""Split attention on Triton by parts: the kernels of ``kernel_stream.py`` around foreign gates."""

# Triton declares what a kernel is given as constexpr, and so what its helpers return.
# pyright: reportArgumentType=false, reportCallIssue=false
import torch
from torch import Tensor

from .._backend import like_input
from .._triton_plan import Plan, beside, even, plan_of, strides
from .kernel_stream import combine_kernel, dot_kernel, grad_x_kernel, pool_kernel

MAX_PARTS = 128  # partial sums to add up per channel


def _plan(x: Tensor, radix: int) -> tuple[Plan, dict[str, int]]:
    plan = plan_of(x, splits=radix, most_parts=MAX_PARTS)
    return plan, {"RADIX": radix, "BLOCK_C": plan.block_c, "BLOCK_P": plan.block_p}


def _behind_means(gates: Tensor, radix: int) -> Tensor:
    """(N, (1 + R) * C), as the kernels keep what they made: zeros for the means, then ``gates``."""
    return torch.nn.functional.pad(gates, (gates.shape[1] // radix, 0))


def pool(x: Tensor, radix: int) -> Tensor:
    """The mean over the map of the splits' sum, (N, C)."""
    batch, width, height, columns = x.shape
    channels, hw = width // radix, height * columns
    if batch == 0:
        return x.new_empty((0, channels), dtype=torch.float32)
    x = even(x)
    plan, tile = _plan(x, radix)
    part = torch.empty((batch, channels, plan.parts), dtype=torch.float32, device=x.device)
    pool_kernel[plan.sum_grid](
        x, x, x, part, channels, hw, plan.sum_chunk, *strides(x), SCALED=False, PARTS=plan.parts,
        **tile,
    )  # fmt: skip
    return part.sum(2).div_(hw)


def apply(x: Tensor, gates: Tensor, radix: int) -> Tensor:
    """The sum of the splits, each weighted by its gates (N, R*C)."""
    batch, width, height, columns = x.shape
    out = like_input(x, (batch, width // radix, height, columns))
    if batch:
        x = even(x)
        plan, tile = _plan(x, radix)
        combine_kernel[plan.map_grid](
            x, x, x, _behind_means(gates, radix), out, width // radix, height * columns,
            plan.map_chunk, *strides(x), *strides(out), SCALED=False, **tile,
        )  # fmt: skip
    return out


def apply_backward(
    grad_out: Tensor, x: Tensor, gates: Tensor, radix: int, need_input: bool
) -> tuple[Tensor | None, Tensor]:
    """(grad_x or None, grad_gates)."""
    grad_x = like_input(x) if need_input else None
    batch, width, height, columns = x.shape
    if batch == 0:
        return grad_x, torch.zeros_like(gates)
    channels, hw = width // radix, height * columns
    x = even(x)
    grad = beside(x, grad_out)
    plan, tile = _plan(x, radix)
    part = gates.new_empty((batch, width, plan.parts))
    dot_kernel[plan.sum_grid](
        x, grad, part, channels, hw, plan.sum_chunk, *strides(x), *strides(grad),
        PARTS=plan.parts, **tile,
    )  # fmt: skip
    if grad_x is not None:
        grad_x_kernel[plan.map_grid](
            grad, _behind_means(gates, radix), gates.new_zeros((batch, channels)), grad_x,
            channels, hw, plan.map_chunk, *strides(grad), *strides(grad_x), **tile,
        )  # fmt: skip
    return grad_x, part.sum(2)
