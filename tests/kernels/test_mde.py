"""The MDE filter: the acceptance tests of its definition, and the rule, on the CPU kernels."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.kernels import mde_concat, mde_filter, mde_reference
from medseg.kernels.mde.bank import BANKS, quadrants, row
from medseg.layers.mde import PRESETS
from tests.kernels.truth import DTYPES, SHAPES, check, layouts, on_threads

MDE = torch.tensor([[0.5, 2.0, 1.5, 1.0]])
CASES = (  # scales, bank, pad
    ((3, 5, 7), "binomial", "zero"),
    ((3, 5, 7), "gauss(0.8,1.1,1.4)", "reflect"),
    ((3, 7), "opencv", "zero"),
    ((3, 5), "box", "reflect"),
    ((5,), "gauss", "zero"),
    ((3,), "cross", "reflect"),
)
cpu_only = pytest.mark.usefixtures("needs_cpu")


def some_gains(channels, bands, dtype=torch.float32):
    generator = torch.Generator().manual_seed(channels)
    return torch.randn(channels, bands, generator=generator, dtype=torch.float64).to(dtype)


def fits(shape, scales, pad):
    return pad == "zero" or min(shape[2:]) > max(scales) // 2


def pair(scales, bank, pad):
    """(fused, reference) with these masks, as functions of x and the gains."""
    return (
        lambda x, g: mde_filter(x, g, scales, bank, pad, backend="cpu"),
        lambda x, g: mde_reference(x, g, scales, bank, pad),
    )


def example():
    """The map of section 9 of the definition."""
    h, w = torch.arange(8)[:, None], torch.arange(8)[None]
    return (((3 * h + 5 * w + h * w) % 7) - 3)[None, None].float()


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("dtype", (torch.float64, *DTYPES), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cpu_holds_the_rule(shape, dtype):
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    for masks in CASES:
        if not fits(shape, masks[0], masks[2]):
            continue
        for x in layouts(shape, dtype):
            for channels in {1, shape[1]}:
                check(*pair(*masks), x, [some_gains(channels, len(masks[0]) + 1, wide)])


@cpu_only
@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(0, 3),
    c=st.integers(1, 40),
    h=st.integers(1, 20),
    w=st.integers(1, 40),
    masks=st.sampled_from(CASES),
    last=st.booleans(),
    threads=st.sampled_from((1, 1, 1, 2, 3, 8)),
)
def test_any_shape_and_number_of_threads(n, c, h, w, masks, last, threads):
    if not fits((n, c, h, w), masks[0], masks[2]):
        h, w = h + 3, w + 3
    x = torch.randn(n, c, h, w, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    with on_threads(threads):
        check(*pair(*masks), x, [some_gains(c, len(masks[0]) + 1, torch.float64)])


@pytest.mark.usefixtures("every_isa")
def test_float32_is_within_the_bound_of_the_branches():
    """2^-18 sum_j |t_j| (G_j * |x|), whatever the order of evaluation."""
    x, gains = torch.randn(2, 20, 33, 40), some_gains(20, 4)
    taps = torch.cat([gains[:, :1], gains.diff(dim=1)], dim=1).double()
    for pad in ("zero", "reflect"):
        for layout in (torch.contiguous_format, torch.channels_last):
            got = mde_filter(x.contiguous(memory_format=layout), gains, pad=pad, backend="cpu")
            truth = mde_reference(x.double(), gains.double(), pad=pad)
            bound = mde_reference(x.abs().double(), taps.abs().cumsum(1), pad=pad) * 2**-18
            assert ((got - truth).abs() <= bound).all()


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_the_outline_is_exact_on_small_integers(dtype):
    gains, scales, bank = PRESETS["sharp8"]
    x = torch.randint(-15, 16, (2, 19, 13, 21)).to(dtype)
    truth = 9 * x.double() - torch.nn.functional.conv2d(
        x.double(), torch.ones(19, 1, 3, 3, dtype=torch.float64), padding=1, groups=19
    )
    for layout in (torch.contiguous_format, torch.channels_last):
        y = x.contiguous(memory_format=layout)
        got = mde_filter(y, torch.tensor([gains]).float(), scales, bank, backend="cpu")
        assert torch.equal(got.double(), truth.to(dtype).double())


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("constant", (1.0, -2.5))
def test_equal_gains_scale_the_map_exactly(constant):
    for masks in CASES:
        for x in layouts((2, 18, 9, 21), torch.float32):
            gains = torch.full((1, len(masks[0]) + 1), constant)
            assert torch.equal(mde_filter(x, gains, *masks, backend="cpu"), constant * x)
            assert torch.equal(mde_filter(x, gains, *masks, backend="reference"), constant * x)


@cpu_only
@pytest.mark.parametrize("pad", ("zero", "reflect"))
def test_backward_is_the_adjoint(pad):
    sizes = (4, 5, 9) if pad == "reflect" else (1, 2, 3, 9)
    for h in sizes:
        for w in sizes:
            x = torch.randn(2, 3, h, w, dtype=torch.float64, requires_grad=True)
            gains, dy = some_gains(3, 4, torch.float64), torch.randn(2, 3, h, w).double()
            y = mde_filter(x, gains, pad=pad, backend="cpu")
            (dx,) = torch.autograd.grad(y, x, dy)
            torch.testing.assert_close((y * dy).sum(), (x * dx).sum())


@cpu_only
def test_gains_gradient_is_that_of_one_step():
    """The filter is linear in the gains: one step of any size is exact."""
    for channels in (1, 5):
        x = torch.randn(2, 5, 8, 9, dtype=torch.float64)
        gains = some_gains(channels, 4, torch.float64).requires_grad_()
        dy = torch.randn_like(x)
        (grad,) = torch.autograd.grad(mde_filter(x, gains, backend="cpu"), gains, dy)
        for i in range(channels):
            for j in range(4):
                moved = gains.detach().clone()
                moved[i, j] += 1
                change = mde_filter(x, moved, backend="cpu") - mde_filter(x, gains, backend="cpu")
                torch.testing.assert_close(grad[i, j], (change * dy).sum())


@cpu_only
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=str)
def test_bits_are_the_same_again_and_on_any_number_of_threads(layout):
    x = torch.randn(3, 20, 40, 33).contiguous(memory_format=layout).requires_grad_()
    gains, dy = some_gains(20, 4).requires_grad_(), torch.randn(x.shape)
    found = []
    for threads in (1, 1, 2, 3):
        with on_threads(threads):
            y = mde_filter(x, gains, backend="cpu")
            found.append([y, *torch.autograd.grad(y, (x, gains), dy)])
    assert all(torch.equal(a, b) for run in found[1:] for a, b in zip(found[0], run, strict=True))


@cpu_only
@pytest.mark.parametrize("backend", ("cpu", "reference"))
def test_known_values_on_ones_and_on_a_wave(backend):
    ones = mde_filter(torch.ones(1, 1, 8, 8), MDE, backend=backend)[0, 0]
    for (i, j), value in {(0, 0): 0.8921, (0, 4): 0.9531, (1, 1): 1.1639, (1, 3): 1.0859}.items():
        assert abs(ones[i, j] - value) < 1e-4
    assert ones[3, 3] == 1
    even = mde_filter(torch.ones(1, 1, 8, 8), MDE, pad="reflect", backend=backend)
    assert torch.equal(even, torch.ones(1, 1, 8, 8))
    outline = mde_filter(
        torch.ones(1, 1, 8, 8), torch.tensor([[9.0, 0.0]]), (3,), "box", backend=backend
    )
    assert [round(float(outline[0, 0, i, j]), 5) for i, j in ((0, 0), (0, 4), (4, 4))] == [5, 3, 0]
    wave = torch.cos(0.36 * math.pi * torch.arange(64.0)).expand(1, 1, 64, 64)
    ratio = (mde_filter(wave, MDE, backend=backend) / wave)[0, 0, 20:40, 20:40]
    assert (ratio - 1.1341).abs().max() < 2e-4


@cpu_only
@pytest.mark.parametrize("backend", ("cpu", "reference"))
def test_known_values_on_the_example(backend):
    x = example().requires_grad_()
    places = ((0, 0), (0, 7), (3, 4), (7, 7))
    want = {
        "zero": (-2.201904296875, -2.5621337890625, 2.772705078125, -2.3963623046875),
        "reflect": (-2.27734375, -3.01708984375, 2.772705078125, -2.81103515625),
    }
    sums = {"zero": 18.989013671875, "reflect": 16.6849365234375}
    taps = {
        "zero": (18, 20.25, 20.51171875, 20.26025390625),
        "reflect": (18, 20.1875, 21.9921875, 23.200439453125),
    }
    for pad in ("zero", "reflect"):
        gains = MDE.clone().requires_grad_()
        y = mde_filter(x, gains, pad=pad, backend=backend)
        found = [float(y[0, 0, i, j].detach()) for i, j in places]
        torch.testing.assert_close(found, list(want[pad]))
        torch.testing.assert_close(float(y.detach().double().sum()), sums[pad], rtol=1e-6, atol=0)
        dx, grad = torch.autograd.grad(y.sum(), (x, gains))
        # a_j = t_0 + ... + t_j, so the gradient of tap j is the sum of those of a_j, a_j+1, ...
        torch.testing.assert_close(grad[0].flip(0).cumsum(0).flip(0), torch.tensor(taps[pad]))
        if pad == "reflect":
            found = [float(dx[0, 0, i, j]) for i, j in ((0, 0), (0, 3), (1, 1), (3, 3))]
            want_dx = [0.89208984375, 0.947998046875, 1.3006591796875, 0.9842529296875]
            torch.testing.assert_close(found, want_dx)


@cpu_only
def test_channels_do_not_mix():
    x, factor = torch.randn(2, 21, 12, 13), 2.0 ** torch.arange(21)[:, None, None]
    for layout in (torch.contiguous_format, torch.channels_last):
        a, b = (t.contiguous(memory_format=layout) for t in (x, x * factor))
        plain, scaled = (mde_filter(t, MDE, backend="cpu") for t in (a, b))
        assert torch.equal(plain * factor, scaled)


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_concat_is_the_plain_one_bit_for_bit(dtype):
    for channels in (5, 19, 32):
        for up_channels in (1, 2, 3, 16, 31):
            ups = list(layouts((2, up_channels, 9, 18), dtype))
            for x in layouts((2, channels, 9, 18), dtype):
                plain = mde_filter(x, MDE, backend="cpu")
                for up in ups:
                    got = mde_concat(up, x, MDE, backend="cpu")
                    assert torch.equal(got, torch.cat([up, plain], dim=1))
                    assert got.stride() == torch.empty_like(got, memory_format=order(x)).stride()


def order(x):
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


@cpu_only
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=str)
def test_concat_gradients_are_those_of_the_parts(layout):
    make = [torch.randn(2, c, 9, 18).contiguous(memory_format=layout) for c in (7, 20)]
    up, x = (t.requires_grad_() for t in make)
    gains = some_gains(20, 4).requires_grad_()
    dy = torch.randn(2, 27, 9, 18).contiguous(memory_format=layout)
    got = torch.autograd.grad(mde_concat(up, x, gains, backend="cpu"), (up, x, gains), dy)
    parts = torch.cat([up, mde_filter(x, gains, backend="cpu")], dim=1)
    want = torch.autograd.grad(parts, (up, x, gains), dy)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@cpu_only
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf"), 1e37))
def test_special_values_spread_as_in_the_reference(value):
    x = torch.randn(2, 18, 12, 21)
    x[1, 2, 5, 8] = value
    want = mde_reference(x, MDE)
    for layout in (torch.contiguous_format, torch.channels_last):
        got = mde_filter(x.contiguous(memory_format=layout), MDE, backend="cpu")
        assert torch.equal(got.isfinite(), want.isfinite())
        finite = want.isfinite()
        torch.testing.assert_close(
            got[finite], want[finite], rtol=1e-5, atol=1e-5 * float(want[finite].abs().max())
        )


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=str)
@pytest.mark.parametrize("value", (1e38, 1.6e38))
def test_reflecting_gradient_does_not_overflow_early(layout, value):
    x = torch.randn(1, 18, 6, 21).contiguous(memory_format=layout).requires_grad_()
    dy = torch.full_like(x, value)
    (dx,) = torch.autograd.grad(
        mde_filter(x, torch.ones(1, 4), pad="reflect", backend="cpu"), x, dy
    )
    assert torch.equal(dx, dy)


@cpu_only
def test_fixed_gains_keep_nothing_for_backward():
    x = torch.randn(2, 32, 64, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mde_filter(x, MDE, backend="cpu")
    assert [t.data_ptr() for t in kept] == [MDE.data_ptr()]


def test_masks_sum_to_one_and_match_their_definition():
    for bank in BANKS:
        scales = (3,) if bank == "cross" else (3, 5, 7)
        for mask in quadrants(scales, bank):
            whole = sum(
                mask[i][j] * (1 + (i > 0)) * (1 + (j > 0))
                for i in range(len(mask))
                for j in range(len(mask))
            )
            assert abs(whole - 1) < 1e-15
    assert row(7, "opencv") == tuple(v / 64 for v in (2, 7, 14, 18, 14, 7, 2))
    third = row(7, "gauss", 1.4)
    assert abs(third[4] / third[3] - math.exp(-1 / (2 * 1.96))) < 1e-15
    assert quadrants((3,), "gauss") == quadrants((3,), "gauss(0.8)")
