"""Registration, autograd and the public function of split attention."""

from typing import Any

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
from .reference import activated, split_reference

LARGEST_RADIX = 4  # what the kernels are unrolled for; the paper uses 1, 2 and 4
OPTIONAL = (1, 7, 8, 9)  # fc1_bias, fc2_bias, scale and shift among the parameters
LEARNED = (0, 3, 4, 5, 6, 9, 10)  # places of x and the trained parameters among the tensors

lib = torch.library.Library("medseg", "FRAGMENT")
TAGS = (torch.Tag.pt2_compliant_tag,)
lib.define(
    "split(Tensor x, Tensor? scale, Tensor? shift, Tensor fc1_weight, Tensor? fc1_bias, "
    "Tensor bn_weight, Tensor bn_bias, Tensor running_mean, Tensor running_var, "
    "Tensor fc2_weight, Tensor? fc2_bias, int radix, int cardinality, bool training, float eps, "
    "str backend) -> (Tensor out, Tensor stats, Tensor saved)",
    tags=TAGS,
)
lib.define(
    "split_backward(Tensor grad_out, Tensor x, Tensor fc1_weight, Tensor? fc1_bias, "
    "Tensor bn_weight, Tensor bn_bias, Tensor fc2_weight, Tensor? fc2_bias, Tensor stats, "
    "Tensor saved, int radix, int cardinality, bool training, float eps, bool need_input, "
    "str backend) -> (Tensor grad_x, Tensor grad_fc1_weight, Tensor grad_fc1_bias, "
    "Tensor grad_bn_weight, Tensor grad_bn_bias, Tensor grad_fc2_weight, Tensor grad_fc2_bias)",
    tags=TAGS,
)
_split = torch.ops.medseg.split.default
_split_backward = torch.ops.medseg.split_backward.default


