"""Split attention in two parts, for gates that are made elsewhere: pooling and application."""

import torch
from torch import Tensor

from .._arguments import check_map
from .._backend import (
    accumulator,
    apart,
    choose,
    launchers,
    like_input,
    watched_by_forward_ad,
    without_autocast,
)
from .op import LARGEST_RADIX, TAGS, lib
from .reference import split_apply_reference, split_pool_reference

lib.define("split_pool(Tensor x, int radix, str backend) -> Tensor", tags=TAGS)
lib.define("split_apply(Tensor x, Tensor gates, int radix, str backend) -> Tensor", tags=TAGS)
lib.define(
    "split_apply_backward(Tensor grad_out, Tensor x, Tensor gates, int radix, bool need_input, "
    "str backend) -> (Tensor grad_x, Tensor grad_gates)",
    tags=TAGS,
)
_pool = torch.ops.medseg.split_pool.default
_apply = torch.ops.medseg.split_apply.default
_apply_backward = torch.ops.medseg.split_apply_backward.default


def split_pool(x: Tensor, *, radix: int = 2, backend: str | None = None) -> Tensor:
    """Adds up R versions of a map and averages each channel over it: one read.

    s = mean_hw(sum_r x_r), what the gates of ``split_attention`` are made of.

    Args:
        x: R versions of C channels, one after the other, (N, R*C, H, W); float16, bfloat16,
            float32 or float64; any strides.
        radix: R, 1 to 4.
        backend: "cpu", "cuda", "triton" or "reference"; None takes the fastest that can run.

    Returns:
        Tensor (N, C), float32 (float64 for float64).

    Raises:
        ValueError: ``x`` is no 4-D float tensor of R times C channels or has an empty axis beside
            N, or ``radix`` is out of range.
        RuntimeError: ``backend`` was named but cannot run here; the message says why.

    Source: Zhang et al., "ResNeSt", arXiv:2004.08955.
    """
    _check(x, radix)
    name = choose("split", x, backend)
    if name == "reference" or watched_by_forward_ad():
        return split_pool_reference(x, radix=radix)
    return _pool(x, radix, name)


def split_apply(x: Tensor, gates: Tensor, *, radix: int = 2, backend: str | None = None) -> Tensor:
    """Adds up R versions of a map, each channel weighted by a gate of its own.

    out = sum_r gates_r * x_r

    Args:
        x: as in ``split_pool``.
        gates: (N, R*C) in the order of the channels of ``x``, on its device; any float dtype.
        radix: R, 1 to 4.
        backend: "cpu", "cuda", "triton" or "reference"; None takes the fastest that can run.

    Returns:
        Tensor (N, C, H, W), channels_last if ``x`` is, else contiguous. Sums are float32 (float64
        for float64).

    Raises:
        ValueError: ``x`` or ``radix`` is none that ``split_pool`` takes, or ``gates`` does not fit.
        RuntimeError: ``backend`` was named but cannot run here; the message says why.

    Source: Zhang et al., "ResNeSt", arXiv:2004.08955.
    """
    _check(x, radix)
    if gates.shape != x.shape[:2]:
        raise ValueError(f"gates must be {tuple(x.shape[:2])} like x, got {tuple(gates.shape)}")
    if not gates.is_floating_point() or gates.device != x.device:
        raise ValueError(
            f"gates must be floating point on {x.device} like x, got {gates.dtype} on "
            f"{gates.device}"
        )
    name = choose("split", x, backend)
    if name == "reference" or watched_by_forward_ad():
        return split_apply_reference(x, gates, radix=radix)
    return _apply(x, gates.to(accumulator(x.dtype)), radix, name)


def _check(x: Tensor, radix: int) -> None:
    check_map(x)
    if not x.numel() and 0 in x.shape[1:]:
        raise ValueError(f"x must have C, H and W of at least 1, got {tuple(x.shape)}")
    if not 1 <= radix <= LARGEST_RADIX:
        raise ValueError(f"radix must be 1 to {LARGEST_RADIX}, got {radix}")
    if x.shape[1] % radix:
        raise ValueError(f"x must have radix = {radix} groups of channels, got {tuple(x.shape)}")


