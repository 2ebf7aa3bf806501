"""Every network as a graph: its layout, and what torch.compile makes of it.

What `torch.export` makes of it is looked at in tests/export.
"""

import copy
import shutil

import pytest
import torch

from medseg import create_model, list_models
from medseg.layers import PositionAttention

from .test_contract import CLASSES, assert_same, backward, image

SMALL = list_models("*_s")


@pytest.fixture
def model(name):
    torch.manual_seed(0)
    model = create_model(name, classes=CLASSES)
    for module in model.modules():  # what is random cannot be compared
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, PositionAttention):
            module.dropout = 0.0
    return model


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("training", [False, True])
def test_maps_are_channels_last_on_a_cpu(name, channels, training):
    """Those that convolutions read and write, of a grey image too: between them no copy is made."""
    model = create_model(name, in_channels=channels, classes=CLASSES).train(training)
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.register_forward_hook(lambda module, given, out: seen.extend([*given, out]))
    model(torch.rand(2, channels, 128, 128))  # maps of one pixel would have no layout
    assert len(seen) > 20
    assert all(each.stride(1) == 1 or min(each.shape) == 1 for each in seen)


@pytest.mark.usefixtures("no_small_position")
@pytest.mark.parametrize("name", SMALL)
def test_compile(model):
    """One graph in training and one in eval mode; what compilers make of it is left to the ops."""
    other = copy.deepcopy(model.to(torch.float64))
    x = image(model, dtype=torch.float64)
    out = backward(model, x)
    compiled = backward(torch.compile(other, fullgraph=True, backend="eager"), x)
    for a, b in zip(compiled, out, strict=True):
        assert float((a - b).abs().max()) <= 1e-9 * float(b.abs().max())
    assert_same(model, other, 1e-6)
    with torch.no_grad():
        seen = torch.compile(other.eval(), fullgraph=True, backend="eager")(x)
        torch.testing.assert_close(seen, model.eval()(x))


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++, which is not here")
@pytest.mark.parametrize("name", ["dra_net_s"])
def test_compiled_for_real(model):
    """By PyTorch's default compiler, in eval mode; the other networks are built of the same."""
    x = image(model.eval(), size=(64, 64))
    with torch.no_grad():
        out = torch.compile(model, fullgraph=True)(x)
        torch.testing.assert_close(out, model(x), rtol=1e-4, atol=1e-5)
