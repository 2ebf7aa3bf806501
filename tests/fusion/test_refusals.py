# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportAttributeAccessIssue=false
"""What is not certain to be equal is left alone, unchanged, and named with the reason."""

import copy
import warnings

import pytest
import torch
from torch import nn

import medseg
from bench.published import blocks, dra_net
from medseg import fuse
from medseg.fusion.block import Fused

from .cases import PLACES, C, Model, make


class Reweighed(blocks.eca_layer):
    """A subclass that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


class Renamed(blocks.eca_layer):
    """A subclass that computes the same."""


def eca_layer_of_others():
    class eca_layer(nn.Module):
        """The name and the parts of ECANet's, another formula."""

        def __init__(self):
            super().__init__()
            self.avg_pool = nn.AdaptiveAvgPool2d(1)
            self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
            self.sigmoid = nn.Sigmoid()

        def forward(self, x):
            s = self.avg_pool(x)[..., 0].mT
            return x + x * self.sigmoid(self.conv(s)).mT[..., None]

    return eca_layer()


def patched():
    block = blocks.eca_layer()
    block.forward = lambda x: x
    return block


def with_hook(path):
    block = make("triplet-landskape")
    block.get_submodule(path).register_forward_hook(lambda *_: None)
    return block


def with_(block, name, part):
    parent, _, last = name.rpartition(".")
    setattr(block.get_submodule(parent), last, part)
    return block


def quantised():
    block = blocks.eca_layer().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = torch.ao.nn.quantized.dynamic.Conv1d(1, 1, 3, padding=1, bias=False)
    block.conv = part
    return block


def parametrised():
    block = blocks.eca_layer()
    torch.nn.utils.parametrizations.weight_norm(block.conv)
    return block


LEFT = {
    "circular": (blocks.CecaModule, "pads the channels in a circle"),
    "cbam": (dra_net.SpatialGate, "no fused op has a single spatial gate"),
    "timm-cbam": (blocks.SpatialAttn, "no fused op has a single spatial gate"),
    "scse": (lambda: blocks.SCSEModule(C), "no fused op has a single spatial gate"),
    "overridden": (Reweighed, "Reweighed overrides forward"),
    "patched": (patched, "its forward was replaced"),
    "other formula": (eca_layer_of_others, "its forward computes something else than this form"),
    "hook": (lambda: with_hook("cw.conv.bn"), "cw.conv.bn has a hook"),
    "quantised": (quantised, "conv is torch.ao.nn.quantized.dynamic.modules.conv.Conv1d, not nn.C"),
    "parametrised": (parametrised, "ParametrizedConv1d, not nn.Conv1d"),
    "hard gate": (
        lambda: with_(blocks.EcaModule(), "gate", nn.Hardsigmoid()),
        "gate is Hardsigmoid, not Sigmoid",
    ),
    "mlp": (
        lambda: with_(blocks.EcaModule(), "conv2", nn.Conv1d(1, 1, 3)),
        "it has a part that the form does not, conv2",
    ),
    "even taps": (
        lambda: with_(blocks.EcaModule(), "conv", nn.Conv1d(1, 1, 4, padding=2)),
        "no odd convolution",
    ),
    "no parts": (
        lambda: with_(make("triplet-dra"), "ChannelGateW", None),
        "it has no ChannelGateW",
    ),
    "unknown parts": (
        lambda: type("TripletAttention", (nn.Module,), {})(),
        "its parts are those of no form that medseg knows",
    ),
    "sync": (
        lambda: nn.SyncBatchNorm.convert_sync_batchnorm(make("triplet-dra")),
        "SyncBatchNorm, not nn.BatchNorm2d",
    ),
    "no statistics": (
        lambda: with_(make("split-resnest"), "bn1", nn.BatchNorm2d(32, momentum=None)),
        "bn1 lacks parameters, running statistics or a momentum",
    ),
    "no norm": (lambda: blocks.SplAtConv2d(C, C, norm_layer=None), "it has no bn0"),
    "activation": (lambda: blocks.SplitAttn(C, act=nn.SiLU), "act0 is SiLU, not ReLU"),
    "dropped": (
        lambda: with_(blocks.SplitAttn(C), "drop", nn.Dropout2d()),
        "drop is Dropout2d, not Identity",
    ),
    "radix": (lambda: blocks.SplAtConv2d(20, 20, radix=5), "its radix is 5, the fused op takes 1"),
    "softmax": (
        lambda: with_(blocks.CAM_Module(), "softmax", nn.Softmax(1)),
        "softmax is over axis 1, not -1",
    ),
    "trained stencil": (lambda: blocks.sharpening(C, trained=True), "its weights are trained"),
    "own attribute": (
        lambda: with_(blocks.eca_layer(), "backend", "mine"),
        "it has an attribute backend of its own",
    ),
    "own layer": (lambda: medseg.layers.ECA(C), "it is medseg's own layer, which is fused"),
    "scripted": (
        lambda: torch.jit.script(blocks.EcaModule()),
        "it is scripted; fuse the model before torch.jit.script",
    ),
    "stencil on meta": (
        lambda: blocks.sharpening(C).to("meta"),
        "its weights are on the meta device, and what it computes hangs on their values",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_is_left_alone(name):
    make_block, reason = LEFT[name]
    block = make_block()
    cls, state = type(block), {**vars(block)}
    report = fuse(nn.Sequential(nn.ReLU(), block))
    assert not report.fused
    (skipped,) = report.skipped
    assert skipped.path == "1" and reason in skipped.reason
    assert skipped.reason in " ".join(str(report).split())
    assert type(block) is cls and vars(block) == state


def test_class_whose_forward_was_replaced(monkeypatch):
    monkeypatch.setattr(blocks.eca_layer, "forward", lambda self, x: x)
    assert "forward of eca_layer was replaced" in fuse(blocks.eca_layer()).skipped[0].reason


def test_subclass_that_inherits_its_forward_is_fused():
    assert fuse(Renamed()).fused[0].kind == "Renamed"


def test_nothing_to_fuse_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    types = [type(m) for m in model.modules()]
    report = fuse(model, verify=torch.zeros(1, 3, 8, 8))
    assert (report.fused, report.skipped) == ([], [])
    assert str(report) == "Nothing to fuse: the model has no attention block that medseg knows."
    assert [type(m) for m in model.modules()] == types


def test_fused_already():
    model = Model()
    fuse(model)
    report = fuse(model)
    assert not report.fused
    assert {s.reason for s in report.skipped} == {"it is fused already"}
    assert "Nothing was fused" in str(report)


def test_the_whole_model_scripted():
    model = torch.jit.script(nn.Sequential(nn.Conv2d(3, C, 1), blocks.EcaModule()))
    assert "it is scripted" in fuse(model).skipped[0].reason


def test_meta_device():
    """What does not hang on values is fused before there are any."""
    with torch.device("meta"):
        model = Model()
    report = fuse(model)
    assert [f.path for f in report.fused] == PLACES[:3]
    real = Model()
    state = real.state_dict()
    model.to_empty(device="cpu").load_state_dict(state)
    real.eval()
    model.eval()
    model.sharp.weight.requires_grad_(False)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), real(x))