def _pool_forward(x: Tensor, radix: int, backend: str) -> Tensor:
    return launchers(__package__, backend).pool(x, radix)


def _apply_forward(x: Tensor, gates: Tensor, radix: int, backend: str) -> Tensor:
    return launchers(__package__, backend).apply(x, gates, radix)


def _apply_gradients(
    grad_out: Tensor, x: Tensor, gates: Tensor, radix: int, need_input: bool, backend: str
) -> tuple[Tensor, Tensor]:
    grad_x, grad_gates = launchers(__package__, backend).apply_backward(
        grad_out, x, gates, radix, need_input
    )
    return (x.new_empty(0) if grad_x is None else grad_x), grad_gates


def _fake_pool(x: Tensor, radix: int, backend: str) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1] // radix), dtype=accumulator(x.dtype))


def _fake_apply(x: Tensor, gates: Tensor, radix: int, backend: str) -> Tensor:
    n, width, h, w = x.shape
    return like_input(x, (n, width // radix, h, w))


def _fake_apply_backward(
    grad_out: Tensor, x: Tensor, gates: Tensor, radix: int, need_input: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return like_input(x) if need_input else x.new_empty(0), gates.new_empty(gates.shape)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, radix, backend):  # noqa: ANN001
        ctx.shape, ctx.dtype, ctx.radix = x.shape, x.dtype, radix
        with torch._C._AutoDispatchBelowAutograd():
            return _pool(x, radix, backend)

    @staticmethod
    def backward(ctx, grad):  # noqa: ANN001
        """The same for every pixel: an expanded view, which the sum of gradients reads in place."""
        share = (grad / (ctx.shape[2] * ctx.shape[3])).to(ctx.dtype).repeat(1, ctx.radix)
        return share[:, :, None, None].expand(ctx.shape), None, None


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gates, radix, backend):  # noqa: ANN001
        ctx.save_for_backward(x, gates)
        ctx.radix, ctx.backend = radix, backend
        with torch._C._AutoDispatchBelowAutograd():
            return _apply(x, gates, radix, backend)

    @staticmethod
    def backward(ctx, grad_out):  # noqa: ANN001
        x, gates = ctx.saved_tensors
        need = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # someone asked for create_graph
            with without_autocast(grad_out):
                x, gates = apart(x, gates)
                out = split_apply_reference(x, gates, radix=ctx.radix)
                asked = [t for t, wanted in zip((x, gates), need, strict=True) if wanted]
                found = iter(torch.autograd.grad(out, asked, grad_out, create_graph=True))
            return (*(next(found) if wanted else None for wanted in need), None, None)
        grads = _apply_backward(grad_out, x, gates, ctx.radix, need[0], ctx.backend)
        found = (grad if wanted else None for grad, wanted in zip(grads, need, strict=True))
        return *found, None, None


def _pool_autograd(x: Tensor, radix: int, backend: str) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        return _Pool.apply(x, radix, backend)  # pyright: ignore[reportReturnType]
    with torch._C._AutoDispatchBelowAutograd():
        return _pool(x, radix, backend)


def _apply_autograd(x: Tensor, gates: Tensor, radix: int, backend: str) -> Tensor:
    if torch.is_grad_enabled() and (x.requires_grad or gates.requires_grad):
        return _Apply.apply(x, gates, radix, backend)  # pyright: ignore[reportReturnType]
    with torch._C._AutoDispatchBelowAutograd():
        return _apply(x, gates, radix, backend)


for _key in ("CPU", "CUDA"):
    lib.impl("split_pool", _pool_forward, _key)
    lib.impl("split_apply", _apply_forward, _key)
    lib.impl("split_apply_backward", _apply_gradients, _key)
lib.impl("split_pool", _pool_autograd, "Autograd")
lib.impl("split_apply", _apply_autograd, "Autograd")
torch.library.register_fake("medseg::split_pool", _fake_pool, lib=lib)
torch.library.register_fake("medseg::split_apply", _fake_apply, lib=lib)
torch.library.register_fake("medseg::split_apply_backward", _fake_apply_backward, lib=lib)
