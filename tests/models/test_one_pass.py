"""Convolution, batch norm and ReLU as one pass: the numbers of three, where none watches."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import medseg
from medseg.kernels import _cpu_launch, use_backend
from medseg.models import one_pass
from medseg.models.blocks import ConvNorm, concat
from medseg.models.one_pass import PackedConv2d, conv_norm, conv_norm_add

pytestmark = pytest.mark.skipif(not one_pass._ONEDNN, reason="this PyTorch has no oneDNN")
halves = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(not one_pass._HALVES, reason="this CPU has no bfloat16 in oneDNN"),
)


@pytest.fixture
def taken(monkeypatch):
    """The convolutions that went the short way; small maps may too."""
    monkeypatch.setattr(one_pass, "_SMALL", 0)
    seen, real = [], one_pass._at_once

    def at_once(x, conv, norm, relu, other=None):
        seen.append(conv)
        return real(x, conv, norm, relu, other)

    monkeypatch.setattr(one_pass, "_at_once", at_once)
    return seen


def pair(channels=8, dtype=torch.float32, affine=True, **options):
    """A convolution and a batch norm in eval mode whose statistics say something."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, channels, **{"kernel_size": 3, "padding": 1, **options})
    norm = nn.BatchNorm2d(channels, affine=affine)
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return conv.to(dtype), norm.to(dtype).eval()


def plain(x, conv, norm, relu=True):
    y = norm(conv(x))
    return F.relu(y) if relu else y


def image(*shape, dtype=torch.float32, layout=torch.channels_last):
    return torch.randn(shape or (2, 4, 9, 9)).to(dtype).contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.float32, halves])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "bias": False},
        {"kernel_size": (1, 5), "padding": (0, 4), "dilation": (1, 2)},
        {"groups": 4, "kernel_size": 7, "padding": 3},
        {"kernel_size": 1, "padding": 0},
    ],
)
def test_numbers(options, dtype, taken):
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    for affine in (True, False):
        for layout in (torch.channels_last, torch.contiguous_format):
            conv, norm = pair(affine=affine, dtype=dtype, **options)
            x = image(dtype=dtype, layout=layout)
            for relu in (True, False):
                for last in (norm, nn.Identity()):
                    with torch.no_grad():
                        expected = plain(x, conv, last, relu)
                        out = conv_norm(x, conv, last, relu)
                    assert out.dtype is dtype and out.stride() == expected.stride()
                    error = (out.double() - expected.double()).abs().max()
                    assert error <= tolerance * expected.abs().max()
    assert len(taken) == 16


