"""MDEFilter: its presets, what it keeps, the soft threshold, and how a decoder uses it."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from medseg.kernels import mde_filter, mde_reference
from medseg.layers import MDEFilter
from medseg.layers.mde import PRESETS, two_branch_gains


def spectrum(name):
    """Of the folded mask: its sum, response at (pi, 0) and (pi, pi), peak, sum of squares."""
    impulse = torch.zeros(1, 1, 15, 15, dtype=torch.float64)
    impulse[0, 0, 7, 7] = 1
    mask = MDEFilter(1, name).double()(impulse)[0, 0]
    padded = torch.zeros(200, 200, dtype=torch.float64)
    padded[:15, :15] = mask
    response = torch.fft.fft2(padded).abs()
    power = mask.square().sum()
    return [
        float(v) for v in (mask.sum(), response[100, 0], response[100, 100], response.max(), power)
    ]


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("identity", (1, 1, 1, 1, 1)),
        ("mde", (1, 0.5, 0.5, 1.134, 0.625)),
        ("mde_soft", (1, 0.5, 0.5, 1.016, 0.510)),
        ("mde_strong", (1, 0.5, 0.5, 1.207, 0.670)),
        ("unsharp", (1, 2, 2, 2, 3.430)),
        ("sharp8", (0, 12, 8, 12, 72)),
        ("sharp9", (1, 13, 9, 13, 89)),
        ("sharp5", (1, 5, 9, 9, 29)),
        ("blur", (1, 0, 0, 1, 0.1406)),
        ("mde1", (0, 12, 8, 12, 72)),
    ],
)
def test_presets_have_the_published_figures(name, want):
    assert set(PRESETS) >= {name}
    torch.testing.assert_close(spectrum(name), [float(v) for v in want], rtol=0, atol=6e-4)


def test_fixed_gains_are_a_buffer_and_learned_ones_a_parameter_of_every_channel():
    fixed, learned = MDEFilter(8), MDEFilter(8, learn_gains=True, shrink=0.1)
    assert list(fixed.parameters()) == []
    assert {k: tuple(v.shape) for k, v in fixed.state_dict().items()} == {"gains": (1, 4)}
    shapes = {k: tuple(v.shape) for k, v in learned.named_parameters()}
    assert shapes == {"gains": (8, 4), "tau": (8, 1)}
    x = torch.randn(2, 8, 9, 10)
    torch.testing.assert_close(fixed(x), MDEFilter(8, learn_gains=True)(x))


def test_gradients_reach_the_parameters():
    layer = MDEFilter(5, learn_gains=True, shrink=0.3)
    layer(torch.randn(2, 5, 8, 9)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_own_gains_and_masks():
    layer = MDEFilter(3, gains=(0.5, 2, 1), scales=(3, 5), bank="box", pad="reflect")
    x, gains = torch.randn(1, 3, 8, 9), torch.tensor([[0.5, 2, 1]])
    want = mde_reference(x, gains, (3, 5), "box", "reflect")
    torch.testing.assert_close(layer(x), want)
    assert "scales=(3, 5), bank='box', pad='reflect'" in repr(layer)


@pytest.mark.parametrize("shrink", (None, 0.2))
def test_a_decoder_gets_the_concatenation(shrink):
    layer = MDEFilter(6, shrink=shrink)
    skip, up = torch.randn(2, 6, 9, 11), torch.randn(2, 4, 9, 11)
    assert torch.equal(layer(skip, up), torch.cat([up, layer(skip)], dim=1))


def shrunk(x, gains, tau):
    """Section 5 of the definition, band by band."""
    smooth = [x] + [mde_reference(x, torch.tensor([[0.0, 1.0]]).double(), (k,)) for k in (3, 5, 7)]
    bands = [a - b for a, b in itertools.pairwise(smooth)]
    soft = bands[0].sign() * (bands[0].abs() - tau[:, :, None]).clamp_min(0)
    a = gains[:, :, None, None]
    return a[:, 0] * soft + a[:, 1] * bands[1] + a[:, 2] * bands[2] + a[:, 3] * smooth[3]


def test_soft_threshold_is_the_formula_and_its_gradients_are_right():
    layer = MDEFilter(3, learn_gains=True, shrink=0.25).double()
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64, requires_grad=True)
    gains, tau = (p.detach().requires_grad_() for p in (layer.gains, layer.tau))
    torch.testing.assert_close(layer(x), shrunk(x, gains, tau))
    dy = torch.randn_like(x)
    got = torch.autograd.grad(layer(x), (x, layer.gains, layer.tau), dy)
    torch.testing.assert_close(got, torch.autograd.grad(shrunk(x, gains, tau), (x, gains, tau), dy))

    def as_function(x, gains, tau):
        state = {"gains": gains, "tau": tau}
        return torch.func.functional_call(layer, state, (x,))

    assert torch.autograd.gradcheck(as_function, (x, gains, tau))


def test_soft_threshold_gradient_is_the_adjoint_of_the_definition():
    """tau: -sum a_0 m sign(d_0) dy with m = |d_0| > tau; a_0: sum soft dy."""
    layer = MDEFilter(2, learn_gains=True, shrink=0.4).double()
    x = torch.randn(1, 2, 9, 9, dtype=torch.float64)
    dy = torch.randn_like(x)
    grads = torch.autograd.grad(layer(x), (layer.gains, layer.tau), dy)
    band = mde_filter(x, torch.tensor([[1.0, 0.0]]), (3,))
    over = band.abs() > 0.4
    want = -(0.5 * over * band.sign() * dy).sum((0, 2, 3))
    torch.testing.assert_close(grads[1][:, 0], want)
    torch.testing.assert_close(grads[0][:, 0], (F.softshrink(band, 0.4) * dy).sum((0, 2, 3)))


def test_no_threshold_is_the_linear_filter_and_a_negative_one_is_none():
    x = torch.randn(2, 3, 8, 9)
    layer = MDEFilter(3, shrink=0.0)
    torch.testing.assert_close(layer(x), MDEFilter(3)(x))
    layer.tau.fill_(-1)
    torch.testing.assert_close(layer(x), MDEFilter(3)(x))


@pytest.mark.parametrize("bank", ("gauss", "gauss(0.7,1.0,1.5)"))
def test_the_threshold_uses_the_finest_mask_of_its_bank(bank):
    x = torch.randn(1, 3, 8, 9)
    linear = MDEFilter(3, bank=bank)
    torch.testing.assert_close(MDEFilter(3, bank=bank, shrink=0.0)(x), linear(x))


def test_half_modules_keep_working():
    x = torch.randn(1, 4, 8, 8)
    for dtype in (torch.float16, torch.bfloat16):
        layer = MDEFilter(4, "unsharp", shrink=0.1).to(dtype)
        assert layer(x.to(dtype)).dtype is dtype
    assert MDEFilter(4).double()(x.double()).dtype is torch.float64


def test_two_branches_are_the_gains_of_their_sum():
    smooth, enhance, alpha = (0.2, 0.1, 0.3), (0.1, 0.2, 0.1), (1.5, 0.5, 2.0)
    gains = two_branch_gains(smooth, enhance, alpha)
    x = torch.randn(1, 2, 9, 10, dtype=torch.float64)
    want = torch.zeros_like(x)
    for k, u, v, a in zip((3, 5, 7), smooth, enhance, alpha, strict=True):
        s = mde_reference(x, torch.tensor([[0.0, 1.0]]).double(), (k,))
        want += u * s + v * (x + a * (x - s))
    torch.testing.assert_close(MDEFilter(2, gains=gains)(x), want, rtol=1e-6, atol=1e-6)
    assert two_branch_gains((1 / 6,) * 3, (1 / 6,) * 3, (1.0,) * 3) == pytest.approx((1, 1, 1, 1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"preset": "sharp"}, "preset must be one of identity, mde.* got 'sharp'"),
        ({"pad": "same"}, "pad must be one of zero, reflect, got 'same'"),
        ({"shrink": -1.0}, "shrink must be a number of at least 0, got -1"),
        ({"scales": (3, 5)}, r"gains must be 3 with these scales, got \(0.5, 2, 1.5, 1\)"),
        ({"scales": (2, 5, 7)}, "scales must be odd"),
        ({"bank": "sinc"}, "bank must be one of"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        MDEFilter(**{"channels": 4} | arguments)


def test_two_branches_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="must name one value a scale, got 1, 2 and 1"):
        two_branch_gains((1.0,), (1.0, 2.0), (1.0,))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="gains must be finite numbers, got"):
        MDEFilter(4, gains=(1, bad, 1, 1))
    with pytest.raises(ValueError, match="shrink must be a number of at least 0, got"):
        MDEFilter(4, shrink=bad)
