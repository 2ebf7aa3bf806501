"""What the tests of the attention gate's middle share on every backend."""

import pytest
import torch

from medseg.kernels import attention_gate, gate_reference
from tests.kernels.truth import FLOOR, FLOOR_FLOAT32, error, layouts

VALUES = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0)
# Beside each value, which outputs ask for a gradient.
SPECIAL = pytest.mark.parametrize(
    ("value", "outputs"), [(v, o) for v in VALUES for o in ((0,), (1,), (0, 1))], ids=str
)


def check(maps, backend="cpu"):
    """The rule of tests/kernels/truth.py for two outputs, and the layout of the first map."""

    def run(fn, tensors, **extra):
        leaves = [t.detach().requires_grad_() for t in tensors]
        outs = fn(*leaves, **extra)
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(o.shape, generator=generator).to(maps[0].dtype) for o in outs]
        cotangents = [d.to(o) for d, o in zip(drawn, outs, strict=True)]
        return [*outs, *torch.autograd.grad(outs, leaves, cotangents)]

    truth = run(gate_reference, [t.double() for t in maps])
    plain = run(gate_reference, maps)
    found = run(attention_gate, maps, backend=backend)
    floor = FLOOR.get(maps[0].dtype, FLOOR_FLOAT32)
    for i, (t, p, g) in enumerate(zip(truth, plain, found, strict=True)):
        assert error(g, t) <= (2 if i < 2 else 3) * error(p, t) + floor, i
        assert g.dtype is p.dtype
    last = not maps[0].is_contiguous() and maps[0].is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    assert all(o.is_contiguous(memory_format=layout) for o in found)


def triples(shape, dtype):
    """Three maps of one layout, of three layouts, and of none."""
    plain, last, cut, *_ = layouts(shape, dtype)
    yield plain, -plain.flip(0), plain.flip(1)
    yield last, last.flip(0), -last
    yield plain, last.roll(1), cut.roll(2)
    yield cut, cut + 1, cut - 1


def check_special(value, outputs, backend):
    """One such value in each map, with gradients of some outputs only: all as in the reference."""
    maps = [torch.rand(1, 2, 5, 7) + 0.1 for _ in "abc"]
    for i, t in enumerate(maps):
        t[0, 1, 2, 3 + i] = value
    results = []
    for run in (gate_reference, lambda *t: attention_gate(*t, backend=backend)):
        leaves = [t.clone().requires_grad_() for t in maps]
        outs = run(*leaves)
        used = [outs[i] for i in outputs]
        grads = torch.autograd.grad(used, leaves, [torch.ones_like(o) for o in used])
        results.append((*outs, *grads))
    torch.testing.assert_close(results[1], results[0], equal_nan=True)
