"""Convolutions that swallow the batch norm behind them: the same outputs, and only where exact."""

import copy

import pytest
import torch
from torch import nn

import medseg
from bench.published.dra_net import DRANet
from medseg import fuse_conv_bn
from medseg.fusion.block import fused_blocks
from medseg.layers import SplitAttention, TripletAttention
from medseg.models.blocks import ConvNorm

from .watch import Ops


def shaken(model):
    """With batch norms that do something, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in module.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def norms(model):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@pytest.mark.parametrize("name", medseg.list_models("*_s"))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_networks(name, dtype):
    torch.manual_seed(0)
    model = shaken(medseg.create_model(name, classes=3)).to(dtype)
    before = copy.deepcopy(model.state_dict())
    x = torch.rand(2, 3, *(model.legal_size(s) for s in (32, 64))).to(dtype)
    folded = fuse_conv_bn(model)
    with torch.no_grad(), Ops() as ops:
        expected, out = model(x), folded(x)
    tolerance = 1e-11 if dtype is torch.float64 else 1e-4
    assert float((out - expected).abs().max()) <= tolerance * float(expected.abs().max())
    assert norms(folded) < norms(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert ops.fused  # the fused ops still run


def test_every_pair_of_dra_net():
    """Two in each of nine double convolutions and one behind each of four deconvolutions."""
    model = medseg.create_model("dra_net_s").eval()
    attention = sum(norms(m) for m in model.modules() if isinstance(m, TripletAttention))
    assert norms(model) == 22 + attention
    assert norms(fuse_conv_bn(model)) == attention


def test_folded_compiles_and_exports():
    model = fuse_conv_bn(shaken(medseg.create_model("dra_net_s")))
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        out = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="eager")(x)
        torch.testing.assert_close(compiled, out)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), out)


def check(model, shape, folded_norms):
    model, x = shaken(model).double(), torch.rand(shape, dtype=torch.float64)
    folded = fuse_conv_bn(model, x)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    assert norms(model) - norms(folded) == folded_norms


@pytest.mark.parametrize(
    ("layers", "folded_norms"),
    [
        ([nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)], 1),
        ([nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False)], 1),
        ([nn.ConvTranspose2d(4, 6, 2, 2), nn.BatchNorm2d(6), nn.ReLU(inplace=True)], 1),
        ([nn.ConvTranspose2d(4, 6, 2, 2, groups=2), nn.BatchNorm2d(6)], 0),
        ([nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)], 0),
        ([nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)], 0),
        ([nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(6)], 0),
        ([nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)], 0),
        ([ConvNorm(4, 4, dilation=2), ConvNorm(4, 6, groups=2, stride=2, act=False)], 2),
        ([SplitAttention(4)], 0),
    ],
)
def test_pairs(layers, folded_norms):
    check(nn.Sequential(*layers), (2, 4, 8, 10), folded_norms)


class Twice(nn.Module):
    """A convolution whose output is also used beside the norm, or itself called twice."""

    def __init__(self, again):
        super().__init__()
        self.conv, self.bn, self.again = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), again

    def forward(self, x):
        y = self.conv(x)
        if self.again == "conv":
            return self.bn(y) + self.conv(x * 2)
        if self.again == "bn":
            return self.bn(y) + self.bn(x)
        return self.bn(y) + y[:, :, :1]


@pytest.mark.parametrize("again", ["conv", "bn", "output"])
def test_shared_modules_and_outputs_stay(again):
    check(Twice(again), (2, 4, 5, 6), 0)


def test_refuses():
    with pytest.raises(ValueError, match="model must be in eval mode"):
        fuse_conv_bn(medseg.create_model("dra_net_s"))
    with pytest.raises(ValueError, match="example must be given"):
        fuse_conv_bn(nn.Sequential(nn.Conv2d(3, 3, 1)).eval())


def test_folding_twice_changes_nothing():
    model = medseg.create_model("dra_net_s", classes=3).eval()
    once = fuse_conv_bn(model)
    twice = fuse_conv_bn(once)
    x = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(twice(x), once(x))


def test_fused_blocks_stay_fused():
    """Their parts are left as they are: a block with others runs its original forward."""
    model = DRANet(3, 2, 8).eval()
    x = torch.rand(1, 3, 32, 32)
    medseg.fuse(model)
    folded = fuse_conv_bn(model, x)
    blocks = [block for _, block in fused_blocks(folded)]
    assert len(blocks) == 4 and all(block.why_not(block) is None for block in blocks)
    assert norms(folded) == sum(norms(block) for block in blocks) < norms(model)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
