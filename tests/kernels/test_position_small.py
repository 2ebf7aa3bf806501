"""Position attention of few tokens: the plain matrix, by the same rule."""

import pytest
import torch

from medseg.kernels import position_attention, position_reference
from medseg.kernels.position import op
from tests.kernels.truth import error, gradients

SHAPES = ((2, 99, 99, 24, 24), (1, 5, 7, 8, 3), (2, 256, 256, 16, 64), (3, 1, 1, 1, 1))


def tokens(n, length, keys, d, e, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((n, length, d), (n, keys, d), (n, keys, e))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.fixture
def no_op(monkeypatch):
    """Fails where the way of large maps is taken."""

    def refuse(*_):
        raise AssertionError("a small matrix went through the op")

    monkeypatch.setattr(op, "_position", refuse)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("scale", (None, 0.3))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_holds_the_rule(no_op, shape, scale, dtype):
    inputs = tokens(*shape, dtype=dtype)
    cotangent = torch.randn(shape[0], shape[1], shape[4], dtype=torch.float64)

    def plain(q, k, v):
        return position_reference(q, k, v, scale=scale)

    def fast(q, k, v):
        return position_attention(q, k, v, scale=scale, backend="cpu")

    truth = gradients(plain, [t.double() for t in inputs], cotangent)
    reference, found = gradients(plain, inputs, cotangent), gradients(fast, inputs, cotangent)
    floor = 1e-6 if dtype is torch.float32 else 1e-14
    for i, (t, p, g) in enumerate(zip(truth, reference, found, strict=True)):
        assert error(g, t) <= (2 if i == 0 else 3) * error(p, t) + floor


def test_second_derivatives(no_op):
    inputs = [t.requires_grad_() for t in tokens(1, 4, 5, 3, 2, torch.float64)]
    assert torch.autograd.gradgradcheck(position_attention, inputs)


def test_autocast_leaves_it_in_float32():
    """There the op is taken: autograd would round what the formula keeps."""
    inputs = tokens(2, 30, 30, 8, 8)
    want = position_attention(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = position_attention(*inputs)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize(
    ("shape", "dtype", "dropout"),
    [
        ((1, 513, 513, 8, 8), torch.float32, 0.0),
        ((1, 30, 30, 8, 8), torch.bfloat16, 0.0),
        ((2, 257, 257, 8, 8), torch.float32, 0.5),
    ],
)
def test_large_and_half_ones_go_through_the_op(no_op, shape, dtype, dropout):
    with pytest.raises(AssertionError, match="went through the op"):
        position_attention(*tokens(*shape, dtype=dtype), dropout=dropout)


def test_compiled_sizes_stay_free():
    """A guard on the number of scores would compile again for every size."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(position_attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (20, 40, 600):
        inputs = tokens(1, length, length, 8, 8)
        torch.testing.assert_close(compiled(*inputs), position_attention(*inputs))
    counters = torch._dynamo.utils.counters["stats"]
    assert counters["unique_graphs"] == 1
