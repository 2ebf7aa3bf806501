"""ECA as a module: the rule for its taps, what it calls, how it is used."""

import copy

import pytest
import torch

from medseg.kernels import eca_reference
from medseg.layers import ECA


@pytest.mark.parametrize(
    ("channels", "taps"),
    [(1, 1), (7, 1), (16, 3), (32, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)],
)
def test_adaptive_taps(channels, taps):
    assert ECA(channels).conv.weight.shape == (1, 1, taps)


def test_rule_constants_and_given_taps():
    assert ECA(64, gamma=1, b=1).conv.weight.numel() == 7
    assert ECA(64, kernel_size=9).conv.weight.numel() == 9
    assert ECA(kernel_size=3).conv.bias is None
    assert list(ECA(64, bias=True).state_dict()) == ["conv.weight", "conv.bias"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "channels must be at least 1 where kernel_size is not given, got None"),
        ({"channels": 0}, "channels must be at least 1 .* got 0"),
        ({"kernel_size": 4}, "kernel_size must be odd and at least 1, got 4"),
        ({"kernel_size": -1}, "kernel_size must be odd and at least 1, got -1"),
        ({"channels": 8, "gamma": 0}, "gamma must be positive, got 0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ECA(**arguments)


@pytest.mark.parametrize("bias", [False, True])
def test_one_module_for_maps_of_any_width(bias):
    torch.manual_seed(0)
    gate = ECA(kernel_size=3, bias=bias).double()
    total = torch.zeros((), dtype=torch.float64)
    for channels in (5, 24, 1):
        x = torch.randn(2, channels, 6, 7, dtype=torch.float64)
        expected = eca_reference(x, gate.conv.weight.flatten(), gate.conv.bias).sum()
        torch.testing.assert_close(gate(x).sum(), expected)
        total = total + expected
        gate(x).sum().backward()
    grads = torch.autograd.grad(total, list(gate.parameters()))
    for parameter, grad in zip(gate.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad)  # the sum over all uses


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_layouts(dtype):
    gate = copy.deepcopy(ECA(16)).to(dtype)
    x = torch.randn(2, 16, 8, 8, dtype=dtype).to(memory_format=torch.channels_last)
    out = gate(x)
    assert out.dtype is dtype
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_autocast_keeps_parameters_in_float32():
    gate = ECA(16, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = gate(torch.randn(2, 16, 8, 8, dtype=torch.bfloat16))
    out.float().sum().backward()
    assert out.dtype is torch.bfloat16
    assert {p.grad.dtype for p in gate.parameters() if p.grad is not None} == {torch.float32}


def test_compile():
    gate = ECA(16)
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(torch.compile(gate, fullgraph=True)(x), gate(x))
