"""The score against other libraries, against scipy, and by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from medseg.metrics import DEFINITION, RESAMPLES, image_scores, iou_from_dice, summarise


def test_by_hand():
    target = np.array([[0, 0, 1, 1], [0, 2, 2, 1]])
    pred = np.array([[0, 1, 1, 1], [0, 2, 0, 0]])
    assert image_scores(pred, target, 3) == [2 * 2 / 6, 2 * 1 / 3]
    assert iou_from_dice(2 / 3) == pytest.approx(0.5)


def test_both_empty_is_none_and_one_empty_is_zero():
    empty, full = np.zeros((4, 4), int), np.ones((4, 4), int)
    assert image_scores(empty, empty, 3) == [None, None]
    assert image_scores(full, empty, 3) == [0.0, None]
    assert image_scores(empty, full, 3) == [0.0, None]


def test_tensors_and_arrays_are_the_same():
    pred, target = torch.randint(0, 3, (2, 9, 7))
    expected = image_scores(pred.numpy(), target.numpy().astype(np.uint8), 3)
    assert image_scores(pred, target, 3) == expected


def test_torchmetrics_and_monai_agree():
    from monai.metrics.meandice import compute_dice
    from torchmetrics.functional.classification import multiclass_jaccard_index

    torch.manual_seed(0)
    pred, target = torch.randint(0, 4, (2, 5, 31, 17))
    hot = [torch.nn.functional.one_hot(x, 4).permute(0, 3, 1, 2) for x in (pred, target)]
    dice = compute_dice(*hot, include_background=False)
    for index in range(5):
        ours = image_scores(pred[index], target[index], 4)
        np.testing.assert_allclose(np.array(ours, float), dice[index], rtol=1e-6)
        iou = multiclass_jaccard_index(pred[index], target[index], 4, average="none")
        np.testing.assert_allclose(iou_from_dice(np.array(ours, float)), iou[1:], rtol=1e-6)


@given(st.integers(0, 10_000))
def test_dice_lies_between_zero_and_one_and_is_symmetric(seed):
    pred, target = np.random.default_rng(seed).integers(0, 3, (2, 3, 4))
    scores = image_scores(pred, target, 3)
    assert scores == image_scores(target, pred, 3)
    assert all(value is None or 0 <= value <= 1 for value in scores)
    assert all(value in (None, 1.0) for value in image_scores(pred, pred, 3))


@pytest.mark.parametrize(
    ("pred", "target", "words"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), "pred is"),
        (np.full((2, 2), 3), np.zeros((2, 2), int), "pred must hold labels 0 to 2"),
        (np.zeros((2, 2), int), np.full((2, 2), -2), "target must hold labels -1 to 2"),
    ],
)
def test_bad_labels_are_refused(pred, target, words):
    with pytest.raises(ValueError, match=words):
        image_scores(pred, target, 3)


def test_summary_by_hand():
    summary = summarise([[0.8, None], [0.6, 1.0], [None, None], [0.0, 0.5]])
    assert summary.dice == pytest.approx((0.8 + 0.6 + 1.0 + 0.0 + 0.5) / 5)
    assert summary.class_dice == pytest.approx((1.4 / 3, 0.75))
    assert summary.class_iou == pytest.approx(((0.8 / 1.2 + 0.6 / 1.4) / 3, (1 + 0.5 / 1.5) / 2))
    assert summary.left_out == (1, 2) and summary.images == 4
    assert summary.low <= summary.dice <= summary.high


def test_interval_repeats_and_agrees_with_scipy():
    values = np.random.default_rng(1).beta(8, 2, 60)
    summary = summarise([[value] for value in values])
    assert summary == summarise([[value] for value in values])
    other = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=RESAMPLES, rng=np.random.default_rng(2)
    ).confidence_interval
    width = other.high - other.low
    assert summary.low == pytest.approx(other.low, abs=0.08 * width)
    assert summary.high == pytest.approx(other.high, abs=0.08 * width)


def test_interval_draws_whole_images():
    """Two classes that always err together: twice the values, the same interval."""
    values = np.random.default_rng(1).beta(8, 2, 30).tolist()
    once, twice = summarise([[v] for v in values]), summarise([[v, v] for v in values])
    assert (once.low, once.high) == pytest.approx((twice.low, twice.high))


def test_nothing_to_score_is_nan():
    summary = summarise([[None], [None]])
    assert math.isnan(summary.dice) and math.isnan(summary.low) and math.isnan(summary.iou)
    assert summary.left_out == (2,)


def test_one_image():
    summary = summarise([[0.5, None]])
    assert summary.low == summary.dice == summary.high == 0.5


@pytest.mark.parametrize("rows", [[], [[0.5], [0.5, 0.5]]])
def test_bad_rows_are_refused(rows):
    with pytest.raises(ValueError, match="rows"):
        summarise(rows)


def test_definition_says_what_is_computed():
    for words in ("original resolution", "left out and counted", "value is 0", "95 %"):
        assert words in DEFINITION
    assert str(RESAMPLES) in DEFINITION


def test_unknown_pixels_are_left_out():
    pred = np.array([[1, 1, 2, 0]])
    assert image_scores(pred, np.array([[1, -1, -1, 0]]), 3) == [1.0, None]
    assert image_scores(pred, np.full((1, 4), -1), 3) == [None, None]
