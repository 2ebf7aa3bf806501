"""Registration, autograd and the public function of ECA."""

from typing import Any, overload

import torch
from torch import Tensor

from .._arguments import check_map, check_parameters
from .._backend import (
    accumulator,
    apart,
    choose,
    launchers,
    like_input,
    watched_by_forward_ad,
    without_autocast,
)
from .maps import pooled_like
from .reference import eca_reference

lib = torch.library.Library("medseg", "FRAGMENT")
TAGS = (torch.Tag.pt2_compliant_tag,)
lib.define(
    "eca(Tensor x, Tensor? residual, Tensor weight, Tensor? bias, int pool, str backend) -> "
    "(Tensor out, Tensor summed, Tensor saved)",
    tags=TAGS,
)
lib.define(
    "eca_backward(Tensor grad_out, Tensor? grad_summed, Tensor x, Tensor weight, Tensor saved, "
    "int pool, bool need_input, str backend) -> "
    "(Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    tags=TAGS,
)
_eca = torch.ops.medseg.eca.default
_eca_backward = torch.ops.medseg.eca_backward.default
Three = tuple[Tensor, Tensor, Tensor]


@overload
def eca_attention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: None = None,
    pool: int = 1,
    backend: str | None = None,
) -> Tensor: ...
@overload
def eca_attention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor,
    pool: int = 1,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def eca_attention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    pool: int = 1,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Gates each channel by a 1-D convolution over the pooled channels.

    summed = x + residual;  gate = sigmoid(conv1d(mean_hw(summed), weight) + bias)
    out = maxpool(summed * gate)

    Args:
        x: feature map (N, C, H, W); float16, bfloat16, float32 or float64; any strides.
        weight: taps (K,), K odd; dtype of ``x`` or float32, on the device of ``x``.
        bias: None or (1,), as ``weight``.
        residual: None, or a map of the shape, dtype and device of ``x`` that is added first.
        pool: 1, or 2 for the 2x2 max-pool behind the gate; an odd last row or column is left out.
        backend: "cpu", "cuda", "triton" or "reference"; None takes the fastest that can run.

    Returns:
        Tensor like ``x``, or (N, C, H // 2, W // 2): channels_last if ``x`` is, else contiguous.
        With a residual (out, summed), summed like ``x``. Sums and gates are computed in float32
        (float64 for float64). The gradient of the pool goes to the first of equal maxima of summed.

    Raises:
        ValueError: ``x`` is no 4-D float tensor or has an empty axis beside N, K is even, ``pool``
            is neither 1 nor 2 or the map too small for it, or shapes, dtypes or devices differ.
        RuntimeError: ``backend`` was named but cannot run here; the message says why.

    Source: Wang et al., "ECA-Net", CVPR 2020, arXiv:1910.03151.
    """
    _check(x, weight, bias, residual, pool)
    name = choose("eca", x, backend)
    if name == "reference" or watched_by_forward_ad():
        return eca_reference(x, weight, bias, residual=residual, pool=pool)
    out, summed, _ = _eca(x, residual, weight, bias, pool, name)
    return out if residual is None else (out, summed)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, pool: int
) -> None:
    check_map(x)
    if not x.numel() and 0 in x.shape[1:]:
        raise ValueError(f"x must have C, H and W of at least 1, got {tuple(x.shape)}")
    if weight.dim() != 1 or weight.shape[0] % 2 == 0:
        raise ValueError(f"weight must be (K,) with K odd, got {tuple(weight.shape)}")
    if bias is not None and bias.shape != (1,):
        raise ValueError(f"bias must be (1,), got {tuple(bias.shape)}")
    check_parameters(x, {"weight": weight, "bias": bias})
    if residual is not None:
        for name in ("shape", "dtype", "device"):
            wanted, got = getattr(x, name), getattr(residual, name)
            if wanted != got:
                raise ValueError(f"residual must have the {name} of x, {wanted}, got {got}")
    if pool not in (1, 2):
        raise ValueError(f"pool must be 1 or 2, got {pool}")
    if pool == 2 and (x.shape[2] < 2 or x.shape[3] < 2):
        raise ValueError(f"x must be at least 2x2 to be pooled, got {tuple(x.shape)}")


def _forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    pool: int,
    backend: str,
) -> Three:
    return launchers(__package__, backend).forward(x, residual, weight, bias, pool)


def _backward(
    grad_out: Tensor,
    grad_summed: Tensor | None,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    pool: int,
    need_input: bool,
    backend: str,
) -> Three:
    fused = grad_summed if pool == 2 else None
    grad_x, grad_weight, grad_bias = launchers(__package__, backend).backward(
        grad_out, fused, x, weight, saved, pool, need_input
    )
    if grad_x is None:
        return x.new_empty(0), grad_weight, grad_bias
    if fused is None and grad_summed is not None:
        grad_x += grad_summed
    return grad_x, grad_weight, grad_bias


def _fake(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    pool: int,
    backend: str,
) -> Three:
    saved = x.new_empty((2, x.shape[0], x.shape[1]), dtype=accumulator(x.dtype))
    return pooled_like(x, pool), x.new_empty(0) if residual is None else like_input(x), saved


def _fake_backward(
    grad_out: Tensor,
    grad_summed: Tensor | None,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    pool: int,
    need_input: bool,
    backend: str,
) -> Three:
    grad_x = like_input(x) if need_input else x.new_empty(0)
    return grad_x, saved.new_empty(weight.shape), saved.new_empty(1)


class _ECA(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, pool, backend):  # noqa: ANN001
        with torch._C._AutoDispatchBelowAutograd():
            out, summed, saved = _eca(x, residual, weight, bias, pool, backend)
        ctx.pool, ctx.backend = pool, backend
        ctx.save_for_backward(x if residual is None else summed, weight, bias, saved)
        ctx.mark_non_differentiable(*((summed, saved) if residual is None else (saved,)))
        ctx.set_materialize_grads(False)
        return out, summed, saved

    @staticmethod
    def backward(ctx, grad_out, grad_summed, _):  # noqa: ANN001
        need_x, need_residual, need_weight, need_bias = ctx.needs_input_grad[:4]
        if grad_out is None:  # only the sum was used
            return grad_summed, grad_summed if need_residual else None, *(None,) * 4
        x, weight, bias, saved = ctx.saved_tensors
        need_map = need_x or need_residual
        if torch.is_grad_enabled():  # someone asked for create_graph
            wanted = (need_map, need_weight, need_bias)
            inputs = apart(x, weight, bias)
            with without_autocast(x):
                found = _twice(grad_out, grad_summed, inputs, wanted, ctx.pool)
            grad_x, grad_weight, grad_bias = found
        else:
            grad_x, grad_weight, grad_bias = _eca_backward(
                grad_out, grad_summed, x, weight, saved, ctx.pool, need_map, ctx.backend
            )
        return (
            grad_x if need_x else None,
            grad_x if need_residual else None,
            grad_weight.to(weight.dtype) if need_weight else None,  # pyright: ignore
            grad_bias.to(bias.dtype) if need_bias else None,  # pyright: ignore
            None,
            None,
        )


def _twice(
    grad_out: Tensor,
    grad_summed: Tensor | None,
    inputs: list[Any],
    wanted: tuple[bool, bool, bool],
    pool: int,
) -> list[Tensor | None]:
    """Gradients that can be differentiated again: those of the reference of the sum."""
    out = eca_reference(*inputs, pool=pool)
    leaves = [t for t, want in zip(inputs, wanted, strict=True) if want and t is not None]
    found = iter(torch.autograd.grad(out, leaves, grad_out, create_graph=True))
    grads = [next(found) if want else None for want in wanted]
    if grads[0] is not None and grad_summed is not None:
        grads[0] = grads[0] + grad_summed
    return grads


def _autograd(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    pool: int,
    backend: str,
) -> Three:
    inputs = (x, residual, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return _ECA.apply(*inputs, pool, backend)  # pyright: ignore[reportReturnType]
    with torch._C._AutoDispatchBelowAutograd():
        return _eca(*inputs, pool, backend)


for _key in ("CPU", "CUDA"):
    lib.impl("eca", _forward, _key)
    lib.impl("eca_backward", _backward, _key)
lib.impl("eca", _autograd, "Autograd")
torch.library.register_fake("medseg::eca", _fake, lib=lib)
torch.library.register_fake("medseg::eca_backward", _fake_backward, lib=lib)
