"""Triplet attention in two parts, for gates that are made elsewhere: pooling and application."""

from collections.abc import Sequence

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
from .axes import flat_gates, gate_planes
from .op import TAGS, index_dtype, lib, plane_elements
from .reference import triplet_apply_reference, triplet_pool_reference

# Planes and gates are flat here, (2, positions) and (positions,), in the order of `axes.py`;
# gates: 3, or 2 without the spatial one, whose plane then is zeros.
lib.define(
    "triplet_pool(Tensor x, int gates, str backend) -> (Tensor planes, Tensor index)", tags=TAGS
)
lib.define(
    "triplet_pool_backward(Tensor grad_planes, Tensor x, Tensor index, int gates, str backend) "
    "-> Tensor",
    tags=TAGS,
)
lib.define("triplet_apply(Tensor x, Tensor gate, int gates, str backend) -> Tensor", tags=TAGS)
lib.define(
    "triplet_apply_backward(Tensor grad_out, Tensor x, Tensor gate, int gates, str backend) "
    "-> (Tensor grad_x, Tensor grad_gate)",
    tags=TAGS,
)
_pool = torch.ops.medseg.triplet_pool.default
_pool_backward = torch.ops.medseg.triplet_pool_backward.default
_apply = torch.ops.medseg.triplet_apply.default
_apply_backward = torch.ops.medseg.triplet_apply_backward.default


def triplet_pool(
    x: Tensor, *, spatial: bool = True, backend: str | None = None
) -> tuple[Tensor, ...]:
    """Pools a map over H, over W and over C, maximum and mean: one read.

    What the gates of ``triplet_attention`` are made of.

    Args:
        x: feature map (N, C, H, W); float16, bfloat16, float32 or float64; any strides.
        spatial: whether it is pooled over C too.
        backend: "cpu", "cuda", "triton" or "reference"; None takes the fastest that can run.

    Returns:
        Tensors (N, 2, C, W), (N, 2, H, C) and, with ``spatial``, (N, 2, H, W): the maximum, then
        the mean; float32 (float64 for float64), of any strides. The first of equal maxima gets the
        gradient. A NaN of ``x`` shows in its means; on "cpu" the maxima pass it over.

    Raises:
        ValueError: ``x`` is no 4-D float tensor or has an empty axis beside N.
        RuntimeError: ``backend`` was named but cannot run here; the message says why.

    Source: Misra et al., "Rotate to Attend", WACV 2021, arXiv:2010.03045.
    """
    _check(x)
    name = choose("triplet", x, backend)
    if name == "reference" or watched_by_forward_ad():
        return triplet_pool_reference(x, spatial=spatial)
    gates = 3 if spatial else 2
    return gate_planes(_pool(x, gates, name)[0], x, gates)


def triplet_apply(x: Tensor, gates: Sequence[Tensor], *, backend: str | None = None) -> Tensor:
    """Averages copies of a map, each gated along another pair of axes: one read, one write.

    out = x * mean_g gate_g

    Args:
        x: as in ``triplet_pool``.
        gates: (N, 1, C, W), (N, 1, H, C) and, if there is a third, (N, 1, H, W), on the device of
            ``x``; of any one float dtype.
        backend: "cpu", "cuda", "triton" or "reference"; None takes the fastest that can run.

    Returns:
        Tensor like ``x``: channels_last if ``x`` is, else contiguous.

    Raises:
        ValueError: ``x`` is none that ``triplet_pool`` takes, or ``gates`` do not fit.
        RuntimeError: ``backend`` was named but cannot run here; the message says why.

    Source: Misra et al., "Rotate to Attend", WACV 2021, arXiv:2010.03045.
    """
    _check(x)
    _check_gates(x, gates)
    name = choose("triplet", x, backend)
    if name == "reference" or watched_by_forward_ad():
        return triplet_apply_reference(x, gates)
    return _apply(x, flat_gates(gates, x).to(accumulator(x.dtype)), len(gates), name)


def _check(x: Tensor) -> None:
    check_map(x)
    if not x.numel() and 0 in x.shape[1:]:
        raise ValueError(f"x must have C, H and W of at least 1, got {tuple(x.shape)}")


def _check_gates(x: Tensor, gates: Sequence[Tensor]) -> None:
    if len(gates) not in (2, 3):
        raise ValueError(f"gates must be 2 or 3 tensors, got {len(gates)}")
    n, c, h, w = x.shape
    for i, (gate, plane) in enumerate(zip(gates, ((c, w), (h, c), (h, w)), strict=False)):
        if gate.shape != (n, 1, *plane):
            raise ValueError(f"gates[{i}] must be {(n, 1, *plane)}, got {tuple(gate.shape)}")
        if not gate.is_floating_point() or gate.dtype is not gates[0].dtype:
            raise ValueError(f"gates must be of one float dtype, gates[{i}] is {gate.dtype}")
        if gate.device != x.device:
            raise ValueError(f"gates[{i}] must be on {x.device} like x, got {gate.device}")


def _pool_forward(x: Tensor, gates: int, backend: str) -> tuple[Tensor, Tensor]:
    return launchers(__package__, backend).pool(x, gates)