def test_more_weights_than_numbers(taken):
    """The weights stay as they are; the norm comes after, and its hooks with it."""
    conv, norm = pair()
    x = image(1, 4, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(conv_norm(x, conv, norm), plain(x, conv, norm))
        assert taken == [conv]
        norm.register_forward_hook(lambda *args: None)
        conv_norm(x, conv, norm)
    assert taken == [conv]


def test_small_maps_are_left_alone(taken, monkeypatch):
    """Scaling weights would take longer than it saves; folded, there is nothing to scale."""
    monkeypatch.setattr(one_pass, "_SMALL", 1000)
    conv, norm = pair()
    small, large = image(1, 4, 9, 9), image(1, 4, 16, 16)
    with torch.no_grad():
        for x in (small, large):
            torch.testing.assert_close(conv_norm(x, conv, norm), plain(x, conv, norm))
        assert len(taken) == 1
        conv_norm(small, conv, nn.Identity())
    assert len(taken) == 2


def test_graphs_hold_for_all_sizes():
    """No case of small maps is left in what is captured."""
    block = ConvNorm(4, 8).eval()
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        for traced in (image(2, 4, 20, 30), image(2, 4, 300, 200)):
            graph = torch.export.export(block, (traced,), dynamic_shapes=(sizes,)).module()
            for x in (image(3, 4, 9, 11), image(2, 4, 260, 310)):
                torch.testing.assert_close(graph(x), block(x))


@pytest.mark.parametrize("dtype", [torch.float32, halves])
def test_sum(dtype, taken):
    """The other summand is read where it lies and stays as it was."""
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    for layout in (torch.channels_last, torch.contiguous_format):
        for size in (9, 2):  # the smaller map has fewer numbers than the convolution weights
            conv, norm = pair(dtype=dtype)
            x, other = image(2, 4, size, size, dtype=dtype), image(2, 8, size, size, dtype=dtype)
            other = other.contiguous(memory_format=layout)
            before = other.clone()
            for last in (norm, nn.Identity()):
                with torch.no_grad():
                    expected = (plain(x, conv, last, relu=False) + other).double()
                    out = conv_norm_add(x, conv, last, other)
                assert (out.double() - expected).abs().max() <= tolerance * expected.abs().max()
                assert out.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(other, before)
    assert len(taken) == 8
    assert conv_norm_add(x, conv, norm, other).requires_grad
    other[0, 0, 0, 0] = float("nan")
    with torch.no_grad():
        assert conv_norm_add(x, conv, norm, other).isnan().sum() == 1
    assert len(taken) == 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_concat(dtype, layout):
    """Bit for bit torch.cat, in a layout of its own choice, while earlier results live on."""
    held = []
    for channels in ((8, 8), (3, 5, 8)):
        for side in (4, 160):  # below and above the size of which pages are kept
            maps = [image(2, c, side, side, dtype=dtype, layout=layout) for c in channels]
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    held.append((concat(*maps), torch.cat(maps, 1)))
    for found, expected in held:
        assert torch.equal(found, expected) and found.stride() == expected.stride()


def test_concat_of_others():
    """Dtypes that differ, gradients, and a build without compiled operators."""
    x = image(1, 4, 300, 300)
    with torch.no_grad():
        assert concat(x.bfloat16(), x).dtype is torch.float32
        assert concat(x, x[:, :0]).shape == x.shape
    x.requires_grad_()
    concat(x, 2 * x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 3))


def test_concat_without_compiled_operators(monkeypatch):
    monkeypatch.setattr(_cpu_launch, "compiled", lambda name: (None, "it was not built"))
    x = image(1, 4, 300, 300)
    with torch.no_grad():
        assert torch.equal(concat(x, x), torch.cat((x, x), 1))


def ways_to_watch():
    def hook(*args):
        return None

    def hooked(conv, norm):
        conv.register_forward_hook(hook)

    def hooked_before(conv, norm):
        norm.register_forward_pre_hook(hook)

    def patched(conv, norm):
        conv.forward = lambda x: F.conv2d(x, conv.weight, conv.bias, padding=1)

    def parametrised(conv, norm):
        nn.utils.parametrizations.weight_norm(conv)

    def training(conv, norm):
        norm.train()

    def without_statistics(conv, norm):
        norm.running_mean = norm.running_var = None

    def reflecting(conv, norm):
        conv.padding_mode = "reflect"

    def named_padding(conv, norm):
        conv.padding = "same"

    return [
        hooked,
        hooked_before,
        patched,
        parametrised,
        training,
        without_statistics,
        reflecting,
        named_padding,
    ]


@pytest.mark.parametrize("change", ways_to_watch(), ids=lambda change: change.__name__)
def test_modules_run_one_by_one(change, taken):
    conv, norm = pair()
    change(conv, norm)
    x = image()
    with torch.no_grad():
        torch.testing.assert_close(conv_norm(x, conv, norm), plain(x, conv, norm), rtol=0, atol=0)
    assert not taken


def test_others_run_one_by_one(taken):
    conv, norm = pair()
    x = image()
    assert conv_norm(x, conv, norm).requires_grad
    with torch.no_grad():
        with use_backend("reference"):
            conv_norm(x, conv, norm)
        with torch.autocast("cpu", torch.bfloat16):
            conv_norm(x, conv, norm)
        with torch.backends.mkldnn.flags(enabled=False):
            conv_norm(x, conv, norm)
        assert conv_norm(x[:0], conv, norm).shape == (0, 8, 9, 9)
        assert conv_norm(x[0], conv, nn.Identity()).shape == (8, 9, 9)
        conv_norm(x.double(), *pair(dtype=torch.float64))
        conv_norm(x.to("meta"), conv.to("meta"), norm.to("meta"))
        with pytest.raises(RuntimeError, match=r"[Kk]ernel size can't be greater"):
            conv_norm(image(1, 4, 9, 2), *pair(kernel_size=5, padding=0))
        both = pair()
        torch.vmap(lambda one: conv_norm(one[None], *both))(x)
        slope = torch.func.jvp(lambda x: conv_norm(x, *both), (x,), (torch.ones_like(x),))[1]
        assert slope.abs().max() > 0
        with pytest.raises(RuntimeError, match="expected input"):
            conv_norm(image(1, 3, 4, 4), *pair())
        with FlopCounterMode(display=False) as counter:
            conv_norm(x, *pair())
    assert counter.get_total_flops() == 2 * 2 * 8 * 4 * 9 * 81
    assert not taken


