"""Registration, autograd and the public function of ECA."""

import torch
from torch import Tensor

from .._arguments import check_map, check_parameters
from .._backend import accumulator, choose, launchers, like_input, watched_by_forward_ad
from .reference import eca_reference

lib = torch.library.Library("medseg", "FRAGMENT")
TAGS = (torch.Tag.pt2_compliant_tag,)
lib.define(
    "eca(Tensor x, Tensor weight, Tensor? bias, str backend) -> (Tensor out, Tensor saved)",
    tags=TAGS,
)
lib.define(
    "eca_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor saved, bool need_input, "
    "str backend) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    tags=TAGS,
)
_eca = torch.ops.medseg.eca.default
_eca_backward = torch.ops.medseg.eca_backward.default


def eca_attention(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Gates each channel by a 1-D convolution over the pooled channels.

    gate = sigmoid(conv1d(mean_hw(x), weight) + bias);  out = x * gate

    Args:
        x: feature map (N, C, H, W); float16, bfloat16, float32 or float64; any strides.
        weight: taps (K,), K odd; dtype of ``x`` or float32, on the device of ``x``.
        bias: None or (1,), as ``weight``.
        backend: "cpu", "cuda", "triton" or "reference"; None takes the fastest that can run.

    Returns:
        Tensor like ``x``: channels_last if ``x`` is, else contiguous. Sums and gates are computed
        in float32 (float64 for float64).

    Raises:
        ValueError: ``x`` is no 4-D float tensor, K is even, or shapes, dtypes or devices differ.
        RuntimeError: ``backend`` was named but cannot run here; the message says why.

    Source: Wang et al., "ECA-Net", CVPR 2020, arXiv:1910.03151.
    """
    _check(x, weight, bias)
    name = choose("eca", x, backend)
    if name == "reference" or watched_by_forward_ad():
        return eca_reference(x, weight, bias)
    return _eca(x, weight, bias, name)[0]


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_map(x)
    if weight.dim() != 1 or weight.shape[0] % 2 == 0:
        raise ValueError(f"weight must be (K,) with K odd, got {tuple(weight.shape)}")
    if bias is not None and bias.shape != (1,):
        raise ValueError(f"bias must be (1,), got {tuple(bias.shape)}")
    check_parameters(x, {"weight": weight, "bias": bias})


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    return launchers(__package__, backend).forward(x, weight, bias)


def _backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, saved: Tensor, need_input: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_weight, grad_bias = launchers(__package__, backend).backward(
        grad_out, x, weight, saved, need_input
    )
    return x.new_empty(0) if grad_x is None else grad_x, grad_weight, grad_bias


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    return like_input(x), x.new_empty((2, x.shape[0], x.shape[1]), dtype=accumulator(x.dtype))


def _fake_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, saved: Tensor, need_input: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = like_input(x) if need_input else x.new_empty(0)
    return grad_x, saved.new_empty(weight.shape), saved.new_empty(1)


class _ECA(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, backend):  # noqa: ANN001
        with torch._C._AutoDispatchBelowAutograd():
            out, saved = _eca(x, weight, bias, backend)
        ctx.backend, ctx.biased = backend, bias is not None
        ctx.save_for_backward(x, weight, bias, saved)
        ctx.mark_non_differentiable(saved)
        ctx.set_materialize_grads(False)
        return out, saved

    @staticmethod
    def backward(ctx, grad_out, _):  # noqa: ANN001
        if grad_out is None:
            return None, None, None, None
        x, weight, bias, saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # someone asked for create_graph
            return _twice(grad_out, x, weight, bias)
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        grad_x, grad_weight, grad_bias = _eca_backward(
            grad_out, x, weight, saved, need_x, ctx.backend
        )
        return (
            grad_x if need_x else None,
            grad_weight.to(weight.dtype) if need_weight else None,
            grad_bias.to(bias.dtype) if need_bias else None,
            None,
        )


def _twice(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again: those of the reference."""
    inputs = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    out = eca_reference(x, weight, bias)
    found = iter(torch.autograd.grad(out, inputs, grad_out, create_graph=True))
    wanted = (t is not None and t.requires_grad for t in (x, weight, bias))
    return (*(next(found) if want else None for want in wanted), None)


def _autograd(
    x: Tensor, weight: Tensor, bias: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    watched = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if watched and torch.is_grad_enabled():
        return _ECA.apply(x, weight, bias, backend)  # pyright: ignore[reportReturnType]
    with torch._C._AutoDispatchBelowAutograd():
        return _eca(x, weight, bias, backend)


for _key in ("CPU", "CUDA"):
    lib.impl("eca", _forward, _key)
    lib.impl("eca_backward", _backward, _key)
lib.impl("eca", _autograd, "Autograd")
torch.library.register_fake("medseg::eca", _fake, lib=lib)
torch.library.register_fake("medseg::eca_backward", _fake_backward, lib=lib)
