"""Registration, autograd and the public function of triplet attention."""

import torch
from torch import Tensor

from .._arguments import check_map, check_parameters, fit
from .._backend import (
    accumulator,
    apart,
    choose,
    launchers,
    like_input,
    watched_by_forward_ad,
    without_autocast,
)
from .reference import triplet_reference

LARGEST_KERNEL = 49  # what the tiles of the Triton kernels hold; the paper uses 7

lib = torch.library.Library("medseg", "FRAGMENT")
TAGS = (torch.Tag.pt2_compliant_tag,)
lib.define(
    "triplet(Tensor x, Tensor conv_weight, Tensor bn_weight, Tensor bn_bias, Tensor running_mean, "
    "Tensor running_var, bool training, float eps, bool keep, str backend) "
    "-> (Tensor out, Tensor stats, Tensor planes, Tensor index)",
    tags=TAGS,
)
lib.define(
    "triplet_backward(Tensor grad_out, Tensor x, Tensor conv_weight, Tensor bn_weight, "
    "Tensor bn_bias, Tensor stats, Tensor planes, Tensor index, bool training, float eps, "
    "str backend) -> (Tensor grad_x, Tensor grad_conv, Tensor grad_bn_weight, Tensor grad_bn_bias)",
    tags=TAGS,
)
_triplet = torch.ops.medseg.triplet.default
_triplet_backward = torch.ops.medseg.triplet_backward.default


def triplet_attention(
    x: Tensor,
    conv_weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    training: bool,
    momentum: float = 0.01,
    eps: float = 1e-5,
    backend: str | None = None,
) -> Tensor:
    """Averages three gated copies of a map; each gate looks along another pair of axes.

    gate_g = sigmoid(bn_g(conv_g([max, mean] of x over axis g)));  out = x * mean_g gate_g

    Args:
        x: feature map (N, C, H, W); float16, bfloat16, float32 or float64; any strides.
        conv_weight: (G, 2, k, k), k odd and at most 49; plane 0 for the maximum, 1 for the mean.
            G = 3: gate over H (plane C x W), over W (plane H x C), over C (plane H x W); G = 2
            leaves out the last, spatial one. dtype of ``x`` or float32, on the device of ``x``.
        bn_weight, bn_bias: (G,), like ``conv_weight``.
        running_mean, running_var: (G,); in training they are updated in place exactly as
            ``nn.BatchNorm2d`` does, from the unbiased variance.
        training: normalise by the batch instead of the running statistics.
        momentum: weight of the new statistics.
        eps: added to the variance.
        backend: "cpu", "cuda", "triton" or "reference"; None takes the fastest that can run.

    Returns:
        Tensor like ``x``: channels_last if ``x`` is, else contiguous. Pooling, gates and statistics
        are float32 (float64 for float64). The first of equal maxima gets the gradient.

    Raises:
        ValueError: ``x`` is no 4-D float tensor or has an empty axis beside N, or shapes, dtypes or
            devices of the parameters do not fit, or training has one value per gate.
        RuntimeError: ``backend`` was named but cannot run here; the message says why.

    Source: Misra et al., "Rotate to Attend", WACV 2021, arXiv:2010.03045.
    """
    _check(x, conv_weight, bn_weight, bn_bias, running_mean, running_var, training)
    name = choose("triplet", x, backend)
    tensors = (x, conv_weight, bn_weight, bn_bias, running_mean, running_var)
    if name == "reference" or watched_by_forward_ad():
        return triplet_reference(*tensors, training=training, momentum=momentum, eps=eps)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors[:4])
    out, stats, _, _ = _triplet(*tensors, training, eps, keep, name)
    if training and x.shape[0]:
        running_mean.lerp_(stats[0].to(running_mean.dtype), momentum)
        running_var.lerp_(stats[1].to(running_var.dtype), momentum)
    return out


def _check(
    x: Tensor,
    conv_weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
) -> None:
    check_map(x)
    if not x.numel() and 0 in x.shape[1:]:
        raise ValueError(f"x must have C, H and W of at least 1, got {tuple(x.shape)}")
    _check_taps(conv_weight)
    gates = conv_weight.shape[0]
    vectors = (bn_weight, bn_bias, running_mean, running_var)
    if not fit(x, (conv_weight, *vectors), (conv_weight.shape, *((gates,),) * 4)):
        named = dict(
            zip(("bn_weight", "bn_bias", "running_mean", "running_var"), vectors, strict=True)
        )
        for name, v in named.items():
            if v is None:
                raise ValueError(f"{name} must be a tensor, got None")
            if tuple(v.shape) != (gates,):
                raise ValueError(
                    f"{name} must be ({gates},) like conv_weight, got {tuple(v.shape)}"
                )
        check_parameters(x, {"conv_weight": conv_weight, **named})
    n, c, h, w = x.shape
    if training and n * min((c * w, h * c, h * w)[:gates]) == 1:
        raise ValueError(
            f"training needs more than one value per gate to normalise, x {tuple(x.shape)} pools "
            "to a single one; use a larger batch or map"
        )


