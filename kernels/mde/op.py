"""Registration, autograd and the public functions of the MDE filter."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._backend import (
    accumulator,
    apart,
    choose,
    is_channels_last,
    launchers,
    like_input,
    watched_by_forward_ad,
    without_autocast,
)
from .arguments import check_input, check_up, same_dtype
from .bank import FAST_SCALE, widths
from .reference import mde_reference

lib = torch.library.Library("medseg", "FRAGMENT")
TAGS = (torch.Tag.pt2_compliant_tag,)
lib.define(
    "mde(Tensor x, Tensor? up, Tensor gains, int[] scales, str bank, str pad, str backend) "
    "-> Tensor",
    tags=TAGS,
)
lib.define(
    "mde_backward(Tensor grad_out, Tensor? x, Tensor gains, SymInt offset, int[] scales, str bank, "
    "str pad, bool need_input, bool need_gains, str backend) "
    "-> (Tensor grad_x, Tensor grad_gains)",
    tags=TAGS,
)
_mde = torch.ops.medseg.mde.default
_mde_backward = torch.ops.medseg.mde_backward.default


def mde_filter(
    x: Tensor,
    gains: Tensor,
    scales: Sequence[int] = (3, 5, 7),
    bank: str = "binomial",
    pad: str = "zero",
    *,
    backend: str | None = None,
) -> Tensor:
    """Weighs the bands of a map, from fine to coarse, channel by channel.

    y = sum_j a_j (s_j - s_j+1) + a_r s_S  with s_0 = x, s_j = G_j * x

    The filter is linear: fast backends fold the masks G_j into one stencil a channel, in double,
    and read and write the map once. With fixed gains nothing is saved for the backward.

    Args:
        x: feature map (N, C, H, W); float16, bfloat16, float32 or float64; any strides.
        gains: (C, S + 1), or (1, S + 1) for all channels: one of every band, then that of the
            residual; float32 (float64 too where ``x`` is), on the device of ``x``.
        scales: S widths of the masks, odd and rising; fast backends take up to 7.
        bank: kind of masks: "binomial", "opencv", "gauss" or "gauss(0.8,1.1,1.4)" with the
            widths (0.001 to 1000), "box", or "cross" (five cells, scale 3 alone).
        pad: "zero", or "reflect", which does not repeat the edge and needs H, W > max(scales) / 2.
        backend: "cpu", "cuda", "triton" or "reference"; None takes the fastest that can run.

    Returns:
        Tensor like ``x``: channels_last if ``x`` is, else contiguous. Sums are float32 (float64 for
        float64), rounded once, under autocast too. Infinities and NaN spread over the whole window.
        Which cells an infinity makes infinite and which NaN depends on the backend: the reference
        adds scale by scale, the fast ones fold the scales first and may skip taps of zero.

    Raises:
        ValueError: ``x`` is no 4-D float tensor, has an empty axis beside N or is too small to
            reflect, or shapes, dtypes or devices do not fit, or scales, bank or pad are unknown.
        RuntimeError: ``backend`` was named but cannot run here; the message says why.

    Source: our reading of Wang et al., "E-DU", 2022, doi:10.1016/j.compbiomed.2022.106206.
    """
    scales = widths(scales)
    check_input(x, gains, scales, bank, pad)
    return _run(x, None, gains, scales, bank, pad, backend)


def mde_concat(
    up: Tensor,
    skip: Tensor,
    gains: Tensor,
    scales: Sequence[int] = (3, 5, 7),
    bank: str = "binomial",
    pad: str = "zero",
    *,
    backend: str | None = None,
) -> Tensor:
    """``cat([up, mde_filter(skip, gains)], 1)``, the filter writing into the result itself.

    Args:
        up: map of the decoder (N, C_up, H, W); dtype and device of ``skip``; any strides. Under
            autocast the dtypes may differ: both maps take the wider one first, as in `torch.cat`.
        skip: map of the encoder (N, C, H, W), filtered.
        gains, scales, bank, pad, backend: as in `mde_filter`.

    Returns:
        (N, C_up + C, H, W): channels_last if ``skip`` is, else contiguous.

    Raises:
        ValueError: as `mde_filter`, or ``up`` does not fit ``skip``.
        RuntimeError: ``backend`` was named but cannot run here; the message says why.
    """
    scales = widths(scales)
    up, skip = same_dtype(up, skip)
    check_input(skip, gains, scales, bank, pad, "skip")
    check_up(up, skip)
    return _run(skip, up, gains, scales, bank, pad, backend)


def _run(
    x: Tensor,
    up: Tensor | None,
    gains: Tensor,
    scales: tuple[int, ...],
    bank: str,
    pad: str,
    backend: str | None,
) -> Tensor:
    too_wide = None
    if max(scales) > FAST_SCALE:
        too_wide = f"fast backends take scales up to {FAST_SCALE}, got {scales}"
    name = choose("mde", x, backend, too_wide)
    if name == "reference" or watched_by_forward_ad():
        out = mde_reference(x, gains, scales, bank, pad)
        return out if up is None else torch.cat([up, out], dim=1)
    return _mde(x, up, gains, scales, bank, pad, name)


def _forward(
    x: Tensor,
    up: Tensor | None,
    gains: Tensor,
    scales: Sequence[int],
    bank: str,
    pad: str,
    backend: str,
) -> Tensor:
    return launchers(__package__, backend).forward(x, up, gains, tuple(scales), bank, pad)


def _backward(
    grad_out: Tensor,
    x: Tensor | None,
    gains: Tensor,
    offset: int,
    scales: Sequence[int],
    bank: str,
    pad: str,
    need_input: bool,
    need_gains: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    grad_x, grad_gains = launchers(__package__, backend).backward(
        grad_out, x, gains, offset, tuple(scales), bank, pad, need_input, need_gains
    )
    return (
        grad_out.new_empty(0) if grad_x is None else grad_x,
        gains.new_empty(0) if grad_gains is None else grad_gains,
    )


def _fake(
    x: Tensor,
    up: Tensor | None,
    gains: Tensor,
    scales: Sequence[int],
    bank: str,
    pad: str,
    backend: str,
) -> Tensor:
    if up is None:
        return like_input(x)
    n, c, h, w = x.shape
    return like_input(x, (n, up.shape[1] + c, h, w))


def _fake_backward(
    grad_out: Tensor,
    x: Tensor | None,
    gains: Tensor,
    offset: int,
    scales: Sequence[int],
    bank: str,
    pad: str,
    need_input: bool,
    need_gains: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    n, c, h, w = grad_out.shape
    empty = gains.new_empty(0)
    return (
        like_input(grad_out, (n, c - offset, h, w)) if need_input else grad_out.new_empty(0),
        gains.new_empty(gains.shape, dtype=accumulator(grad_out.dtype)) if need_gains else empty,
    )


class _MDE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, up, gains, *options):  # noqa: ANN001
        with torch._C._AutoDispatchBelowAutograd():
            out = _mde(x, up, gains, *options)
        ctx.options, ctx.offset = options, 0 if up is None else up.shape[1]
        ctx.last = is_channels_last(out)
        # The filter is linear: its adjoint needs no x, only the gradient of the gains does.
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, gains)
        return out

    @staticmethod
    def backward(ctx, grad_out):  # noqa: ANN001
        x, gains = ctx.saved_tensors
        need_x, need_up, need_gains = ctx.needs_input_grad[:3]
        *bank, backend = ctx.options
        grad_x = grad_gains = None
        if torch.is_grad_enabled():  # someone asked for create_graph
            grad_x, grad_gains = _twice(grad_out, x, gains, ctx.offset, bank, need_x)
        elif need_x or need_gains:
            layout = torch.channels_last if ctx.last else torch.contiguous_format
            grad_x, grad_gains = _mde_backward(
                grad_out.contiguous(memory_format=layout), x, gains, ctx.offset, *bank,
                need_x, need_gains, backend,
            )  # fmt: skip
        return (
            grad_x if need_x else None,
            grad_out.narrow(1, 0, ctx.offset) if need_up else None,
            grad_gains.to(gains.dtype) if need_gains else None,  # pyright: ignore
            *(None,) * len(ctx.options),
        )


def _twice(
    grad_out: Tensor,
    x: Tensor | None,
    gains: Tensor,
    offset: int,
    bank: Sequence[object],
    need_x: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients that can be differentiated again: those of the reference."""
    grad_y = grad_out.narrow(1, offset, grad_out.shape[1] - offset)
    if x is None:  # linear in x, so any point will do
        x = torch.zeros_like(grad_y, requires_grad=True)
    x, gains = apart(x, gains)
    asked: list[Any] = [t for t, need in ((x, need_x), (gains, gains.requires_grad)) if need]
    with without_autocast(grad_y):
        out = mde_reference(x, gains, *bank)  # pyright: ignore[reportArgumentType]
        found = iter(torch.autograd.grad(out, asked, grad_y, create_graph=True) if asked else ())
    return next(found) if need_x else None, next(found) if gains.requires_grad else None


def _autograd(x: Tensor, up: Tensor | None, gains: Tensor, *options) -> Tensor:
    watched = x.requires_grad or gains.requires_grad or (up is not None and up.requires_grad)
    if watched and torch.is_grad_enabled():
        return _MDE.apply(x, up, gains, *options)  # pyright: ignore[reportReturnType]
    with torch._C._AutoDispatchBelowAutograd():
        return _mde(x, up, gains, *options)


for _key in ("CPU", "CUDA"):
    lib.impl("mde", _forward, _key)
    lib.impl("mde_backward", _backward, _key)
lib.impl("mde", _autograd, "Autograd")
torch.library.register_fake("medseg::mde", _fake, lib=lib)
torch.library.register_fake("medseg::mde_backward", _fake_backward, lib=lib)