def _pool_gradient(
    grad_planes: Tensor, x: Tensor, index: Tensor, gates: int, backend: str
) -> Tensor:
    return launchers(__package__, backend).pool_backward(grad_planes, x, index, gates)


def _apply_forward(x: Tensor, gate: Tensor, gates: int, backend: str) -> Tensor:
    return launchers(__package__, backend).apply(x, gate, gates)


def _apply_gradients(
    grad_out: Tensor, x: Tensor, gate: Tensor, gates: int, backend: str
) -> tuple[Tensor, Tensor]:
    return launchers(__package__, backend).apply_backward(grad_out, x, gate, gates)


def _fake_pool(x: Tensor, gates: int, backend: str) -> tuple[Tensor, Tensor]:
    positions = plane_elements(x)
    planes = x.new_empty((2, positions), dtype=accumulator(x.dtype))
    return planes, x.new_empty((positions,), dtype=index_dtype(x))


def _fake_pool_backward(
    grad_planes: Tensor, x: Tensor, index: Tensor, gates: int, backend: str
) -> Tensor:
    return like_input(x)


def _fake_apply(x: Tensor, gate: Tensor, gates: int, backend: str) -> Tensor:
    return like_input(x)


def _fake_apply_backward(
    grad_out: Tensor, x: Tensor, gate: Tensor, gates: int, backend: str
) -> tuple[Tensor, Tensor]:
    return like_input(x), gate.new_empty(gate.shape)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gates, backend):  # noqa: ANN001
        with torch._C._AutoDispatchBelowAutograd():
            planes, index = _pool(x, gates, backend)
        ctx.save_for_backward(x, index)  # x for its layout, and for second derivatives
        ctx.gates, ctx.backend = gates, backend
        ctx.mark_non_differentiable(index)
        ctx.set_materialize_grads(False)
        return planes, index

    @staticmethod
    def backward(ctx, grad_planes, *_):  # noqa: ANN001
        if grad_planes is None:
            return None, None, None
        x, index = ctx.saved_tensors
        if torch.is_grad_enabled():  # someone asked for create_graph
            (x,) = apart(x)
            out = triplet_pool_reference(x, spatial=ctx.gates == 3)
            grads = gate_planes(grad_planes, x, ctx.gates)
            (grad_x,) = torch.autograd.grad(out, (x,), grads, create_graph=True)
        else:
            grad_x = _pool_backward(grad_planes, x, index, ctx.gates, ctx.backend)
        return grad_x, None, None


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate, gates, backend):  # noqa: ANN001
        ctx.save_for_backward(x, gate)
        ctx.gates, ctx.backend = gates, backend
        with torch._C._AutoDispatchBelowAutograd():
            return _apply(x, gate, gates, backend)

    @staticmethod
    def backward(ctx, grad_out):  # noqa: ANN001
        x, gate = ctx.saved_tensors
        need = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # someone asked for create_graph
            with without_autocast(grad_out):
                x, gate = apart(x, gate)
                out = triplet_apply_reference(x, gate_planes(gate[None], x, ctx.gates))
                asked = [t for t, wanted in zip((x, gate), need, strict=True) if wanted]
                found = iter(torch.autograd.grad(out, asked, grad_out, create_graph=True))
            return (*(next(found) if wanted else None for wanted in need), None, None)
        grads = _apply_backward(grad_out, x, gate, ctx.gates, ctx.backend)
        found = (grad if wanted else None for grad, wanted in zip(grads, need, strict=True))
        return *found, None, None


def _pool_autograd(x: Tensor, gates: int, backend: str) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and x.requires_grad:
        return _Pool.apply(x, gates, backend)  # pyright: ignore[reportReturnType]
    with torch._C._AutoDispatchBelowAutograd():
        return _pool(x, gates, backend)


def _apply_autograd(x: Tensor, gate: Tensor, gates: int, backend: str) -> Tensor:
    if torch.is_grad_enabled() and (x.requires_grad or gate.requires_grad):
        return _Apply.apply(x, gate, gates, backend)  # pyright: ignore[reportReturnType]
    with torch._C._AutoDispatchBelowAutograd():
        return _apply(x, gate, gates, backend)


for _key in ("CPU", "CUDA"):
    lib.impl("triplet_pool", _pool_forward, _key)
    lib.impl("triplet_pool_backward", _pool_gradient, _key)
    lib.impl("triplet_apply", _apply_forward, _key)
    lib.impl("triplet_apply_backward", _apply_gradients, _key)
lib.impl("triplet_pool", _pool_autograd, "Autograd")
lib.impl("triplet_apply", _apply_autograd, "Autograd")
torch.library.register_fake("medseg::triplet_pool", _fake_pool, lib=lib)
torch.library.register_fake("medseg::triplet_pool_backward", _fake_pool_backward, lib=lib)
torch.library.register_fake("medseg::triplet_apply", _fake_apply, lib=lib)
torch.library.register_fake("medseg::triplet_apply_backward", _fake_apply_backward, lib=lib)