def test_ops():
    model = Model()
    report = fuse(model, ops=["eca", "mde"])
    assert [f.path for f in report.fused] == ["eca", "sharp"]
    assert report.skipped[0].reason == "its op, split, is not among the ops asked for"
    assert sum(isinstance(m, Fused) for m in model.modules()) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"model": "dra_net"}, TypeError, "model must be a torch.nn.Module, got str"),
        (
            {"ops": ["ecca"]},
            ValueError,
            r"ops must be a list of some of eca, mde, .* got \['ecca'\]",
        ),
        ({"ops": "eca"}, ValueError, "got 'eca'"),
        ({"backend": "gpu"}, ValueError, "backend must be one of cpu, cuda, .* got 'gpu'"),
        ({"backend": "cuda"}, RuntimeError, "backend 'cuda' cannot run eca: cuda needs a CUDA"),
    ],
)
def test_wrong_arguments(arguments, error, words):
    model = Model()
    with pytest.raises(error, match=words):
        fuse(**{"model": model, **arguments})
    assert not any(isinstance(m, Fused) for m in model.modules())


def test_backend_is_named_to_every_op():
    model = Model()
    report = fuse(model, backend="reference")
    assert {f.backend for f in report.fused} == {"reference"}
    from tests.models.watch import Ops

    with Ops() as ops:
        model(torch.randn(2, 3, 8, 8))
    assert not ops.fused


def test_a_norm_converted_later_goes_through_the_original():
    """So does a layer that gets a hook, a parametrisation or another class."""
    plain = make("triplet-landskape")
    fused = copy.deepcopy(plain)
    fuse(fused)
    called = []
    for block in (plain, fused):
        block.hw.conv.conv.register_forward_hook(lambda *_: called.append(1))
        block.cw.conv.bn = nn.BatchNorm2d(1, track_running_stats=False)
    x = torch.randn(2, C, 6, 7)
    torch.testing.assert_close(fused(x), plain(x))
    assert len(called) == 2