@pytest.mark.parametrize("name", medseg.list_models("*_s"))
def test_networks_take_it(name, taken):
    """In inference, most of their convolutions; not in training."""
    model = medseg.create_model(name)
    x = torch.rand(2, 3, 128, 128)
    model.train()(x)
    assert not taken
    with torch.no_grad(), use_backend("reference"):
        expected = model.eval()(x)
        assert not taken
    with torch.no_grad():
        out = model(x)
    assert len(taken) > 10
    assert float((out - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def packed():
    conv, _ = pair()
    conv.__class__ = PackedConv2d
    return conv


def test_packed_weights_follow(taken):
    """What was packed is used again, and packed anew when weights, their dtype or sizes change."""
    conv, x = packed(), image()
    with torch.no_grad():
        for change in (
            lambda: None,
            lambda: conv.weight.mul_(2),
            lambda: setattr(conv, "weight", nn.Parameter(conv.weight + 1)),
            lambda: conv.load_state_dict({"weight": conv.weight * 3, "bias": conv.bias}),
            lambda: conv.to(memory_format=torch.channels_last),  # pyright: ignore
        ):
            change()
            expected = F.conv2d(x, conv.weight, conv.bias, padding=1)
            torch.testing.assert_close(conv(x), expected)
            kept = conv._packed
            torch.testing.assert_close(conv(x), expected)
            assert conv._packed is kept
        other = image(3, 4, 16, 5)
        torch.testing.assert_close(conv(other), F.conv2d(other, conv.weight, conv.bias, padding=1))
    assert len(taken) == 11
    x.requires_grad_()
    conv(x).sum().backward()
    assert x.grad is not None and len(taken) == 11


def test_packed_weights_stay_here():
    """Not in the state dict, a copy, a file; hooks of the convolution run once."""
    conv, x, calls = packed(), image(), []
    with torch.no_grad():
        conv.register_forward_hook(lambda *args: calls.append(1))
        out = conv(x)
        assert conv._packed is not None and calls == [1]
        assert list(conv.state_dict()) == ["weight", "bias"]
        unhooked = packed()
        unhooked(x)
        for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(unhooked))):
            assert other._packed is None
            torch.testing.assert_close(other(x), out)


def test_weights_made_in_inference_mode():
    """They do not tell when they change: nothing of them is kept."""
    with torch.inference_mode():
        conv, x = packed(), image()
        conv.weight = nn.Parameter(conv.weight.clone(), requires_grad=False)
        first = conv(x)
        conv.weight.zero_()
        conv.bias = None
        assert first.abs().max() > 0 and not conv(x).any()


def test_statistics_of_a_training_that_broke_show_in_the_outputs():
    layer = ConvNorm(3, 4).eval()
    layer.bn.get_buffer("running_var")[1] = torch.nan
    with torch.no_grad():
        out = layer(torch.rand(1, 3, 8, 8))
    assert out[:, 1].isnan().all() and out[:, (0, 2, 3)].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, halves])
def test_nan_is_not_hidden(dtype, taken):
    """oneDNN's own ReLU would make 0 of it."""
    conv, norm = pair(dtype=dtype)
    x: Any = image(dtype=dtype)
    bias: Any = norm.bias
    weights: Any = conv.weight
    with torch.no_grad():
        x[0, 0, 4, 4] = float("nan")
        assert conv_norm(x, conv, norm).isnan().sum() == 8 * 9
        for last in (norm, nn.Identity()):
            weights[3] = float("nan")
            assert conv_norm(image(dtype=dtype), conv, last)[:, 3].isnan().all()
        bias[5] = float("nan")
        assert conv_norm(image(dtype=dtype), conv, norm)[:, 5].isnan().all()
    assert len(taken) == 4
