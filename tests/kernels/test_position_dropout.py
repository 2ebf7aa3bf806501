"""Dropout of the weights of position attention: one mask, its mean, its edges."""

# pyright: reportArgumentType=false
import pytest
import torch

from medseg.kernels import position_attention, position_reference
from medseg.kernels.position import attend
from tests.kernels.position_cases import HALF, dropped, tokens

pytestmark = pytest.mark.usefixtures("no_small_position")


def test_dropout_uses_one_mask_in_both_directions(monkeypatch):
    """With v = 1 the output is the weights that stayed, so the mask can be read off it."""
    monkeypatch.setattr(attend, "BLOCK", 1500)  # several blocks
    q, k, _ = tokens(2, 70, 40, 6, 1, torch.float64)
    eye = torch.eye(40, dtype=torch.float64).expand(2, -1, -1)
    weights = dropped(q, k, eye)
    full = position_reference(q, k, eye)
    factor = weights / full
    stays = factor.unique()
    assert stays.numel() >= 2 and stays[0] == 0
    torch.testing.assert_close(factor[factor > 0], torch.full_like(factor[factor > 0], 4 / 3))
    assert abs(float((factor > 0).double().mean()) - 0.75) < 0.03

    def explicit(q, k, v):
        return ((q @ k.mT / 6**0.5).softmax(-1) * factor) @ v

    inputs = [t.requires_grad_() for t in tokens(2, 70, 40, 6, 5, torch.float64)]
    got = torch.autograd.grad(dropped(*inputs).square().sum(), inputs)
    want = torch.autograd.grad(explicit(*inputs).square().sum(), inputs)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", (torch.float32, *HALF), ids=str)
def test_dropout_keeps_the_mean(dtype):
    q, k, v = tokens(1, 64, 4096, 4, 4, dtype)
    ones = torch.ones_like(v)
    assert abs(float(dropped(q, k, ones).float().mean()) - 1) < 0.02
    assert not torch.equal(dropped(q, k, v), dropped(q, k, v, seed=4))
    assert torch.equal(dropped(q, k, v), dropped(q, k, v))


def test_dropout_gradcheck():
    inputs = [t.requires_grad_() for t in tokens(2, 6, 5, 3, 4, torch.float64)]
    assert torch.autograd.gradcheck(dropped, inputs)
    assert torch.autograd.gradgradcheck(dropped, inputs)


def test_the_reference_drops_too():
    q, k, v = tokens(1, 64, 512, 4, 4)
    torch.manual_seed(0)
    out = position_attention(q, k, torch.ones_like(v), dropout=0.5, backend="reference")
    assert out.std() > 0.01 and abs(float(out.mean()) - 1) < 0.05


@pytest.mark.parametrize("dropout", (1 - 2**-17, 1 - 2**-20, 0.9999999))
def test_dropout_near_one_drops(dropout):
    q, k, _ = tokens(1, 100, 40, 4, 4)
    out = dropped(q, k, torch.ones(1, 40, 4), dropout)
    assert int((out[..., 0] != 0).sum()) < 10


def test_second_run_gives_the_same_bits():
    for widths in ((16, 16), (4, 16)):
        inputs = [t.requires_grad_() for t in tokens(2, 300, 300, *widths)]
        runs = []
        for _ in range(2):
            out = dropped(*inputs) + position_attention(*inputs)
            runs.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