def split_attention(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    bn_weight: Tensor,
    bn_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    radix: int = 2,
    cardinality: int = 1,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Adds up R versions of a map, each channel weighted by a softmax over the versions.

    s = mean_hw(sum_r x_r);  a = softmax_r(fc2(relu(bn(fc1(s)))));  out = sum_r a_r * x_r

    With R = 1 the softmax is a sigmoid. Both layers have K groups, as 1x1 convolutions would.

    Args:
        x: R versions of C channels, one after the other, (N, R*C, H, W), the K groups of channels
            in order within each; float16, bfloat16, float32 or float64; any strides.
        fc1_weight: (I, C/K); dtype of ``x`` or float32, on the device of ``x``.
        fc1_bias: (I,) like ``fc1_weight``, or None.
        bn_weight, bn_bias: (I,), like ``fc1_weight``.
        running_mean, running_var: (I,); in training they are updated in place exactly as
            ``nn.BatchNorm2d`` does, from the unbiased variance.
        fc2_weight: (R*C, I/K), its rows in the order group, split, channel; like ``fc1_weight``.
        fc2_bias: (R*C,) like ``fc1_weight``, or None.
        radix: R, 1 to 4.
        cardinality: K.
        training: normalise by the batch instead of the running statistics.
        momentum: weight of the new statistics.
        eps: added to the variance.
        scale, shift: both (R*C,), like ``fc1_weight`` or in float32, or None. Where given,
            relu(x * scale + shift) takes the place of ``x``: a batch norm and ReLU in front, never
            written to memory unless a gradient is wanted.
        backend: "cpu", "cuda", "triton" or "reference"; None takes the fastest that can run.

    Returns:
        Tensor (N, C, H, W), channels_last if ``x`` is, else contiguous. Sums, gates and statistics
        are float32 (float64 for float64).

    Raises:
        ValueError: ``x`` is no 4-D float tensor or has an empty axis beside N, or shapes, dtypes or
            devices of the parameters do not fit, or training has a single image.
        RuntimeError: ``backend`` was named but cannot run here; the message says why.

    Source: Zhang et al., "ResNeSt", arXiv:2004.08955.
    """
    parameters = (
        fc1_weight, fc1_bias, bn_weight, bn_bias, running_mean, running_var, fc2_weight, fc2_bias
    )  # fmt: skip
    _check(x, parameters, (scale, shift), radix, cardinality, training)
    name = choose("split", x, backend)
    if name == "reference" or watched_by_forward_ad():
        return split_reference(
            x, *parameters, radix=radix, cardinality=cardinality, training=training,
            momentum=momentum, eps=eps, scale=scale, shift=shift,
        )  # fmt: skip
    out, stats, _ = _split(x, scale, shift, *parameters, radix, cardinality, training, eps, name)
    if training and x.shape[0]:
        running_mean.lerp_(stats[0].to(running_mean.dtype), momentum)
        running_var.lerp_(stats[1].to(running_var.dtype), momentum)
    return out


def _check(
    x: Tensor,
    parameters: tuple[Tensor | None, ...],
    folded: tuple[Tensor | None, Tensor | None],
    radix: int,
    cardinality: int,
    training: bool,
) -> None:
    check_map(x)
    if not x.numel() and 0 in x.shape[1:]:
        raise ValueError(f"x must have C, H and W of at least 1, got {tuple(x.shape)}")
    if not 1 <= radix <= LARGEST_RADIX:
        raise ValueError(f"radix must be 1 to {LARGEST_RADIX}, got {radix}")
    if cardinality < 1 or x.shape[1] % (radix * cardinality):
        raise ValueError(
            f"x must have radix * cardinality = {radix} * {cardinality} groups of channels, got "
            f"{tuple(x.shape)}"
        )
    if (folded[0] is None) != (folded[1] is None):
        raise ValueError("scale and shift must be given together")
    shapes = _shapes(x, parameters[0], radix, cardinality)
    if not fit(x, (*parameters, *folded), shapes, OPTIONAL):
        _refuse(x, parameters, folded, shapes)
    if training and x.shape[0] == 1:
        # The words of nn.BatchNorm2d, which callers look for.
        raise ValueError(
            f"Expected more than 1 value per channel when training, got x {tuple(x.shape)}: the "
            "batch norm of the gate sees one number an image"
        )


_NAMES = (
    "fc1_weight", "fc1_bias", "bn_weight", "bn_bias", "running_mean", "running_var", "fc2_weight",
    "fc2_bias",
)  # fmt: skip


def _shapes(
    x: Tensor, fc1_weight: Tensor | None, radix: int, cardinality: int
) -> tuple[tuple[int, ...], ...]:
    """What x, radix and cardinality ask of the parameters, of scale and of shift."""
    if fc1_weight is None:
        raise ValueError("fc1_weight must be a tensor, got None")
    width, inner = x.shape[1], fc1_weight.shape[0]
    if inner == 0 or inner % cardinality:
        raise ValueError(
            f"fc1_weight must have rows in {cardinality} groups like cardinality, got "
            f"{tuple(fc1_weight.shape)}"
        )
    middle, all_ = (inner,), (width,)
    first, second = (inner, width // radix // cardinality), (width, inner // cardinality)
    return first, middle, middle, middle, middle, middle, second, all_, all_, all_


def _refuse(
    x: Tensor,
    parameters: tuple[Tensor | None, ...],
    folded: tuple[Tensor | None, Tensor | None],
    shapes: tuple[tuple[int, ...], ...],
) -> None:
    """Says what does not fit; a scale and shift of another dtype may still do."""
    names = (*_NAMES, "scale", "shift")
    for i, tensor in enumerate((*parameters, *folded)):
        name, shape = names[i], shapes[i]
        if tensor is None:
            if i not in OPTIONAL:
                raise ValueError(f"{name} must be a tensor, got None")
        elif tensor.shape != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}")
    check_parameters(x, dict(zip(_NAMES, parameters, strict=True)))
    scale, shift = folded
    if scale is not None:
        check_parameters(x, {"scale": scale, "shift": shift})


def _forward(*args) -> tuple[Tensor, Tensor, Tensor]:
    return launchers(__package__, args[-1]).forward(*args[:-1])


def _backward(*args) -> tuple[Tensor, ...]:
    grad_x, *grads = launchers(__package__, args[-1]).backward(*args[:-1])
    return (args[1].new_empty(0) if grad_x is None else grad_x, *grads)


def _fake(x: Tensor, *args) -> tuple[Tensor, Tensor, Tensor]:
    fc1_weight, radix = args[2], args[10]
    n, width, h, w = x.shape
    stats = x.new_empty((3, fc1_weight.shape[0]), dtype=accumulator(x.dtype))
    out = like_input(x, (n, width // radix, h, w))
    return out, stats, stats.new_empty((n, width // radix + width))


def _fake_backward(grad_out: Tensor, x: Tensor, *args) -> tuple[Tensor, ...]:
    fc1_weight, fc2_weight, stats, need_input = args[0], args[4], args[6], args[12]
    grad_x = like_input(x) if need_input else x.new_empty(0)
    inner, width = fc1_weight.shape[0], fc2_weight.shape[0]
    shapes = (fc1_weight.shape, (inner,), (inner,), (inner,), fc2_weight.shape, (width,))
    return (grad_x, *(stats.new_empty(shape) for shape in shapes))


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *args):  # noqa: ANN001
        with torch._C._AutoDispatchBelowAutograd():
            out, stats, saved = _split(*args)
        ctx.options = args[11:]  # radix, cardinality, training, eps, backend
        # In training the running statistics take no part in the output and change afterwards.
        running = (None, None) if args[13] else args[7:9]
        ctx.save_for_backward(*(args[i] for i in LEARNED), *running, stats, saved)
        ctx.mark_non_differentiable(stats, saved)
        ctx.set_materialize_grads(False)
        return out, stats, saved

    @staticmethod
    def backward(ctx, grad_out, *_):  # noqa: ANN001
        if grad_out is None:
            return (None,) * 16
        tensors = ctx.saved_tensors  # checkpointing allows one look
        inputs, running, (stats, saved) = tensors[:7], tensors[7:9], tensors[9:]
        needed = [ctx.needs_input_grad[i] for i in LEARNED]
        if torch.is_grad_enabled():  # someone asked for create_graph
            with without_autocast(grad_out):
                found = _twice(grad_out, apart(*inputs), running, needed, ctx.options)
        else:
            *options, backend = ctx.options
            found = _split_backward(grad_out, *inputs, stats, saved, *options, needed[0], backend)
        grads: list[Tensor | None] = [None] * 16
        for place, grad, t, need in zip(LEARNED, found, inputs, needed, strict=True):
            grads[place] = grad.to(t.dtype) if need else None  # pyright: ignore
        return tuple(grads)


def _twice(
    grad_out: Tensor,
    inputs: list[Any],
    running: tuple[Tensor | None, Tensor | None],
    needed: list[bool],
    options: tuple,
) -> list[Tensor | None]:
    """Gradients that can be differentiated again: those of the reference."""
    x, fc1_weight, fc1_bias, bn_weight, bn_bias, fc2_weight, fc2_bias = inputs
    radix, cardinality, training, eps, _ = options
    mean = torch.zeros_like(bn_weight) if running[0] is None else running[0]
    var = torch.ones_like(bn_weight) if running[1] is None else running[1]
    out = split_reference(
        x, fc1_weight, fc1_bias, bn_weight, bn_bias, mean.detach(), var.detach(), fc2_weight,
        fc2_bias, radix=radix, cardinality=cardinality, training=training, momentum=0.0, eps=eps,
    )  # fmt: skip
    asked = [t for t, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(out, asked, grad_out, create_graph=True))
    return [next(found) if need else None for need in needed]


def _autograd(*args) -> tuple[Tensor, ...]:
    watched = (t is not None and t.requires_grad for t in args[:11])
    if torch.is_grad_enabled() and any(watched):
        x = activated(*args[:3])
        return _Split.apply(x, None, None, *args[3:])  # pyright: ignore[reportReturnType]
    with torch._C._AutoDispatchBelowAutograd():
        return _split(*args)


for _key in ("CPU", "CUDA"):
    lib.impl("split", _forward, _key)
    lib.impl("split_backward", _backward, _key)
lib.impl("split", _autograd, "Autograd")
torch.library.register_fake("medseg::split", _fake, lib=lib)
torch.library.register_fake("medseg::split_backward", _fake_backward, lib=lib)
