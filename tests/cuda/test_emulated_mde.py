"""The CUDA kernels of the MDE filter, compiled for the CPU; see test_emulated.py."""

import pytest
import torch

from tests.cuda.test_emulated import same_in_any_order
from tests.kernels.mde_cases import (
    KINDS,
    THREE,
    check_exact,
    check_example,
    concat_pair,
    mde_gains,
    mde_pair,
)
from tests.kernels.truth import DTYPES, SHAPES, check, layouts

ZERO, MIRROR = (THREE, "binomial", "zero"), (THREE, "binomial", "reflect")
LAYOUTS = pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
# Beside the common shapes: several blocks along a row and down the rows, and vectors of each width.
MDE_SHAPES = (*SHAPES[:-1], (1, 2, 70, 24), (1, 3, 20, 150), (1, 1, 5, 1056), (1, 132, 4, 3))


def check_mde(x, scales=THREE, bank="binomial", pad="zero", shared=False):
    gains = mde_gains(x.shape[1], scales, shared)
    check(*mde_pair("cuda", scales, bank, pad), x, [gains])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", MDE_SHAPES)
def test_mde(emulator, shape, dtype):
    for x in layouts(shape, dtype):
        check_mde(x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_mde_kinds(emulator, kind, dtype):
    for shape in ((2, 4, 7, 16), (1, 3, 34, 5), (1, 4, 4, 4)):
        for x in layouts(shape, dtype):
            check_mde(x, *kind)


@pytest.mark.parametrize("pad", ("zero", "reflect"))
def test_worked_example(emulator, pad):
    check_example("cuda", pad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_to_the_bit(emulator, dtype):
    check_exact("cuda", dtype)


@pytest.mark.parametrize("before", (1, 3, 8))
@pytest.mark.parametrize("dtype", DTYPES)
@LAYOUTS
def test_concat(emulator, layout, dtype, before):
    """Equal to the plain concatenation bit for bit, at every alignment, and so are gradients."""
    skip = torch.randn(2, 4, 5, 8).to(dtype, memory_format=layout)
    up, gains = torch.randn(2, before, 5, 8).to(dtype), mde_gains(4)
    fused, alone = concat_pair("cuda", *ZERO)[0], mde_pair("cuda", *ZERO)[0]
    leaves = [t.requires_grad_() for t in (up, skip, gains)]
    out, want = fused(*leaves), torch.cat([up, alone(skip, gains)], dim=1)
    assert torch.equal(out, want) and out.is_contiguous(memory_format=layout)
    grad = torch.randn_like(out)
    for got, wanted in zip(
        torch.autograd.grad(out, leaves, grad), torch.autograd.grad(want, leaves, grad), strict=True
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
@pytest.mark.parametrize("kind", KINDS)
def test_special_values_spread_over_the_window(emulator, kind, value):
    for x in layouts((1, 4, 9, 16), torch.float32):
        x[0, 2, 3, 4] = value
        gains = mde_gains(4, kind[0], kind[3])
        got, want = (fn(x, gains) for fn in mde_pair("cuda", *kind[:3]))
        assert torch.equal(got.isfinite(), want.isfinite()) and not got.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", (ZERO, MIRROR))
def test_same_bits_again_and_in_any_order_of_threads(emulator, kind, dtype):
    gains = mde_gains(8).requires_grad_()

    def run(x):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        out = mde_pair("cuda", *kind)[0](leaf, gains)
        return [out, *torch.autograd.grad(out, [leaf, gains], torch.ones_like(out) / 3)]

    for x in layouts((2, 8, 40, 24), dtype):
        same_in_any_order(emulator, lambda x=x: run(x))


@LAYOUTS
def test_launches(emulator, layout):
    x = torch.randn(2, 8, 12, 12).contiguous(memory_format=layout).requires_grad_()
    for learned, backward in ((False, 1), (True, 2)):
        before = emulator.launches()
        out = mde_pair("cuda", *ZERO)[0](x, mde_gains(8).requires_grad_(learned))
        between = emulator.launches()
        out.sum().backward()
        assert (between - before, emulator.launches() - between) == (1, backward)


def test_empty_maps_need_no_launch(emulator):
    before = emulator.launches()
    x = torch.empty((0, 4, 6, 5), requires_grad=True)
    gains = mde_gains(4).requires_grad_()
    out = mde_pair("cuda", *ZERO)[0](x, gains)
    grads = torch.autograd.grad(out.sum(), [x, gains])
    assert out.shape == x.shape and not grads[1].any() and emulator.launches() == before


def test_behind_the_python_door(emulator):
    """The C++ launchers answer for an empty batch and for no bank themselves."""
    module, grads = emulator.module, torch.full((2, 2), torch.nan)
    none = (0, (0, 0, 0, 0))
    bank = module.MdeBank(1, (1, 0, 0), (1.0, 0, 0), (1.0,) * 12, False)
    shape = module.MdeShape((0, 2, 4, 4), False, False, 1, bank)
    module.mde_forward(0, 0, 0, shape, none, none, 0, 2)
    module.mde_backward(0, 0, 0, shape, none, none, none, 0, 2, grads.data_ptr(), 0)
    assert not grads.any()
    bank = module.MdeBank(0, (0, 0, 0), (0.0,) * 3, (0.0,) * 12, False)
    shape = module.MdeShape((1, 2, 4, 4), False, False, 1, bank)
    with pytest.raises(RuntimeError, match="CUDA launch failed: invalid argument"):
        module.mde_forward(0, 0, 0, shape, none, none, 0, 2)
