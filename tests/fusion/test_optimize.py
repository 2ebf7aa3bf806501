# pyright: reportOptionalOperand=false, reportCallIssue=false, reportAttributeAccessIssue=false
"""`optimize`: a copy for inference, each step verified and timed, the losing ones undone."""

import copy
import io

import pytest
import torch
from torch import nn

from medseg import optimize
from medseg.fusion import Inference, inference
from medseg.fusion.block import Fused

from .cases import Model

X = torch.linspace(-2, 2, 2 * 3 * 16 * 16).sin().view(2, 3, 16, 16)
STEPS = ["fused attention", "batch norms in convolutions", "channels_last"]


@pytest.fixture
def gaining(monkeypatch):
    """Every step gains."""
    monkeypatch.setattr(inference, "milliseconds", lambda calls, *_: [1.0, 2.0])


def test_steps_that_gain_are_kept(gaining):
    model = Model().eval()
    state, types = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    fast, report = optimize(model, X)
    assert [(s.name, s.undone) for s in report.steps] == [(name, None) for name in STEPS]
    assert all(s.error <= 1e-5 for s in report.steps)
    assert sum(isinstance(m, Fused) for m in fast.modules()) == 4
    assert isinstance(fast.model.bn, nn.Identity)  # it is in the convolution now
    assert fast.model.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert [type(m) for m in model.modules()] == types
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    torch.testing.assert_close(fast(X), model(X).detach())
    assert not fast(X.requires_grad_()).requires_grad
    X.requires_grad_(False)


def test_half_precision_takes_and_returns_float32(gaining):
    model = Model().eval()
    fast, report = optimize(model, X, torch.bfloat16)
    assert [s.name for s in report.steps] == [*STEPS[:2], "bfloat16", STEPS[2]]
    assert fast.model.stem.weight.dtype is torch.bfloat16
    assert fast(X).dtype is torch.float32
    assert (fast(X) - model(X)).abs().max() <= 2e-2 * model(X).abs().max()


def test_steps_that_lose_are_undone(monkeypatch):
    monkeypatch.setattr(inference, "milliseconds", lambda calls, *_: [2.0, 1.0])
    model = Model().eval()
    fast, report = optimize(model, X, torch.bfloat16)
    assert {s.undone for s in report.steps} == {"without it 1.0"}
    assert "undone: without it 1.0" in str(report)
    assert [type(m) for m in fast.model.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(fast(X), model(X)) and fast.model is not model


def test_steps_that_change_outputs_are_undone(gaining, monkeypatch):
    monkeypatch.setattr(inference, "HALF_TOLERANCE", 1e-9)
    model = Model().eval()
    fast, report = optimize(model, X, torch.bfloat16)
    undone = {s.name: s.undone for s in report.steps}
    assert undone["bfloat16"] == "outputs may be off by 1e-09" and undone["channels_last"] is None
    assert fast.model.stem.weight.dtype is torch.float32


class OnlyFloat(nn.Module):
    """Refuses half precision, and has nothing to fuse."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x, scale):
        if x.dtype is not torch.float32:
            raise RuntimeError("float32 only")
        return self.conv(x) * scale


def test_steps_that_do_not_run_are_undone(gaining):
    fast, report = optimize(OnlyFloat().eval(), (X, torch.tensor(2.0)), torch.bfloat16)
    undone = {s.name: s.undone for s in report.steps}
    assert undone["fused attention"] == "there is nothing to fuse"
    assert undone["bfloat16"] == "it does not run (float32 only)"
    assert fast(X, torch.tensor(2.0)).shape == (2, 4, 14, 14)


def test_report_says_how_fast():
    _, report = optimize(Model().eval(), X)
    text = str(report)
    assert "as it was" in text and "times as fast" in text and report.before > 0
    assert len(report.fusion.fused) == 4


def test_copies_and_exports(gaining):
    fast, _ = optimize(Model().eval(), X, torch.bfloat16)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded, Inference) and torch.equal(loaded(X), fast(X))
    exported = torch.export.export(fast, (X,)).module()
    torch.testing.assert_close(exported(X), fast(X), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("model", "dtype", "error", "words"),
    [
        (Model(), None, ValueError, "model must be in eval mode"),
        ("unet", None, TypeError, "model must be a torch.nn.Module, got str"),
        (
            OnlyFloat().eval(),
            torch.int8,
            ValueError,
            "dtype must be torch.bfloat16, .* got torch.int8",
        ),
    ],
)
def test_refuses(model, dtype, error, words):
    with pytest.raises(error, match=words):
        optimize(model, X, dtype)
