"""The figures of an image against MONAI, scipy and hand; what one empty mask counts."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from medseg.evaluation import MEASURES, measure, surface_distances
from medseg.losses import IGNORE


def blobs(seed, shape=(37, 53), classes=3):
    """Smooth labels, and the same with errors."""
    draw = np.random.default_rng(seed)
    fields = gaussian_filter(draw.standard_normal((classes, *shape)), (0, 4, 4))
    noise = gaussian_filter(draw.standard_normal((classes, *shape)), (0, 2, 2))
    return fields.argmax(0), (fields + 0.5 * noise).argmax(0)


def hot(labels, classes=3):
    planes = np.eye(classes)[labels].transpose(2, 0, 1)
    return torch.from_numpy(planes)[None]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("tolerance", "spacing"), [(2.0, 1.0), (0.5, 0.25)])
def test_monai_agrees(seed, tolerance, spacing):
    from monai.metrics.confusion_matrix import compute_confusion_matrix_metric, get_confusion_matrix
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    pred, target = blobs(seed)
    found = measure(pred, target, 3, tolerance, spacing)
    pair = hot(pred), hot(target)
    hd95 = compute_hausdorff_distance(*pair, percentile=95, spacing=spacing)[0]
    nsd = compute_surface_dice(*pair, class_thresholds=[tolerance] * 2, spacing=spacing)[0]
    matrix = get_confusion_matrix(*pair, include_background=False)
    expected = {
        "hd95": hd95,
        "nsd": nsd,
        "precision": compute_confusion_matrix_metric("precision", matrix)[0],
        "recall": compute_confusion_matrix_metric("recall", matrix)[0],
        "dice": compute_confusion_matrix_metric("f1 score", matrix)[0],
        "iou": compute_confusion_matrix_metric("threat score", matrix)[0],
    }
    for name, values in expected.items():
        ours = [getattr(one, name) for one in found]
        np.testing.assert_allclose(ours, values.numpy(), rtol=1e-5, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000), st.integers(1, 12), st.integers(1, 12))
def test_distances_are_those_of_scipy_on_the_whole_image(seed, height, width):
    """Also for regions at the rim, of a pixel, and images of one row."""
    draw = np.random.default_rng(seed)
    pred, target = draw.random((2, height, width)) < draw.random()
    pred.flat[draw.integers(pred.size)] = target.flat[draw.integers(pred.size)] = True
    eroded: list[Any] = [binary_erosion(region) for region in (pred, target)]
    edges = [pred & ~eroded[0], target & ~eroded[1]]
    fields: list[Any] = [distance_transform_edt(~edge) for edge in edges]
    expected = [fields[1][edges[0]], fields[0][edges[1]]]
    for ours, theirs in zip(surface_distances(pred, target), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_one_empty_is_a_miss_as_far_as_the_diagonal():
    full, empty = np.ones((30, 40), int), np.zeros((30, 40), int)
    for pred, target in ((full, empty), (empty, full)):
        (found,) = measure(pred, target, 2, spacing=0.5)
        assert found.hd95 == 25
        assert [getattr(found, name) for name in MEASURES if name != "hd95"] == [0.0] * 5


def test_both_empty_is_left_out():
    empty = np.zeros((30, 40), int)
    (found,) = measure(empty, empty, 2)
    assert found.values() == [None] * 6


def test_by_hand():
    target, pred = np.zeros((2, 20, 20), int)
    target[4:8, 4:8] = 1
    pred[4:8, 6:10] = 1
    (found,) = measure(pred, target, 2, tolerance=1)
    assert (found.both, found.predicted, found.true) == (8, 16, 16)
    assert (found.dice, found.iou, found.precision, found.recall) == (0.5, 1 / 3, 0.5, 0.5)
    assert found.hd95 == 2 and found.nsd == pytest.approx(16 / 24)


def test_unknown_pixels_count_for_nobody():
    pred, target = blobs(1)
    strange = target.copy()
    strange[:, :10] = IGNORE
    worse = pred.copy()
    worse[:, :10] = 2 - worse[:, :10]
    assert measure(worse, strange, 3) == measure(pred, strange, 3)
    for ours, cut in zip(
        measure(pred, strange, 3), measure(pred[:, 10:], target[:, 10:], 3), strict=True
    ):
        assert (ours.dice, ours.recall, ours.hd95) == (cut.dice, cut.recall, cut.hd95)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="must be the same"):
        measure(np.zeros((2, 3), int), np.zeros((3, 2), int), 2)
