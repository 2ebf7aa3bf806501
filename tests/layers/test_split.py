"""SplitAttention as a module: its options, its norms, golden vectors, and the folded front."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from medseg.kernels import use_backend
from medseg.layers import SplitAttention
from tests.golden import load, needs_golden, relative

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def randomise(layer):
    """Parameters and statistics that no two channels share."""
    torch.manual_seed(0)
    for norm in (layer.bn0, layer.bn1):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return layer


@pytest.fixture
def layer():
    return randomise(SplitAttention(8, bias=True).double())


def image(images=4, channels=8, **options):
    options = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(2)} | options
    return torch.randn((images, channels, 9, 7), **options)


def test_state_dict_names_are_the_authors():
    keys = ["conv.weight", *(f"bn0.{k}" for k in NORM), "fc1.weight", "fc1.bias"]
    keys += [*(f"bn1.{k}" for k in NORM), "fc2.weight", "fc2.bias"]
    assert list(SplitAttention(16).state_dict()) == keys
    plain = SplitAttention(16, bias=True, norm_layer=None)
    assert list(plain.state_dict()) == [
        f"{m}.{k}" for m in ("conv", "fc1", "fc2") for k in ("weight", "bias")
    ]


def test_widths_follow_the_paper():
    layer = SplitAttention(136, 24, 5, stride=2, dilation=2, radix=4, cardinality=2)
    assert layer.conv.weight.shape == (96, 17, 5, 5)
    assert layer.fc1.weight.shape == (136, 12, 1, 1)  # 136 * 4 // 4
    assert layer.fc2.weight.shape == (96, 68, 1, 1)
    assert layer.eval()(torch.randn(1, 136, 16, 12)).shape == (1, 24, 8, 6)
    assert SplitAttention(16, reduction=8).fc1.weight.shape == (32, 16, 1, 1)
    assert SplitAttention(8, kernel_size=3, padding=0).eval()(image().float()).shape[2:] == (7, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radix": 0}, "radix must be 1 to 4, got 0"),
        ({"radix": 5}, "radix must be 1 to 4, got 5"),
        ({"cardinality": 0}, "cardinality must be at least 1, got 0"),
        ({"reduction": 0}, "reduction must be at least 1, got 0"),
        ({"radix": 3}, r"in_channels must be a multiple of radix \* cardinality = 3, got 8"),
        ({"cardinality": 4, "channels": 6}, "channels must be a multiple of cardinality 4, got 6"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        SplitAttention(8, **options)


@needs_golden
@pytest.mark.parametrize("backend", ("auto", "reference"))
@pytest.mark.parametrize("grad", (True, False))
@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("dpsau2_c16_eval", {"bias": True}),
        ("dpsau2_c16_train", {"bias": True}),
        ("dpsau2_c68_eval", {"bias": True}),
        ("resnest_g1_r4_eval", {"radix": 4, "channels": 12}),
        ("resnest_g2_r2_eval", {"cardinality": 2}),
        ("resnest_g2_r2_train", {"cardinality": 2}),
        ("resnest_r1_eval", {"radix": 1}),
    ],
)
def test_numbers_of_the_authors(case, options, grad, backend):
    arrays, meta = load(f"ops/split_{case}")
    layer = SplitAttention(arrays["x"].shape[1], **options).double()
    state = {k[2:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("w/")}
    unused = ("bn2.", *meta["unused"])
    layer.load_state_dict({k: v for k, v in state.items() if not k.startswith(unused)})
    layer.train(meta["mode"] == "train")
    with torch.set_grad_enabled(grad), use_backend(backend):
        out = layer(torch.from_numpy(arrays["x"]).double())
    assert relative(out, arrays["out"]) <= 1e-10
    for name, buffer in layer.named_buffers():
        if f"after/{name}" in arrays:
            torch.testing.assert_close(buffer, torch.from_numpy(arrays[f"after/{name}"]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("radix", "cardinality"), [(1, 1), (2, 1), (2, 2), (4, 1)])
def test_equals_its_plain_modules(radix, cardinality, training):
    """Output, gradients, and all that training changes."""
    layer = SplitAttention(8, radix=radix, cardinality=cardinality).double()
    layer = randomise(layer).train(training)
    plain = copy.deepcopy(layer)
    x, y = image(6).requires_grad_(), image(6).requires_grad_()
    for _ in range(2):
        out, other = layer(x), plain._by_modules(plain.bn0(plain.conv(y)).relu())
        torch.testing.assert_close(out, other)
    out.square().sum().backward()
    other.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for (key, a), b in zip(layer.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)
    for (key, a), b in zip(layer.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=key)
    assert int(layer.bn1.num_batches_tracked) == 2 * training


def test_in_inference_the_activated_map_never_exists(layer):
    """Batch norm and ReLU are gone from the calls, and the numbers are the same."""
    layer.eval()
    x = image()
    want = layer(x)
    with torch.no_grad(), torch.profiler.profile() as profile:
        got = layer(x)
    torch.testing.assert_close(got, want.detach())
    called = {event.key for event in profile.key_averages()}
    assert "medseg::split" in called
    assert not any("batch_norm" in key or "relu" in key for key in called)


@pytest.mark.parametrize("frozen", ["bn0", "bn1"])
def test_a_norm_frozen_apart_from_the_rest(layer, frozen):
    """model.train() followed by norm.eval(), as in fine-tuning, with and without gradients."""
    layer.train().get_submodule(frozen).eval()
    plain = copy.deepcopy(layer)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            other = plain._by_modules(plain.bn0(plain.conv(image())).relu())
            torch.testing.assert_close(layer(image()), other)
    for (key, a), b in zip(layer.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=key)
    assert int(layer.get_submodule(frozen).num_batches_tracked) == 0


def sync(layer):
    return nn.SyncBatchNorm.convert_sync_batchnorm(layer).eval()


def cumulative(layer):
    layer.bn0.momentum = layer.bn1.momentum = None
    return layer


def untracked(layer):
    layer.bn1 = nn.BatchNorm2d(32, track_running_stats=False).double()
    return layer


def untracked_front(layer):
    layer.bn0 = nn.BatchNorm2d(16, track_running_stats=False).double()
    return layer.eval()


def group_norm(layer):
    layer.bn0, layer.bn1 = nn.GroupNorm(4, 16).double(), nn.GroupNorm(4, 32).double()
    return layer


def without(layer):
    return SplitAttention(8, norm_layer=None).double()


class OwnNorm(nn.BatchNorm2d):
    """A batch norm by another name, as one that shares its statistics is: the op must not know."""


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_that_is_no_plain_one_takes_part(layer, training):
    """Between pooling and combining its own forward runs, and all is as in the fused op."""
    own, calls = copy.deepcopy(layer).train(training), []
    own.bn1.__class__ = OwnNorm
    own.bn1.register_forward_hook(lambda *seen: calls.append(seen))
    x, y = image().requires_grad_(), image().requires_grad_()
    out, other = own(x), layer.train(training)(y)
    torch.testing.assert_close(out, other)
    assert len(calls) == 1
    out.square().sum().backward()
    other.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for (key, a), b in zip(own.named_parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)
    for (key, a), b in zip(own.named_buffers(), layer.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=key)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    "change", [sync, cumulative, untracked, untracked_front, group_norm, without]
)
def test_norms_the_op_cannot_take(layer, change, grad):
    layer = change(layer)
    plain = copy.deepcopy(layer)
    with torch.set_grad_enabled(grad):
        other = plain._by_modules(plain.bn0(plain.conv(image())).relu())
        torch.testing.assert_close(layer(image()), other)
    for (key, a), b in zip(layer.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=key)


def test_one_image_cannot_train(layer):
    with pytest.raises(ValueError, match=r"^Expected more than 1 value per channel"):
        layer(image(1))
    assert layer.eval()(image(1)).shape == (1, 8, 9, 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_dtypes_and_layouts(layer, dtype, training, grad):
    layer.to(dtype).train(training)
    x = image().to(dtype).to(memory_format=torch.channels_last)
    with torch.set_grad_enabled(grad):
        out = layer(x)
    assert out.dtype is dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert all(b.isfinite().all() for b in layer.buffers())


@pytest.mark.parametrize("grad", [True, False])
def test_half_precision_network_with_float32_norms(layer, grad):
    layer.bfloat16().eval()
    layer.bn0.float()
    layer.bn1.float()
    x = image().bfloat16()
    with torch.set_grad_enabled(grad):
        out = layer(x)
        other = layer._by_modules(layer.bn0(layer.conv(x)).relu())
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out, other)


def test_autocast_keeps_parameters_in_float32(layer):
    layer.float()
    for grad in (False, True):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(grad):
            out = layer(image().float())
        assert out.dtype is torch.bfloat16
    out.float().sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}
    assert {t.dtype for t in layer.bn1.buffers()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("training", [True, False])
def test_compile(layer, training):
    layer.train(training)
    other = copy.deepcopy(layer)
    compiled = torch.compile(other, fullgraph=True)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(compiled(image()), layer(image()))
    for (key, a), b in zip(layer.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(b, a, msg=key)


@pytest.mark.parametrize("training", [True, False])
def test_export(layer, training):
    layer.train(training)
    with torch.set_grad_enabled(training):
        program: Any = torch.export.export(copy.deepcopy(layer), (image(),)).module()
        torch.testing.assert_close(program(image()), layer(image()))
    for (key, a), b in zip(layer.named_buffers(), program.buffers(), strict=True):
        torch.testing.assert_close(b, a, msg=key)
