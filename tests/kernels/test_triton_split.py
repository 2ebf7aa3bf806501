"""The Triton kernels of split attention against the float64 reference; see test_triton.py."""

# pyright: reportOptionalMemberAccess=false
import importlib

import pytest
import torch

from tests.kernels.split_cases import split_pair, split_params
from tests.kernels.test_triton import BRAIN, FORMATS, HALF, SINGLE, SPECIAL, far_apart
from tests.kernels.truth import check, error, layouts

# radix, cardinality, hidden units, biases
KINDS = ((2, 1, 6, True), (1, 1, 4, True), (3, 2, 4, False), (4, 1, 5, True))


def check_split(x, radix=2, cardinality=1, inner=6, training=False, bias=True):
    n, width, h, w = x.shape
    params = split_params(width // radix, inner, radix, cardinality, bias)
    fused, reference = split_pair(radix, cardinality, training, "triton")
    shape = (n, width // radix, h, w)
    check(fused, reference, x, [t.to(x.device) for t in params], shape=shape)


@pytest.mark.parametrize("dtype", (SINGLE, HALF, BRAIN), ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_holds_the_rule(kind, dtype, device):
    radix, cardinality, inner, bias = kind
    training = dtype is not HALF
    for x in layouts((4, radix * cardinality * 3, 7, 9), dtype, device):
        check_split(x, radix, cardinality, inner, training, bias)


@pytest.mark.parametrize(
    "shape", ((1, 6, 2, 2), (3, 16, 33, 1), (1, 10, 1, 9), (2, 2, 1, 1)), ids=str
)
def test_narrow_maps(shape, device):
    for x in layouts(shape, SINGLE, device):
        check_split(x)


@FORMATS
def test_shares_of_large_planes_are_added(memory_format, device):
    x = torch.randn(3, 4, 70, 66).to(device, memory_format=memory_format)
    check_split(x, training=True)


def test_more_images_channels_and_hidden_units_than_a_tile_holds(device, monkeypatch):
    kernel = importlib.import_module("medseg.kernels.split.kernel")
    monkeypatch.setattr(kernel, "VECTOR_TILE", 64)
    check_split(torch.randn(33, 2 * 5, 1, 1).to(device), inner=3, training=True)
    check_split(torch.randn(3, 8, 1, 2).to(device), inner=66, training=True)


@pytest.mark.filterwarnings("ignore:.*encountered in|All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("dtype", (SINGLE, BRAIN), ids=str)
@FORMATS
def test_batch_norm_and_relu_in_front_are_folded_in(memory_format, dtype, device):
    """Edges of blocks too: what lies outside must not count as relu(shift)."""
    x = torch.randn(2, 10, 7, 11).to(device, dtype, memory_format=memory_format)
    scale, shift = torch.linspace(-1, 1, 10).to(device), torch.linspace(1, -0.5, 10).to(device)
    params = [t.to(device) for t in split_params(5, 6, 2)]
    fused, reference = split_pair(2, 1, False, "triton")
    with torch.no_grad():
        got = fused(x, *params, scale=scale, shift=shift)
        plain = reference(x, *params, scale=scale, shift=shift)
        wide = [t.double().cpu() for t in (x, *params)]
        truth = reference(*wide, scale=scale.double().cpu(), shift=shift.double().cpu())
    assert got.dtype is dtype and got.is_contiguous(memory_format=memory_format)
    assert error(got, truth) <= 2 * error(plain, truth) + 1e-6
    x[0, 1, 2, 3] = torch.nan  # which the ReLU must let through
    with torch.no_grad():
        got, want = (fn(x, *params, scale=scale, shift=shift) for fn in (fused, reference))
    assert got[0].isnan().all() and torch.equal(got.isnan(), want.isnan())


@pytest.mark.parametrize("dtype", (HALF, BRAIN), ids=str)
def test_half_parameters(dtype, device):
    x = torch.randn(3, 8, 5, 6).to(device, dtype)
    params = [t.to(device, dtype).requires_grad_() for t in split_params(4, 6, 2)]
    fused, reference = split_pair(2, 1, False, "triton")
    out = fused(x, *params)
    wide = [t.detach().double() for t in (x, *params)]
    torch.testing.assert_close(out.double(), reference(*wide), rtol=0.02, atol=0.02)
    out.sum().backward()
    assert all(t.grad.dtype is dtype for t in params)


@pytest.mark.filterwarnings("ignore:.*encountered in|All-NaN slice:RuntimeWarning")
@SPECIAL
@FORMATS
def test_special_values_spread_as_in_the_reference(value, memory_format, device):
    x = torch.randn(3, 8, 5, 9, generator=torch.Generator().manual_seed(0))
    x[0, 2, 3, 4] = value
    x = x.to(device, memory_format=memory_format)
    params = [t.to(device) for t in split_params(4, 6, 2)]
    for training in (False, True):
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        pair = split_pair(2, 1, training, "triton")
        got, want = (fn(leaf, *params) for fn, leaf in zip(pair, leaves, strict=True))
        assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())
        got.sum().backward()
        want.sum().backward()
        assert torch.equal(leaves[0].grad.isnan(), leaves[1].grad.isnan())
        assert want.isnan().any() and want.isnan().all() == training


@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
def test_empty_batch(training, device):
    x = torch.randn(0, 8, 6, 5, device=device, requires_grad=True)
    params = [t.to(device).requires_grad_() for t in split_params(4, 6, 2)]
    out = split_pair(2, 1, training, "triton")[0](x, *params)
    out.sum().backward()
    assert out.shape == (0, 4, 6, 5) and not any(t.grad.any() for t in params)


def test_images_beyond_32_bit_indices(device):
    check_split(far_apart((2, 6, 4, 5), device))


@FORMATS
def test_second_run_gives_the_same_bits(memory_format, device):
    x = torch.randn(3, 4, 34, 40).to(device, memory_format=memory_format)
    params = [t.to(device) for t in split_params(2, 6, 2)]
    fused, runs = split_pair(2, 1, True, "triton")[0], []
    for _ in range(2):
        leaves = [t.detach().clone().requires_grad_() for t in (x, *params)]
        out = fused(*leaves)
        runs.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_gradients_of_another_layout_and_broadcast_ones(device):
    """What arrives after a cat, a sum or a layer in the other layout."""
    params = [t.to(device) for t in split_params(4, 6, 2)]
    fused, reference = split_pair(2, 1, False, "triton")
    x = torch.randn(2, 8, 6, 10, device=device)
    turned = torch.randn(2, 4, 6, 10, device=device).to(memory_format=torch.channels_last)
    wide = torch.randn(2, 9, 6, 10, device=device)[:, 3:7]
    for grad in (turned, wide, torch.ones((), device=device).expand(2, 4, 6, 10)):
        leaf, twin = x.clone().requires_grad_(), x.double().requires_grad_()
        fused(leaf, *params).backward(grad)
        reference(twin, *(t.double() for t in params)).backward(grad.double())
        torch.testing.assert_close(leaf.grad.double(), twin.grad, rtol=1e-4, atol=1e-5)


def test_parameters_alone_may_want_gradients(device):
    x = torch.randn(2, 8, 6, 5, device=device)
    params = [t.to(device).requires_grad_() for t in split_params(4, 6, 2)]
    fused, reference = split_pair(2, 1, False, "triton")
    got = torch.autograd.grad(fused(x, *params).square().sum(), params)
    want = torch.autograd.grad(reference(x, *params).square().sum(), params)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
