"""Position attention as a module: its two forms, how it starts, how it is used."""

import pytest
import torch

from medseg.kernels import position_attention
from medseg.layers import PositionAttention


def test_forms():
    hpddrnet, danet = PositionAttention(16), PositionAttention(16, "danet")
    shapes = {name: tuple(p.shape) for name, p in hpddrnet.state_dict().items()}
    assert shapes.pop("conv.weight") == (16, 16, 3, 3)
    assert set(shapes.values()) == {(16,), (16, 16)} and len(shapes) == 9
    assert danet.q.weight.shape == danet.k.weight.shape == (2, 16, 1, 1)
    assert (hpddrnet.dropout, danet.dropout) == (0.1, 0.0)


def test_start():
    torch.manual_seed(0)
    layer = PositionAttention(64)
    for part in (layer.q, layer.k, layer.v, layer.o):
        assert 0.0008 < float(part.weight.detach().std()) < 0.0012 and not (part.bias != 0).any()
    x = torch.randn(1, 64, 5, 4)
    assert torch.equal(PositionAttention(64, "danet")(x), x)  # gamma starts at 0


@pytest.mark.parametrize("variant", ("hpddrnet", "danet"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_layout_and_dtype_are_kept(variant, dtype):
    torch.manual_seed(0)
    layer = PositionAttention(16, variant).to(dtype).eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p) / 4)
    x = torch.randn(2, 16, 6, 5, dtype=dtype)
    last = x.contiguous(memory_format=torch.channels_last)
    out, out_last = layer(x), layer(last)
    assert out.is_contiguous() and out_last.is_contiguous(memory_format=torch.channels_last)
    assert out.dtype is dtype
    if dtype is torch.float32:
        torch.testing.assert_close(out, out_last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ("hpddrnet", "danet"))
def test_autocast_and_gradients(variant):
    layer = PositionAttention(16, variant)
    x = torch.randn(2, 16, 6, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in layer.parameters())


def test_backward_inside_autocast():
    layer = PositionAttention(16).train()
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, 16, 6, 5)).float().square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_dropout_only_in_training():
    torch.manual_seed(0)
    layer = PositionAttention(8, dropout=0.5)
    with torch.no_grad():
        layer.v.weight.normal_()
        layer.o.weight.normal_()
    x = torch.randn(1, 8, 6, 6)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_autocast_does_not_round_few_positions():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 20, 8, generator=generator).requires_grad_() for _ in range(3))
    want = torch.autograd.grad(position_attention(q, k, v).sum(), (q, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(position_attention(q, k, v).sum(), (q, k, v))
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("positions", (16, 512))
def test_dropout_of_few_and_of_many(positions):
    """Few positions take the plain formula, many blocks: both drop a quarter, and keep the mean."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(4, positions, 8, generator=generator) for _ in range(2))
    torch.manual_seed(0)
    out = position_attention(q, k, torch.eye(positions).expand(4, -1, -1), dropout=0.25)
    assert abs(float((out == 0).float().mean()) - 0.25) < 0.05
    assert abs(float(out.sum(2).mean()) - 1) < 0.05


@pytest.mark.parametrize("variant", ("hpddrnet", "danet"))
def test_compile(variant):
    layer = PositionAttention(16, variant).eval()
    x = torch.randn(2, 16, 6, 5)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"channels": 8, "variant": "x"}, "variant must be one of hpddrnet, danet, got 'x'"),
        ({"channels": 8, "dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        (
            {"channels": 4, "variant": "danet"},
            r"reduction must be from 1 to channels \(4\), got 8",
        ),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        PositionAttention(**arguments)
