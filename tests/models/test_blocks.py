"""Shared blocks, where they are more than PyTorch's layers in a row."""

import pytest
import torch
import torch.nn.functional as F

from medseg.models import fuse_conv_bn
from medseg.models.blocks import Deconv, Up, max_pool


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (8, 5), (1, 1), (2, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_max_pool(size, layout, dtype):
    """Bit for bit PyTorch's, with and without a gradient."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator).to(dtype, memory_format=layout)
    expected = F.max_pool2d(x, 2, ceil_mode=True)
    with torch.no_grad():
        out = max_pool(x)
    assert torch.equal(out, expected)
    assert out.stride() == expected.stride()
    assert torch.equal(max_pool(x.requires_grad_()), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_max_pool_lets_through(value):
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 2] = value
    with torch.no_grad():
        torch.testing.assert_close(max_pool(x), F.max_pool2d(x, 2), equal_nan=True)


def test_max_pool_of_a_slice():
    x = torch.randn(2, 5, 6, 8)[:, 1:3]
    with torch.no_grad():
        assert torch.equal(max_pool(x), F.max_pool2d(x, 2))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(5, 4), (1, 2)])
def test_deconv(size, bias):
    """That of PyTorch, with its gradients, of maps large and small beside the channels."""
    torch.manual_seed(0)
    layer = Deconv(6, 3, bias).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    given = [x, *layer.parameters()]
    expected = F.conv_transpose2d(x, layer.weight, layer.bias, stride=2)
    out = layer(x)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad(out, given, grad),
        torch.autograd.grad(expected, given, grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    last = layer(x.detach().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected)


def test_deconv_takes_its_batch_norm_in():
    torch.manual_seed(0)
    up, x = Up(6, 3, bias=False), torch.randn(2, 6, 5, 4)
    up(x)
    folded = fuse_conv_bn(up.eval(), x)
    assert isinstance(folded.bn, torch.nn.Identity)
    torch.testing.assert_close(folded(x), up(x))
