"""Losses by hand, under autocast, and blind to unknown pixels."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medseg.errors import UserError
from medseg.losses import IGNORE, LOSSES, build_loss, ohem_cross_entropy
from tests import golden

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
    each = logits.permute(0, 2, 3, 1)[known].sigmoid()
    logp, log1mp = each.log(), (1 - each).log()
    overlap = (probabilities * hot).sum(0)
    dice = 1 - (2 * overlap / (probabilities.sum(0) + hot.sum(0))).mean()
    ce = -own.log().mean()
    focal = -((1 - own) ** 2 * own.log()).mean()
    bce = -(hot * logp + (1 - hot) * log1mp).mean()
    smooth = 1 - ((2 * overlap + 1) / (probabilities.sum(0) + hot.sum(0) + 1)).mean()
    formulas = {"dice": dice, "ce": ce, "dice_ce": dice + ce, "focal": focal, "bce": bce}
    # 512 pixels are fewer than hpddrnet keeps at least: all but the surest count
    few = -(own.log().sum() - own.max().log()) / (len(own) - 1)
    return (formulas | {"dra_net": ce, "dpsau2_net": smooth, "drrmsan": bce, "hpddrnet": few})[name]


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
    perfect = F.one_hot(target, classes).permute(0, 3, 1, 2).float() * 80 - 40
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
    with pytest.raises(
        UserError, match=r"--loss dicey.*dice, ce, dice_ce, focal, bce, dra_net"
    ) as caught:
        build_loss("dicey", 3)
    assert caught.value.code == 2


def test_too_few_classes_are_refused():
    with pytest.raises(ValueError, match="classes must be at least 2 for dice, background"):
        build_loss("dice", 1)
    with pytest.raises(ValueError, match="classes must be at least 1 for drrmsan, the foreground"):
        build_loss("drrmsan", 0)


@pytest.mark.parametrize("name", ["bce", "dpsau2_net", "drrmsan"])
def test_one_class_is_the_foreground(name):
    """Logits of one class c are worth logits (0, c) of two under the softmax, or c alone."""
    logits, target = batch(1)
    target = (torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) > 0.7).long()
    target[:, :3] = IGNORE
    loss = build_loss(name, 1)(logits, target)
    p, t = logits[:, 0, 3:].sigmoid(), target[:, 3:].float()
    if name == "dpsau2_net":
        expected = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    else:
        expected = F.binary_cross_entropy(p, t)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", NAMES)
def test_auxiliary_outputs_are_weighed(name):
    (logits, target), weight = batch(), {"hpddrnet": 0.6, "drrmsan": 1.0}.get(name, 0.4)
    first, second = (torch.randn(logits.shape) for _ in range(2))
    loss = build_loss(name, 3)
    expected = loss(logits, target) + weight * (loss(first, target) + loss(second, target))
    torch.testing.assert_close(loss((logits, (first, second)), target), expected)
    torch.testing.assert_close(loss((logits, ()), target), loss(logits, target))


def test_drrmsan_clips_as_keras():
    """Of a sure and wrong pixel no more than log(1e7), and no gradient."""
    logits = torch.tensor([[[[80.0, -80.0]]]], requires_grad=True)
    loss = build_loss("drrmsan", 1)(logits, torch.tensor([[[0, 1]]]))
    torch.testing.assert_close(loss, torch.tensor(1e7).log())
    loss.backward()
    assert logits.grad is not None and not logits.grad.any()


def test_ohem_of_nothing_below_the_bound():
    """The authors' code divides by zero here."""
    logits = torch.tensor([5.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    assert ohem_cross_entropy(logits, torch.zeros(1, 3, 3, dtype=torch.int64)) == 0


@golden.needs_golden
@pytest.mark.parametrize("tag", ["kept_all", "thr", "minkept", "weighted06"])
def test_golden_ohem(tag):
    with np.load(golden.FOLDER / "losses" / "hpddrnet.npz") as file:
        logits = torch.from_numpy(file["ohem_logits"]).requires_grad_()
        target = torch.from_numpy(file["ohem_target"])
        value, grad = float(file[f"ohem_{tag}"]), file[f"ohem_{tag}_grad"]
        args = json.loads(str(file[f"ohem_{tag}_args"]))
    assert (target == 255).any()
    weight = args.get("class_weight")
    loss = args.get("loss_weight", 1.0) * ohem_cross_entropy(
        logits,
        target.masked_fill(target == 255, IGNORE),
        args["thres"],
        args["min_kept"],
        None if weight is None else torch.tensor(weight, dtype=torch.float64),
    )
    loss.backward()
    assert abs(loss.item() - value) <= 1e-12 * value
    assert logits.grad is not None and golden.relative(logits.grad, grad) <= 1e-10


@golden.needs_golden
@pytest.mark.parametrize("kind", ["bin", "multi"])
def test_golden_dpsau2(kind):
    with np.load(golden.FOLDER / "losses" / "dpsau2.npz") as file:
        logits = torch.from_numpy(file[f"{kind}_logits"]).requires_grad_()
        target = torch.from_numpy(file[f"{kind}_target"]).long()
        value, grad = float(file[f"{kind}_dice"]), file[f"{kind}_dice_grad"]
    target = target[:, 0] if kind == "bin" else target
    loss = build_loss("dpsau2_net", logits.shape[1])(logits, target)
    loss.backward()
    assert abs(loss.item() - value) <= 1e-12
    assert logits.grad is not None and golden.relative(logits.grad, grad) <= 1e-10


WEIGHTED = ("dice", "ce", "dice_ce", "focal", "hpddrnet")
WEIGHT = (0.5, 2.0, 0.1)


@pytest.mark.parametrize("name", WEIGHTED)
def test_equal_weights_change_nothing(name):
    logits, target = batch()
    target[:, :5] = IGNORE
    plain, equal = build_loss(name, 3), build_loss(name, 3, (1.0, 1.0, 1.0))
    torch.testing.assert_close(equal(logits, target), plain(logits, target))


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_of_classes(name):
    logits, target = batch()
    target[:, :5] = IGNORE
    known = target != IGNORE
    weight = torch.tensor(WEIGHT)
    hot = F.one_hot(target[known], 3).float()
    probabilities = logits.softmax(1).permute(0, 2, 3, 1)[known]
    own, each = (probabilities * hot).sum(1), weight[target[known]]
    overlap = (probabilities * hot).sum(0)
    dice = ((1 - 2 * overlap / (probabilities.sum(0) + hot.sum(0))) * weight).mean()
    ce = -(each * own.log()).sum() / each.sum()
    focal = -(each * (1 - own) ** 2 * own.log()).mean()
    order = own.argsort()[:-1]  # all but the surest
    ohem = -(each * own.log())[order].mean()
    expected = {"dice": dice, "ce": ce, "dice_ce": dice + ce, "focal": focal, "hpddrnet": ohem}
    loss = build_loss(name, 3, WEIGHT)(logits, target)
    torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_losses_bear_unknown_pixels_alone(name):
    logits, target = batch()
    logits.requires_grad_()
    loss = build_loss(name, 3, WEIGHT)(logits, torch.full_like(target, IGNORE))
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WEIGHTED])
def test_losses_without_weights_refuse_them_by_name(name):
    with pytest.raises(UserError, match=f"--loss {name} takes none; those that do: dice, ce") as e:
        build_loss(name, 3, WEIGHT)
    assert e.value.code == 2


def test_one_weight_for_each_class():
    with pytest.raises(ValueError, match="class_weight must have 3 values, got 2"):
        build_loss("ce", 3, (1.0, 2.0))


@pytest.mark.parametrize("name", ["bce", "dpsau2_net", "drrmsan"])
def test_a_mask_of_0_and_255_is_no_target_of_one_class(name):
    mask = torch.tensor([[[0, 255], [255, 0]]])
    logits = torch.randn(1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"got the value 255: take \(mask > 0\).long\(\)"):
        build_loss(name, 1)(logits, mask)
    assert build_loss(name, 1)(logits, (mask > 0).long()).isfinite()
