"""The blocks of the packages themselves, where they can be imported."""

import copy

import pytest
import torch
from torch import nn

from bench.peers import AbsentError, timm_layer
from medseg import fuse

from .test_forms import check_equal, step

X = torch.randn(4, 16, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def timm(module, name):
    try:
        return timm_layer(module, name)
    except AbsentError as error:
        pytest.skip(str(error))


def check(block, training=True):
    block = block.double().train(training)
    fused = copy.deepcopy(block)
    report = fuse(fused)
    assert len(report.fused) == 1, report
    check_equal(step(fused, X), step(block, X), 1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"channels": 16}, {"kernel_size": 5}])
def test_timm_eca(options, training):
    check(timm("eca", "EcaModule")(**options), training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"radix": 1}, {"radix": 4, "bias": True}])
def test_timm_split(options, training):
    check(timm("split_attn", "SplitAttn")(16, norm_layer=nn.BatchNorm2d, **options), training)


@pytest.mark.parametrize(
    ("module", "name", "arguments", "reason"),
    [
        ("eca", "CecaModule", {}, "it pads the channels in a circle"),
        ("eca", "EcaModule", {"channels": 16, "use_mlp": True}, "conv"),
        ("eca", "EcaModule", {"gate_layer": "hard_sigmoid"}, "gate is Hard"),
        ("split_attn", "SplitAttn", {"in_channels": 16}, "bn1 is"),
        ("cbam", "SpatialAttn", {}, "no fused op has a single spatial gate"),
        ("cbam", "CbamModule", {"channels": 16}, "no fused op has a single spatial gate"),
    ],
)
def test_timm_left_alone(module, name, arguments, reason):
    report = fuse(timm(module, name)(**arguments))
    assert not report.fused and reason in report.skipped[0].reason


def test_smp_left_alone():
    modules = pytest.importorskip(
        "segmentation_models_pytorch.base.modules", exc_type=ImportError, reason="not importable"
    )
    report = fuse(modules.SCSEModule(16))
    assert report.skipped[0].reason == "no fused op has a single spatial gate"
