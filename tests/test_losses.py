"""Losses by hand, under autocast, and blind to unknown pixels."""

import pytest
import torch
import torch.nn.functional as F

from medseg.errors import UserError
from medseg.losses import IGNORE, LOSSES, build_loss

NAMES = sorted(LOSSES)


def batch(classes=3, size=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, size, size, generator=generator, dtype=torch.float32).to(dtype)
    target = torch.randint(0, classes, (2, size, size), generator=generator)
    return logits, target


def by_hand(name, logits, target):
    """The same formulas on the known pixels only."""
    known = target != IGNORE
    probabilities = logits.softmax(1).permute(0, 2, 3, 1)[known]  # (M, K)
    hot = F.one_hot(target[known], logits.shape[1]).float()
    own = (probabilities * hot).sum(1)
    overlap = (probabilities * hot).sum(0)
    dice = 1 - (2 * overlap / (probabilities.sum(0) + hot.sum(0))).mean()
    ce = -own.log().mean()
    focal = -((1 - own) ** 2 * own.log()).mean()
    return {"dice": dice, "ce": ce, "dice_ce": dice + ce, "focal": focal}[name]


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_formula(name, ignored):
    logits, target = batch()
    if ignored:
        target[:, :5] = IGNORE
        target[0] = IGNORE
    loss = build_loss(name, 3)(logits, target)
    assert loss.shape == () and loss.dtype == torch.float32
    torch.testing.assert_close(loss, by_hand(name, logits, target), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_pixels_have_no_gradient(name):
    logits, target = batch()
    target[:, :, :4] = IGNORE
    logits.requires_grad_()
    build_loss(name, 3)(logits, target).backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, :, :4].any() and logits.grad[:, :, :, 4:].any()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_known_is_finite(name):
    logits, target = batch()
    logits.requires_grad_()
    loss = build_loss(name, 3)(logits, torch.full_like(target, IGNORE))
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_float32_under_autocast(name):
    logits, target = batch(dtype=torch.bfloat16)
    expected = build_loss(name, 3)(logits.float(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = build_loss(name, 3)(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("name", NAMES)
def test_perfect_is_near_zero_and_falls_by_descent(name, classes):
    logits, target = batch(classes)
    loss = build_loss(name, classes)
    perfect = F.one_hot(target, classes).permute(0, 3, 1, 2).float() * 40
    assert loss(perfect, target) < 1e-3
    logits.requires_grad_()
    before = loss(logits, target)
    (gradient,) = torch.autograd.grad(before, logits)
    assert loss(logits - 10 * gradient, target) < before


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_not_hidden(name):
    logits, target = batch()
    logits[0, 0, 0, 0] = float("nan")
    assert build_loss(name, 3)(logits, target).isnan()


def test_unknown_name_lists_the_known():
    with pytest.raises(UserError, match=r"--loss dicey.*dice, ce, dice_ce, focal") as caught:
        build_loss("dicey", 3)
    assert caught.value.code == 2


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="classes must be at least 2"):
        build_loss("dice", 1)
