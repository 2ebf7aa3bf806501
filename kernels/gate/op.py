"""Registration, autograd and the public function of the attention gate's middle."""

import torch
from torch import Tensor

from .._arguments import check_map
from .._backend import apart, choose, launchers, like_input, watched_by_forward_ad
from .reference import gate_reference

lib = torch.library.Library("medseg", "FRAGMENT")
TAGS = (torch.Tag.pt2_compliant_tag,)
lib.define(
    "gate(Tensor a, Tensor b, Tensor c, str backend) -> (Tensor total, Tensor product)", tags=TAGS
)
lib.define(
    "gate_backward(Tensor? grad_total, Tensor? grad_product, Tensor a, Tensor b, Tensor c, "
    "str backend) -> (Tensor grad_a, Tensor grad_b, Tensor grad_c)",
    tags=TAGS,
)
_gate = torch.ops.medseg.gate.default
_gate_backward = torch.ops.medseg.gate_backward.default


def attention_gate(
    a: Tensor, b: Tensor, c: Tensor, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Joins three branches of an attention gate: what any of them sees, and what all of them see.

    total = A + B + C,  product = A * B * C,  with A = relu(a), B = relu(b), C = relu(c)

    One read of the three maps; they are all that is kept for backward, which is one pass too.

    Args:
        a, b, c: maps (N, C, H, W) of one shape, dtype and device, before their activation;
            float16, bfloat16, float32 or float64; any strides.
        backend: "cpu", "cuda", "triton" or "reference"; None takes the fastest that can run.

    Returns:
        (total, product), each like ``a``: channels_last if ``a`` is, else contiguous; computed in
        float32 (float64 for float64) and rounded once.

    Raises:
        ValueError: a map is no 4-D float tensor, or shapes, dtypes or devices differ.
        RuntimeError: ``backend`` was named but cannot run here; the message says why.

    Source: Pal and Mj, "Improving multi-scale attention networks", Imaging Science Journal 2023.
    """
    for name, x in (("a", a), ("b", b), ("c", c)):
        check_map(x, name)
        if x.shape != a.shape or x.dtype is not a.dtype or x.device != a.device:
            raise ValueError(
                f"{name} must be {tuple(a.shape)} {a.dtype} on {a.device} like a, "
                f"got {tuple(x.shape)} {x.dtype} on {x.device}"
            )
    name = choose("gate", a, backend)
    if name == "reference" or watched_by_forward_ad():
        return gate_reference(a, b, c)
    return _gate(a, b, c, name)


def _forward(a: Tensor, b: Tensor, c: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return launchers(__package__, backend).forward(a, b, c)


def _backward(
    grad_total: Tensor | None,
    grad_product: Tensor | None,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return launchers(__package__, backend).backward(grad_total, grad_product, a, b, c)


def _fake(a: Tensor, b: Tensor, c: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return like_input(a), like_input(a)


def _fake_backward(
    grad_total: Tensor | None,
    grad_product: Tensor | None,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return like_input(a), like_input(a), like_input(a)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, c, backend):  # noqa: ANN001
        with torch._C._AutoDispatchBelowAutograd():
            total, product = _gate(a, b, c, backend)
        ctx.backend = backend
        ctx.save_for_backward(a, b, c)
        ctx.set_materialize_grads(False)
        return total, product

    @staticmethod
    def backward(ctx, grad_total, grad_product):  # noqa: ANN001
        if grad_total is None and grad_product is None:
            return (None,) * 4
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():  # someone asked for create_graph
            return _twice((grad_total, grad_product), apart(*inputs))
        grads = _gate_backward(grad_total, grad_product, *inputs, ctx.backend)
        wanted = zip(grads, ctx.needs_input_grad[:3], strict=True)
        return (*(g if need else None for g, need in wanted), None)


def _twice(
    grads: tuple[Tensor | None, Tensor | None], inputs: list[Tensor]
) -> tuple[Tensor | None, ...]:
    """Gradients that can be differentiated again: those of the reference."""
    outs = gate_reference(*inputs)
    pairs = [(out, grad) for out, grad in zip(outs, grads, strict=True) if grad is not None]
    asked = [t for t in inputs if t.requires_grad]
    found = iter(
        torch.autograd.grad([p[0] for p in pairs], asked, [p[1] for p in pairs], create_graph=True)
    )
    return (*(next(found) if t.requires_grad else None for t in inputs), None)


def _autograd(a: Tensor, b: Tensor, c: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad or c.requires_grad):
        return _Gate.apply(a, b, c, backend)  # pyright: ignore[reportReturnType]
    with torch._C._AutoDispatchBelowAutograd():
        return _gate(a, b, c, backend)


for _key in ("CPU", "CUDA"):
    lib.impl("gate", _forward, _key)
    lib.impl("gate_backward", _backward, _key)
lib.impl("gate", _autograd, "Autograd")
torch.library.register_fake("medseg::gate", _fake, lib=lib)
torch.library.register_fake("medseg::gate_backward", _fake_backward, lib=lib)
