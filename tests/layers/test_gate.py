"""DRRMSAN's gates and its minimum pooling as modules; the numbers are in test_golden_ops.py."""

# pyright: reportOptionalMemberAccess=false
import pytest
import torch
from torch.nn import functional as F

from medseg.kernels import use_backend
from medseg.layers import AttentionGate, MinPool
from medseg.layers.gate import _pooled_relu

VARIANTS = ("msan1", "msan2", "msan3")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", ((12, 12), (16, 22)), ids=str)
def test_shape_layout_and_gradients(variant, size):
    torch.manual_seed(0)
    gate = AttentionGate(6, variant)
    d, k = (torch.randn(2, 6, *size, requires_grad=True) for _ in "dk")
    out = gate(d, k)
    assert out.shape == d.shape
    out.square().sum().backward()
    assert all(p.grad is not None for p in gate.parameters())
    last = [t.detach().contiguous(memory_format=torch.channels_last) for t in (d, k)]
    torch.testing.assert_close(gate(*last), out, rtol=1e-4, atol=1e-5)


def test_widths_and_counts():
    """Section 9 of the description: 21 convolutions in msan1, 4 and 8 in the others."""
    convs = {
        v: sum(m.weight.dim() == 4 for m in convolutions(AttentionGate(8, v))) for v in VARIANTS
    }
    assert convs == {"msan1": 21, "msan2": 4, "msan3": 8}
    assert all(not m.bias.any() for m in convolutions(AttentionGate(8)))


def convolutions(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]


@pytest.mark.parametrize("size", ((12, 12), (13, 31), (40, 26)), ids=str)
def test_pooling_in_steps_is_the_wide_pooling(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    want = F.max_pool2d(x.relu(), 12, 2)
    got = _pooled_relu(x)
    assert torch.equal(got, want)
    cotangent = torch.randn_like(want)
    grads = [torch.autograd.grad(out, x, cotangent)[0] for out in (got, want)]
    torch.testing.assert_close(*grads)
    with torch.no_grad():
        assert torch.equal(_pooled_relu(x), want)
        last = x.contiguous(memory_format=torch.channels_last)
        pooled = _pooled_relu(last)
    assert torch.equal(pooled, want)
    assert pooled.is_contiguous(memory_format=torch.channels_last)


def test_pooling_without_gradients_keeps_nan():
    x = torch.zeros(1, 1, 14, 14)
    x[0, 0, 13, 0] = torch.nan
    assert _pooled_relu(x).isnan().tolist() == [[[[False, False], [True, False]]]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_keeps_the_gate_in_float32(variant):
    """Products of many large maps leave float16; the gate must come out 1, not NaN."""
    torch.manual_seed(0)
    gate = AttentionGate(4, variant)
    d, k = (100 * torch.rand(1, 4, 16, 16) for _ in "dk")
    with torch.autocast("cpu", torch.bfloat16):
        out = gate(d, k)
    assert out.isfinite().all()
    assert all(p.dtype is torch.float32 for p in gate.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_compile(variant):
    gate = AttentionGate(4, variant)
    d, k = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16)
    compiled = torch.compile(gate, fullgraph=True)
    torch.testing.assert_close(compiled(d, k), gate(d, k), rtol=1e-4, atol=1e-5)


def test_backends_agree():
    torch.manual_seed(0)
    gate = AttentionGate(4).double()
    d, k = (torch.randn(1, 4, 16, 16, dtype=torch.float64) for _ in "dk")
    with use_backend("reference"):
        want = gate(d, k)
    torch.testing.assert_close(gate(d, k), want)


@pytest.mark.parametrize(
    ("arguments", "shape", "words"),
    [
        ((0,), None, "channels must be at least 1, got 0"),
        ((4, "msan4"), None, "variant must be one of msan1, msan2, msan3, got 'msan4'"),
        ((4,), (1, 4, 10, 16), "msan1 needs H and W even and at least 12, got"),
        ((4, "msan3"), (1, 4, 8, 9), "msan3 needs H and W even and at least 2, got"),
    ],
)
def test_refuses(arguments, shape, words):
    with pytest.raises(ValueError, match=words):
        gate = AttentionGate(*arguments)
        gate(torch.zeros(shape), torch.zeros(shape))


def test_min_pool_skips_zeros():
    x = torch.tensor([[0.0, 3.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]]).view(1, 1, 2, 4)
    assert MinPool()(x).flatten().tolist() == [2.0, 0.0]
    assert MinPool()(-x).flatten().tolist() == [-3.0, 0.0]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("d", "k", "words"),
    [
        ((2, 8, 12, 12), (2, 8, 14, 14), r"k must be \(2, 8, 12, 12\) like d, got \(2, 8, 14"),
        ((2, 8, 12, 12), (1, 8, 12, 12), r"k must be \(2, 8, 12, 12\) like d, got \(1, 8, 12"),
        ((2, 1, 12, 12), (2, 1, 12, 12), r"d must be \(N, 8, H, W\), got \(2, 1, 12, 12\)"),
        ((8, 12, 12), (8, 12, 12), r"d must be \(N, 8, H, W\), got \(8, 12, 12\)"),
    ],
)
def test_refuses_maps_that_do_not_match(variant, d, k, words):
    with pytest.raises(ValueError, match=words):
        AttentionGate(8, variant)(torch.randn(d), torch.randn(k))


def test_min_pool_of_infinities():
    inf = torch.inf
    x = torch.tensor([[inf, 0.0, inf, inf, -inf, 0.0], [0.0, inf, inf, inf, 0.0, inf]])
    assert MinPool()(x.view(1, 1, 2, 6)).flatten().tolist() == [inf, inf, -inf]


def test_min_pool_gradient_goes_to_the_entry_taken():
    x = torch.tensor([[5.0, 5.0, 0.0, 0.0], [7.0, 0.0, 0.0, 0.0]]).view(1, 1, 2, 4)
    x.requires_grad_()
    MinPool()(x).sum().backward()
    assert x.grad is not None and x.grad.flatten().tolist() == [1.0] + [0.0] * 7