def _check_taps(conv_weight: Tensor) -> None:
    shape = tuple(conv_weight.shape)
    if len(shape) != 4 or shape[0] not in (2, 3) or shape[1] != 2 or shape[2] != shape[3]:
        raise ValueError(f"conv_weight must be (2 or 3, 2, k, k), got {shape}")
    if shape[2] % 2 == 0 or shape[2] > LARGEST_KERNEL:
        raise ValueError(f"conv_weight must have k odd and at most {LARGEST_KERNEL}, got {shape}")


def _forward(
    x: Tensor,
    conv_weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    eps: float,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return launchers(__package__, backend).forward(
        x, conv_weight, bn_weight, bn_bias, running_mean, running_var, training, eps, keep
    )


def _backward(
    grad_out: Tensor,
    x: Tensor,
    conv_weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    stats: Tensor,
    planes: Tensor,
    index: Tensor,
    training: bool,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return launchers(__package__, backend).backward(
        grad_out, x, conv_weight, bn_weight, bn_bias, stats, planes, index, training, eps
    )


def plane_elements(x: Tensor) -> int:
    """Positions of the three pooled planes of the whole batch."""
    n, c, h, w = x.shape
    return n * (c * w + h * c + h * w)


def index_dtype(x: Tensor) -> torch.dtype:
    """int16 holds the argmax along every axis of up to 32767, int32 beyond."""
    _, c, h, w = x.shape
    return torch.int16 if c <= 32767 and h <= 32767 and w <= 32767 else torch.int32


def _fake(
    x: Tensor,
    conv_weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    eps: float,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    acc = accumulator(x.dtype)
    stats = x.new_empty((3, conv_weight.shape[0]), dtype=acc)
    positions = plane_elements(x) if keep else 0
    planes = x.new_empty((2 * positions,), dtype=acc)
    return like_input(x), stats, planes, x.new_empty((positions,), dtype=index_dtype(x))


def _fake_backward(
    grad_out: Tensor,
    x: Tensor,
    conv_weight: Tensor,
    bn_weight: Tensor,
    bn_bias: Tensor,
    stats: Tensor,
    planes: Tensor,
    index: Tensor,
    training: bool,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    vector = stats.new_empty(bn_weight.shape)
    return like_input(x), stats.new_empty(conv_weight.shape), vector, vector.clone()


class _Triplet(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *args):  # noqa: ANN001
        with torch._C._AutoDispatchBelowAutograd():
            out, stats, planes, index = _triplet(*args)
        x, conv_weight, bn_weight, bn_bias, running_mean, running_var = args[:6]
        ctx.training, ctx.eps, ctx.backend = args[6], args[7], args[9]
        # In training the running statistics take no part in the output and change afterwards.
        running = (None, None) if ctx.training else (running_mean, running_var)
        ctx.save_for_backward(x, conv_weight, bn_weight, bn_bias, *running, stats, planes, index)
        ctx.mark_non_differentiable(stats, planes, index)
        ctx.set_materialize_grads(False)
        return out, stats, planes, index

    @staticmethod
    def backward(ctx, grad_out, *_):  # noqa: ANN001
        if grad_out is None:
            return (None,) * 10
        saved = ctx.saved_tensors  # checkpointing allows one look
        inputs, running, (stats, planes, index) = saved[:4], saved[4:6], saved[6:]
        if torch.is_grad_enabled():  # someone asked for create_graph
            with without_autocast(grad_out):
                return _twice(grad_out, apart(*inputs), running, ctx.training, ctx.eps)
        grads = _triplet_backward(
            grad_out, *inputs, stats, planes, index, ctx.training, ctx.eps, ctx.backend
        )
        wanted = zip(grads, inputs, ctx.needs_input_grad[:4], strict=True)
        return (*(g.to(t.dtype) if need else None for g, t, need in wanted), *(None,) * 6)


def _twice(
    grad_out: Tensor,
    inputs: list[Tensor],
    running: tuple[Tensor | None, Tensor | None],
    training: bool,
    eps: float,
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again: those of the reference."""
    bn_weight = inputs[2]
    mean = torch.zeros_like(bn_weight) if running[0] is None else running[0]
    var = torch.ones_like(bn_weight) if running[1] is None else running[1]
    x, conv_weight, _, bn_bias = inputs
    parameters = (conv_weight, bn_weight, bn_bias, mean.detach(), var.detach())
    out = triplet_reference(x, *parameters, training=training, momentum=0.0, eps=eps)
    asked = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(out, asked, grad_out, create_graph=True))
    return (*(next(found) if t.requires_grad else None for t in inputs), *(None,) * 6)


def _autograd(*args) -> tuple[Tensor, ...]:
    if torch.is_grad_enabled() and any(t.requires_grad for t in args[:4]):
        return _Triplet.apply(*args[:8], True, args[9])  # pyright: ignore[reportReturnType]
    with torch._C._AutoDispatchBelowAutograd():
        return _triplet(*args)


for _key in ("CPU", "CUDA"):
    lib.impl("triplet", _forward, _key)
    lib.impl("triplet_backward", _backward, _key)
lib.impl("triplet", _autograd, "Autograd")
torch.library.register_fake("medseg::triplet", _fake, lib=lib)
torch.library.register_fake("medseg::triplet_backward", _fake_backward, lib=lib)
