# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportAttributeAccessIssue=false
"""`fuse(verify=...)`: a difference is found, named and undone; times and memory are reported."""

import copy

import pytest
import torch
from torch import nn

from medseg import fuse
from medseg.fusion import forms, results
from medseg.fusion.block import Fused

from .cases import FORMS, PLACES, C, Model, make


class Tokens(nn.Module):
    """Behind a block, maps again where it returned tokens."""

    def __init__(self, block):
        super().__init__()
        self.before, self.block, self.head = nn.Conv2d(3, C, 1), block, nn.Conv2d(C, 2, 1)

    def forward(self, x):
        x = self.before(x)
        y = self.block(x)
        y = y if y.dim() == 4 else y.mT.reshape(x.shape)
        return {"logits": self.head(y[:, :C])}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_agrees(name, training):
    model = Tokens(make(name)).train(training)
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    report = fuse(model, verify=torch.randn(4, 3, 16, 12))
    drawn = torch.rand(3)
    assert [f.path for f in report.fused] == ["block"]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    torch.manual_seed(5)
    torch.randn(4, 3, 16, 12)
    assert torch.equal(drawn, torch.rand(3))  # the generator is where it was


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    model = Model().to(dtype)
    model.sharp.weight.requires_grad_(False)
    assert len(fuse(model, verify=torch.randn(4, 3, 12, 16, dtype=dtype)).fused) == 4


def test_report():
    report = fuse(Model().eval(), verify=torch.randn(2, 3, 32, 32))
    assert [f.path for f in report.fused] == PLACES
    assert report.step == "inference" and report.before.ms > 0 and report.after.ms > 0
    triplet = report.fused[2]
    assert triplet.before.ms > 0 and triplet.before.mb > triplet.after.mb > 0
    words = str(report).split()
    for word in (
        "deep.2",
        "TripletAttention",
        "cpu",
        "before",
        "after",
        f"{triplet.before.ms:.2f}",
    ):
        assert word in words
    assert "inference of the whole model:" in str(report)


def test_training_step_and_blocks_that_do_not_run():
    model = Model().train()
    model.idle = make("eca-timm")
    report = fuse(model, verify=(torch.randn(4, 3, 8, 8),))
    assert report.step == "training step"
    assert report.fused[-1].path == "idle" and report.fused[-1].before is None
    assert "not run" in str(report)


@pytest.mark.parametrize("training", [True, False])
def test_a_wrong_output_is_found(monkeypatch, training):
    right = forms.FusedTriplet.fused

    def wrong(self, x):
        return right(self, x) * (1.0 if x.dtype is torch.float64 else 1.001)

    monkeypatch.setattr(forms.FusedTriplet, "fused", wrong)
    check_restored(Model().train(training), r"worst layer is deep\.2 \(TripletAttention\), off by")


def test_a_wrong_gradient_is_found(monkeypatch):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * 1.01

    right = forms.FusedSplit.fused

    def wrong(self, x):
        out = right(self, x)
        return out if x.dtype is torch.float64 else Wrong.apply(out)

    monkeypatch.setattr(forms.FusedSplit, "fused", wrong)
    check_restored(Model().eval(), r"worst layer is deep\.0 \(SplAtConv2d\), off by")


def check_restored(model, words):
    state = copy.deepcopy(model.state_dict())
    types = [type(m) for m in model.modules()]
    with pytest.raises(RuntimeError, match=words):
        fuse(model, verify=torch.randn(4, 3, 12, 12))
    assert [type(m) for m in model.modules()] == types
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_an_input_that_does_not_fit_restores_the_model():
    model = Model()
    with pytest.raises(RuntimeError, match="expected input"):
        fuse(model, verify=torch.randn(1, 5, 8, 8))
    assert not any(isinstance(m, Fused) for m in model.modules())


def test_distance():
    nan, inf = float("nan"), float("inf")
    a = torch.tensor([1.0, nan, inf, -4.0])
    assert results.distance(a, a.clone()) == 0
    assert results.distance(a, torch.tensor([2.0, nan, inf, -4.0])) == 0.25
    assert results.distance(a, torch.tensor([1.0, 2.0, inf, -4.0])) == inf
    assert results.distance(torch.zeros(0), torch.zeros(0)) == 0
