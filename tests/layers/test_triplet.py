"""TripletAttention as a module: its batch norms, and norms that the fused op cannot take."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from medseg.kernels import triplet_reference, use_backend
from medseg.layers import TripletAttention

GATES = ("gate_h", "gate_w", "gate_c")


@pytest.fixture
def layer():
    """Float64, with parameters and statistics that differ from gate to gate."""
    torch.manual_seed(0)
    layer = TripletAttention().double()
    for norm in norms(layer):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return layer


def norms(layer) -> list[Any]:
    return [m for m in layer.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def image(**options):
    options = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(2)} | options
    return torch.randn((2, 5, 6, 7), **options)


def test_state_dict_names():
    leaves = ["conv.weight"] + [
        f"bn.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]
    assert list(TripletAttention().state_dict()) == [f"{g}.{k}" for g in GATES for k in leaves]
    assert list(TripletAttention(spatial=False).state_dict()) == [
        f"{g}.{k}" for g in GATES[:2] for k in leaves
    ]
    assert sum(p.numel() for p in TripletAttention().parameters()) == 300
    assert TripletAttention(5).gate_w.conv.weight.shape == (1, 2, 5, 5)


@pytest.mark.parametrize("kernel_size", [0, 4])
def test_refuses_even_kernels(kernel_size):
    with pytest.raises(ValueError, match=f"kernel_size must be odd .* got {kernel_size}"):
        TripletAttention(kernel_size)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spatial", [True, False])
def test_equals_its_gates_one_by_one(layer, training, spatial):
    """The fused call and the plain modules: output, gradients, and all that training changes."""
    if not spatial:
        layer.gate_c = None
    layer.train(training)
    plain = copy.deepcopy(layer)
    x, y = image().requires_grad_(), image().requires_grad_()
    for _ in range(2):
        out, other = layer(x), plain._by_modules(y)
        torch.testing.assert_close(out, other)
    out.square().sum().backward()
    other.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for (key, a), b in zip(layer.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)
    for (key, a), b in zip(layer.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=key)
    assert [int(n.num_batches_tracked) for n in norms(layer)] == [2 * training] * len(norms(layer))


def test_norms_frozen_apart_from_the_rest(layer):
    """model.train() followed by norm.eval(), as in fine-tuning."""
    before = copy.deepcopy(layer.state_dict())
    for norm in norms(layer.train()):
        norm.eval()
    x = image()
    out = layer(x)
    torch.testing.assert_close(out, copy.deepcopy(layer).eval()(x))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def sync(layer):
    return nn.SyncBatchNorm.convert_sync_batchnorm(layer).eval()


def test_shared_statistics_in_eval_mode_are_the_op(layer):
    """Validation of a training on several GPUs is as fast as any."""
    with torch.profiler.profile() as profile:
        torch.testing.assert_close(sync(layer)(image()), layer._by_modules(image()))
    assert "medseg::triplet" in {event.key for event in profile.key_averages()}


def cumulative(layer):
    for norm in norms(layer):
        norm.momentum = None
    return layer


def untracked(layer):
    for name in GATES:
        getattr(layer, name).bn = nn.BatchNorm2d(1, track_running_stats=False).double()
    return layer


def one_frozen(layer):
    layer.gate_w.bn.eval()
    return layer


def other_eps(layer):
    layer.gate_c.bn.eps = 0.1
    return layer


def identity(layer):
    layer.gate_h.bn = nn.Identity()
    return layer


class OwnNorm(nn.BatchNorm2d):
    """A batch norm by another name, as one that shares its statistics is: the op must not know."""


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_that_is_no_plain_one_takes_part(layer, training):
    """Between pooling and gating its own forward runs, and all is as in the fused op."""
    own, calls = copy.deepcopy(layer).train(training), []
    for norm in norms(own):
        norm.__class__ = OwnNorm
        norm.register_forward_hook(lambda *seen: calls.append(seen))
    x, y = image().requires_grad_(), image().requires_grad_()
    out, other = own(x), layer.train(training)(y)
    torch.testing.assert_close(out, other)
    assert len(calls) == 3
    out.square().sum().backward()
    other.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for (key, a), b in zip(own.named_parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)
    for (key, a), b in zip(own.named_buffers(), layer.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=key)


@pytest.mark.parametrize("change", [cumulative, untracked, one_frozen, other_eps, identity])
def test_norms_the_op_cannot_take(layer, change):
    layer = change(layer)
    plain = copy.deepcopy(layer)
    x = image()
    torch.testing.assert_close(layer(x), plain._by_modules(x), rtol=0, atol=0)
    for (key, a), b in zip(layer.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=key)
    if change in (cumulative, one_frozen, other_eps):
        assert not torch.equal(layer.gate_h.bn.running_mean, torch.zeros(1, dtype=torch.float64))


def test_cumulative_average(layer):
    """momentum=None averages over all batches with equal weight, as nn.BatchNorm2d does."""
    cumulative(layer)
    layer.gate_c.bn.reset_running_stats()
    planes = []
    layer.gate_c.conv.register_forward_hook(lambda m, args, out: planes.append(out.detach()))
    for seed in range(3):
        layer(image(generator=torch.Generator().manual_seed(seed)))
    mean = torch.stack([plane.mean() for plane in planes]).mean()
    torch.testing.assert_close(layer.gate_c.bn.running_mean, mean.reshape(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("training", [True, False])
def test_dtypes_and_layouts(layer, dtype, training):
    layer.to(dtype).train(training)
    x = image().to(dtype).to(memory_format=torch.channels_last)
    out = layer(x)
    assert out.dtype is dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert all(b.isfinite().all() for b in layer.buffers())


def test_autocast_keeps_statistics_in_float32(layer):
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(image().bfloat16())
    out.float().sum().backward()
    assert out.dtype is torch.bfloat16
    assert {t.dtype for t in norms(layer)[0].buffers()} == {torch.float32, torch.int64}
    assert layer.gate_h.conv.weight.grad.dtype is torch.float32


def test_compile_updates_statistics(layer):
    other = copy.deepcopy(layer)
    compiled = torch.compile(other, fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(image()), layer(image()))
    for (key, a), b in zip(layer.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(b, a, msg=key)


@pytest.mark.parametrize("training", [True, False])
def test_export(layer, training):
    layer.train(training)
    program = torch.export.export(copy.deepcopy(layer), (image(),)).module()
    torch.testing.assert_close(program(image()), layer(image()))
    for (key, a), b in zip(layer.named_buffers(), program.buffers(), strict=True):
        torch.testing.assert_close(b, a, msg=key)


def test_named_backend_is_used(layer):
    with use_backend("reference"):
        x = image()
        expected = triplet_reference(
            x,
            torch.cat([getattr(layer, g).conv.weight for g in GATES]),
            *(
                torch.cat([getattr(getattr(layer, g).bn, name) for g in GATES])
                for name in ("weight", "bias", "running_mean", "running_var")
            ),
            training=False,
        )
        assert torch.equal(layer.eval()(x), expected)
