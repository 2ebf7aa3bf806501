"""Registration, autograd and the public function of position attention."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .._arguments import FLOATS
from .._backend import apart, choose, watched_by_forward_ad, without_autocast
from . import attend
from .reference import position_reference

lib = torch.library.Library("medseg", "FRAGMENT")
TAGS = (torch.Tag.pt2_compliant_tag,)
lib.define(
    "position(Tensor query, Tensor key, Tensor value, Tensor? seed, float scale, float dropout, "
    "str backend) -> (Tensor out, Tensor saved)",
    tags=TAGS,
)
lib.define(
    "position_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor? out, "
    "Tensor saved, Tensor? seed, float scale, float dropout, str backend) "
    "-> (Tensor grad_query, Tensor grad_key, Tensor grad_value)",
    tags=TAGS,
)
_position = torch.ops.medseg.position.default
_position_backward = torch.ops.medseg.position_backward.default

SMALL = 1 << 18  # scores, 1 MB of float32; from 2^21 on flash and blocks lead
SMALL_SHARE = 0.5  # of it where weights are dropped: at 2^17 blocks are as fast, at 2^20 1.4 times
GPU_WIDTH = 8  # PyTorch's fused kernels on a GPU take widths that are multiples of it


def position_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Mixes the values of all positions by how alike their queries and keys are; a single head.

    out = dropout(softmax(query key' * scale)) value

    The (L, M) matrix never exists as a whole, unless it is tiny (on a CPU at most 2^18 scores in
    float32, or half as many where some are dropped; there it costs least): memory grows with L + M.
    The fast path is PyTorch's own (attend.py says which and why), on every device, so it answers to
    the name of any backend that the device has: "cpu" on a CPU, "cuda" or "triton" on a GPU.

    Args:
        query: tokens (N, L, D); float16, bfloat16, float32 or float64; any strides.
        key: (N, M, D), dtype and device of ``query``, like ``value``.
        value: (N, M, E); E need not be D.
        scale: factor of the scores; None is 1 / sqrt(D).
        dropout: probability with which each weight is dropped, in every call (a module passes 0
            outside training); drawn from PyTorch's generator, the same mask in both directions.
        backend: "cpu", "cuda", "triton" or "reference"; None takes the fast path.

    Returns:
        Tensor (N, L, E), contiguous, in the dtype of ``value`` under autocast too; scores and
        softmax are float32 (float64 for float64). Second derivatives go through the reference; on
        a GPU only with ``backend="reference"``, else PyTorch refuses them.

    Raises:
        ValueError: a tensor is no (N, L, D) float tensor, or shapes, dtypes or devices differ, or
            ``dropout`` lies outside [0, 1).
        RuntimeError: ``backend`` was named but the tensors are on another device.

    Source: Fu et al., "Dual Attention Network", CVPR 2019, arXiv:1809.02983.
    """
    _check(query, key, value, dropout)
    name = choose("position", query, backend)
    if name == "reference" or watched_by_forward_ad():
        return position_reference(query, key, value, scale=scale, dropout=dropout)
    factor = 1 / math.sqrt(query.shape[2]) if scale is None else float(scale)
    if _is_small(query, key, dropout):
        with without_autocast(query):
            weights = torch.softmax(torch.bmm(query * factor, key.mT), 2)
            return torch.bmm(F.dropout(weights, dropout) if dropout else weights, value)
    if query.is_cuda and query.dtype is not torch.float64 and 0 not in (*value.shape, *query.shape):
        return _on_gpu(query, key, value, factor, dropout)
    seed = torch.randint(2**62, ()) if dropout > 0 else None
    return _position(query, key, value, seed, factor, dropout, name)[0]


