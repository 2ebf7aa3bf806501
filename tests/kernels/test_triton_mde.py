"""The Triton kernels of the MDE filter against the float64 reference; see test_triton.py."""

# pyright: reportOptionalMemberAccess=false
import importlib

import pytest
import torch

from tests.kernels.mde_cases import (
    KINDS,
    THREE,
    check_exact,
    check_example,
    concat_pair,
    mde_gains,
    mde_pair,
)
from tests.kernels.test_triton import BRAIN, FORMATS, HALF, SINGLE, SPECIAL, far_apart
from tests.kernels.truth import check, layouts

ZERO = (THREE, "binomial", "zero")


def check_mde(x, scales=THREE, bank="binomial", pad="zero", shared=False):
    gains = mde_gains(x.shape[1], scales, shared).to(x.device)
    check(*mde_pair("triton", scales, bank, pad), x, [gains])


@pytest.fixture
def small_tiles(monkeypatch):
    """Cuts a small map as a GPU's are cut: into many tiles, along and across."""
    kernel = importlib.import_module("medseg.kernels.mde.kernel")
    monkeypatch.setattr(kernel, "THREADS", 4)
    monkeypatch.setattr(kernel, "SPANS", (4,))
    monkeypatch.setattr(kernel, "VALUES", 8)


@pytest.mark.parametrize("dtype", (SINGLE, HALF, BRAIN), ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_holds_the_rule(kind, dtype, device):
    """Vectors of four and eight values, and single ones."""
    shape = (2, 3, 9, 7) if dtype is HALF else (1, 4, 5, 16)
    for x in layouts(shape, dtype, device):
        check_mde(x, *kind)


@pytest.mark.parametrize(
    "shape", ((1, 3, 2, 2), (2, 4, 9, 1), (1, 5, 1, 8), (2, 12, 1, 1), (1, 1, 3, 4)), ids=str
)
def test_narrow_maps(shape, device):
    for x in layouts(shape, SINGLE, device):
        check_mde(x)


def test_smallest_map_that_reflects(device):
    for x in layouts((2, 4, 4, 4), SINGLE, device):
        check_mde(x, THREE, "binomial", "reflect")


@pytest.mark.parametrize(("shape", "pad"), (((1, 4, 6, 20), "zero"), ((1, 1, 7, 6), "reflect")))
@FORMATS
def test_seams_of_tiles(shape, pad, memory_format, small_tiles, device):
    x = torch.randn(shape).to(device, memory_format=memory_format)
    check_mde(x, THREE, "binomial", pad)


@pytest.mark.parametrize("pad", ("zero", "reflect"))
def test_worked_example(pad, device):
    check_example("triton", pad, device)


@pytest.mark.parametrize("dtype", (SINGLE, HALF, BRAIN), ids=str)
def test_exact_to_the_bit(dtype, device):
    check_exact("triton", dtype, device)


def test_channels_do_not_mix(device):
    x = torch.randn(1, 3, 6, 8, device=device)
    gains, fused = mde_gains(3).to(device), mde_pair("triton", *ZERO)[0]
    factor = torch.tensor([1.0, 1024.0, 0.125], device=device).view(3, 1, 1)
    assert torch.equal(fused(x * factor, gains), fused(x, gains) * factor)


@pytest.mark.parametrize("before", (0, 1, 4))
@FORMATS
def test_concat(before, memory_format, device):
    """Equal to the plain concatenation bit for bit, and so are the gradients."""
    skip = torch.randn(2, 4, 5, 8, device=device).to(BRAIN, memory_format=memory_format)
    up, gains = torch.randn(2, before, 5, 8, device=device).to(BRAIN), mde_gains(4).to(device)
    (fused, _), (alone, _) = concat_pair("triton", *ZERO), mde_pair("triton", *ZERO)
    leaves = [t.requires_grad_() for t in (up, skip, gains)]
    out, want = fused(*leaves), torch.cat([up, alone(skip, gains)], dim=1)
    assert torch.equal(out, want) and out.stride() == torch.empty_like(out).stride()
    grad = torch.randn_like(out)
    for got, wanted in zip(
        torch.autograd.grad(out, leaves, grad), torch.autograd.grad(want, leaves, grad), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@SPECIAL
@FORMATS
@pytest.mark.parametrize("kind", KINDS[:1] + KINDS[4:5], ids=str)
def test_special_values_spread_over_the_window(value, kind, memory_format, device):
    x = torch.randn(1, 4, 9, 12, device=device)
    x[0, 2, 3, 4] = value
    x = x.to(memory_format=memory_format)
    gains = mde_gains(4, kind[0]).to(device)
    got, want = (fn(x, gains) for fn in mde_pair("triton", *kind[:3]))
    assert torch.equal(got.isfinite(), want.isfinite()) and not got.isfinite().all()


def test_empty_batch(device):
    x = torch.randn(0, 4, 6, 5, device=device, requires_grad=True)
    gains = mde_gains(4).to(device).requires_grad_()
    out = mde_pair("triton", *ZERO)[0](x, gains)
    out.sum().backward()
    assert out.shape == x.shape and not gains.grad.any()


def test_images_beyond_32_bit_indices(device):
    check_mde(far_apart((2, 3, 4, 5), device))


@FORMATS
def test_second_run_gives_the_same_bits(memory_format, small_tiles, device):
    x = torch.randn(1, 4, 5, 8).to(device, memory_format=memory_format)
    runs = []
    for _ in range(2):
        leaves = [x.clone().requires_grad_(), mde_gains(4).to(device).requires_grad_()]
        out = mde_pair("triton", *ZERO)[0](*leaves)
        runs.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