def _check(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> None:
    named, device = {"query": query, "key": key, "value": value}, query.device
    for name, t in named.items():
        if t.dim() != 3:
            raise ValueError(f"{name} must be (N, L, D), got {tuple(t.shape)}")
        if t.dtype not in FLOATS:
            raise ValueError(f"{name} must be float16, bfloat16, float32 or float64, got {t.dtype}")
        if t.dtype is not query.dtype:
            raise ValueError(f"{name} must be {query.dtype} like query, got {t.dtype}")
        if t.device != device:
            raise ValueError(f"{name} must be on {device} like query, got {t.device}")
    n, _, d = query.shape
    if key.shape[0] != n or key.shape[2] != d or d == 0:
        raise ValueError(f"key must be ({n}, M, {d}) like query, got {tuple(key.shape)}")
    if value.shape[:2] != key.shape[:2]:
        raise ValueError(f"value must be ({n}, {key.shape[1]}, E), got {tuple(value.shape)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")


def _is_small(query: Tensor, key: Tensor, dropout: float) -> bool:
    """Whether the whole matrix costs less than any way around it: 1.1 to 1.8 times on a CPU.

    Not asked under torch.compile, which would have to guard on the sizes, nor under autocast, which
    would round what autograd makes of the formula.
    """
    if torch.compiler.is_compiling() or query.is_cuda or torch.is_autocast_enabled("cpu"):
        return False
    scores = query.shape[0] * query.shape[1] * key.shape[1]
    most = SMALL * SMALL_SHARE if dropout else SMALL
    return scores <= most and query.dtype in (torch.float32, torch.float64)


def _on_gpu(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float) -> Tensor:
    """PyTorch's choice among its fused kernels; odd widths would send it to the plain formula."""
    width = value.shape[2]
    heads = [_widened(t).contiguous().unsqueeze(1) for t in (query, key, value)]
    with without_autocast(query):
        out = F.scaled_dot_product_attention(*heads, dropout_p=dropout, scale=scale)
    return out.squeeze(1)[..., :width].contiguous()


def _widened(t: Tensor) -> Tensor:
    missing = -t.shape[2] % GPU_WIDTH
    return F.pad(t, (0, missing)) if missing else t


def _forward(
    query: Tensor, key: Tensor, value: Tensor, seed: Tensor | None, scale: float, dropout: float,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    with without_autocast(query):
        return attend.forward(query, key, value, seed, scale, dropout)


def _backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor | None, saved: Tensor,
    seed: Tensor | None, scale: float, dropout: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    with without_autocast(query):
        return attend.backward(grad_out, query, key, value, out, saved, seed, scale, dropout)


def _fake(
    query: Tensor, key: Tensor, value: Tensor, seed: Tensor | None, scale: float, dropout: float,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out = value.new_empty((query.shape[0], query.shape[1], value.shape[2]))
    return out, attend.new_saved(query, value, dropout)


def _fake_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor | None, saved: Tensor,
    seed: Tensor | None, scale: float, dropout: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


class _Position(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, seed, scale, dropout, backend):  # noqa: ANN001
        with torch._C._AutoDispatchBelowAutograd():
            out, saved = _position(query, key, value, seed, scale, dropout, backend)
        ctx.scale, ctx.dropout, ctx.backend = scale, dropout, backend
        kept = out if attend.needs_output(query, value, dropout) else None
        ctx.save_for_backward(query, key, value, kept, saved, seed)
        ctx.mark_non_differentiable(saved)
        ctx.set_materialize_grads(False)
        return out, saved

    @staticmethod
    def backward(ctx, grad_out, _):  # noqa: ANN001
        if grad_out is None:
            return (None,) * 7
        query, key, value, out, saved, seed = ctx.saved_tensors
        if torch.is_grad_enabled():  # someone asked for create_graph
            with without_autocast(query):
                return _twice(grad_out, apart(query, key, value), seed, ctx.scale, ctx.dropout)
        grads = _position_backward(
            grad_out, query, key, value, out, saved, seed, ctx.scale, ctx.dropout, ctx.backend
        )
        wanted = zip(grads, ctx.needs_input_grad[:3], strict=True)
        return (*(g if need else None for g, need in wanted), *(None,) * 4)


def _twice(
    grad_out: Tensor,
    inputs: list[Tensor],
    seed: Tensor | None,
    scale: float,
    dropout: float,
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again: those of the reference's formula."""
    query, key, value = inputs
    if seed is None:
        out = position_reference(query, key, value, scale=scale)
    else:
        out = attend.with_mask(query, key, value, seed, scale, dropout)
    asked = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(out, asked, grad_out, create_graph=True))
    return (*(next(found) if t.requires_grad else None for t in inputs), *(None,) * 4)


def _autograd(*args) -> tuple[Tensor, ...]:
    if torch.is_grad_enabled() and any(t.requires_grad for t in args[:3]):
        return _Position.apply(*args)  # pyright: ignore[reportReturnType]
    with torch._C._AutoDispatchBelowAutograd():
        return _position(*args)


for _key in ("CPU", "CUDA"):
    lib.impl("position", _forward, _key)
    lib.impl("position_backward", _backward, _key)
lib.impl("position", _autograd, "Autograd")
torch.library.register_fake("medseg::position", _fake, lib=lib)
torch.library.register_fake("medseg::position_backward", _fake_backward, lib=lib)
