"""Means, intervals, comparisons and the published programs' figures."""

import numpy as np
import pytest
import torch
from scipy import stats

from medseg.errors import UserError
from medseg.evaluation import (
    STYLES,
    ImageScore,
    StyledScores,
    class_columns,
    compare,
    differences,
    intervals,
    measure,
    read_table,
    summarise_all,
    table_rows,
    values_of,
)
from medseg.losses import IGNORE
from medseg.metrics import image_scores, summarise
from medseg.runs import RunFolder

from .golden import FOLDER, needs_golden

NAMES = ("cell body", "nucleus")


def labels(seed, noise=0.2, shape=(16, 18), classes=3):
    draw = np.random.default_rng(seed)
    target = draw.integers(classes, size=shape)
    wrong = draw.random(shape) < noise
    return np.where(wrong, draw.integers(classes, size=shape), target), target


def scores(noise=0.2, count=12, clusters=False):
    found = []
    for number in range(count):
        pred, target = labels(number, noise)
        if number % 4 == 0:
            target[target == 2] = 0
        if number == 0:
            pred[pred == 2] = 0
        cluster = f"patient {number // 3}" if clusters else ""
        group = "a" if number % 2 else "b"
        found.append(ImageScore(f"{number}.png", group, cluster, tuple(measure(pred, target, 3))))
    return found


def test_means_are_those_of_the_training():
    rows = [image_scores(*labels(number), 3) for number in range(12)]
    expected = summarise(rows)
    values = np.array(rows, float)
    mean, *each = intervals([values, values[:, :1], values[:, 1:]])
    assert (mean.mean, mean.low, mean.high) == pytest.approx(
        (expected.dice, expected.low, expected.high)
    )
    assert [one.mean for one in each] == pytest.approx(expected.class_dice)


def test_left_out_values_are_counted_and_nothing_is_nan():
    values = np.array([[np.nan, 0.5], [1.0, np.nan], [0.0, np.nan]])
    both, second, none = intervals([values, values[:, 1:], np.full((3, 1), np.nan)])
    assert (both.mean, both.values, both.left_out) == (0.5, 3, 3)
    assert (second.mean, second.low, second.high, second.left_out) == (0.5, 0.5, 0.5, 2)
    assert np.isnan([none.mean, none.low, none.high]).all() and none.left_out == 3


def test_clusters_are_drawn_whole():
    """Ten copies of each value know no more than one: the interval must not shrink."""
    values = np.random.default_rng(0).random((20, 1))
    names = [str(number) for number in range(20)]
    alone = intervals([values])[0]
    copies = intervals([np.repeat(values, 10, 0)], np.repeat(names, 10).tolist())[0]
    blind = intervals([np.repeat(values, 10, 0)])[0]
    width = alone.high - alone.low
    assert copies.high - copies.low == pytest.approx(width, rel=0.1)
    assert blind.high - blind.low < 0.5 * width


def test_difference_agrees_with_scipy():
    draw = np.random.default_rng(3)
    a = draw.random((25, 1))
    b = a - 0.05 + 0.15 * draw.standard_normal((25, 1))
    (found,) = differences([a], [b])
    gaps = (a - b).ravel()
    exact = stats.permutation_test(
        (gaps,), np.mean, permutation_type="samples", n_resamples=20_000, rng=draw
    )
    interval = stats.bootstrap((gaps,), np.mean, method="percentile", rng=draw).confidence_interval
    assert found.mean == pytest.approx(gaps.mean())
    assert found.p == pytest.approx(exact.pvalue, abs=0.012)
    width = interval.high - interval.low
    assert found.low == pytest.approx(interval.low, abs=0.1 * width)
    assert found.high == pytest.approx(interval.high, abs=0.1 * width)
    assert (found.better, found.worse) == ((gaps > 0).sum(), (gaps < 0).sum())


def test_no_difference_is_never_significant():
    a = np.random.default_rng(0).random((10, 2))
    a[3, 1] = np.nan
    (found,) = differences([a], [a])
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_p_is_even_where_nothing_differs():
    """Of 60 comparisons of equals about a twentieth falls below 0.05."""
    draw = np.random.default_rng(1)
    pairs = draw.random((2, 12, 1, 60))
    a, b = ([one[:, :, k] for k in range(60)] for one in pairs)
    found = differences(a, b)
    low = sum(one.p < 0.05 for one in found)
    assert low <= 8 and 0.35 < np.mean([one.p for one in found]) < 0.65


def test_table_is_read_as_it_was_written(tmp_path):
    found = scores(clusters=True)
    path = RunFolder(tmp_path).write_rows("t.csv", table_rows(found, NAMES))
    read, direct = read_table(path), values_of(found, NAMES)
    assert read.images == direct.images and read.clusters == direct.clusters
    np.testing.assert_allclose(read.values, direct.values, rtol=1e-6)
    assert np.isnan(read.values[0, 1]).all()


def test_summary_has_classes_groups_and_the_whole():
    document = summarise_all(scores(clusters=True), NAMES)
    assert (document["images"], document["clusters"]) == (12, 4)
    assert document["classes"]["nucleus"]["dice"]["left_out"] == 1
    assert set(document["groups"]) == {"a", "b"} and document["groups"]["a"]["images"] == 6
    alone = summarise_all(scores(), NAMES)
    assert alone["clusters"] is None
    assert alone["mean"]["dice"]["mean"] == document["mean"]["dice"]["mean"]
    assert alone["mean"]["dice"]["low"] != document["mean"]["dice"]["low"]
    pairs = [labels(number) for number in range(12)]
    big = [np.concatenate(side) for side in zip(*pairs, strict=True)]
    whole = measure(big[0], big[1], 3)
    plain = [ImageScore(f"{n}", "", "", tuple(measure(*p, 3))) for n, p in enumerate(pairs)]
    pooled = summarise_all(plain, NAMES)["dataset"]["classes"]
    for name, expected in zip(NAMES, whole, strict=True):
        assert pooled[name]["dice"] == pytest.approx(expected.dice)
        assert pooled[name]["precision"] == pytest.approx(expected.precision)


def test_comparison_pairs_by_image():
    good, bad = values_of(scores(0.1), NAMES), values_of(scores(0.5)[::-1][:10], NAMES)
    document = compare(good, bad)
    assert (document["images"], document["only_in_a"], document["only_in_b"]) == (10, 2, 0)
    dice = document["mean"]["dice"]
    assert dice["mean"] > 0.2 and dice["low"] > 0 and dice["p"] < 0.01 and dice["better"] == 10
    back = compare(bad, good)["mean"]["dice"]
    assert back["mean"] == pytest.approx(-dice["mean"]) and back["worse"] == 10
    assert set(document["classes"]) == set(NAMES)


def test_comparison_refuses_what_cannot_be_compared():
    a = values_of(scores(), NAMES)
    with pytest.raises(UserError, match="compare networks of the same classes"):
        compare(a, values_of(scores(), ("x", "y")))
    other = [ImageScore(f"other{s.image}", s.group, "", s.measures) for s in scores()]
    with pytest.raises(UserError, match="no image in common"):
        compare(a, values_of(other, NAMES))


BAD_TABLES = {
    "empty": b"",
    "header": b"image,group,dice_a\n",
    "text": b"image,group,dice_a,iou_a,precision_a,recall_a,hd95_a,nsd_a\nx,,much,1,1,1,1,1\n",
    "columns": b"image,group,dice_a\nx,,1\n",
    "twice": b"image,dice_a,iou_a,precision_a,recall_a,hd95_a,nsd_a\n" + 2 * b"x,1,1,1,1,1,1\n",
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize("content", BAD_TABLES.values(), ids=BAD_TABLES)
def test_strange_tables_are_refused(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match="no table of medseg evaluate"):
        read_table(tmp_path / "t.csv")


def styled(name, pairs, classes=3):
    collected = StyledScores(name, classes)
    for pred, target in pairs:
        collected.add(pred, target)
    return collected.figures()


@needs_golden
def test_dra_net_style_gives_the_figures_of_its_program():
    golden = np.load(FOLDER / "losses" / "dra_net.npz")
    first = styled("dra_net", [(golden["pred"][0], golden["target"][0])], 7)
    assert first["iou"] == pytest.approx(float(golden["iou_score2_first"]), rel=1e-5)
    assert first["f1"] == pytest.approx(float(golden["f1_scorex2_first"]), rel=1e-5)
    assert first["dice"] == pytest.approx(float(golden["dice_score_first"]), rel=1e-5)


def test_dpsau2_net_style_is_smoothed_by_one_and_has_a_spread():
    empty, full = np.zeros((4, 5), int), np.ones((4, 5), int)
    found = styled("dpsau2_net", [(empty, empty), (empty, full)], 2)
    assert found["iou"] == pytest.approx((1 + 1 / 21) / 2)
    assert found["iou_std"] == pytest.approx((1 - 1 / 21) / 2)
    assert found["dice"] == found["iou"]


def test_drrmsan_style_is_plain_and_nan_of_nothing():
    pairs = [labels(number, classes=2) for number in range(4)]
    expected = np.mean([image_scores(p, t, 2)[0] or 0 for p, t in pairs])
    assert styled("drrmsan", pairs, 2)["dice"] == pytest.approx(expected)
    empty = np.zeros((16, 18), int)
    assert np.isnan(styled("drrmsan", [*pairs, (empty, empty)], 2)["jaccard"])


def test_hpddrnet_style_adds_areas_and_knows_unknown_pixels():
    from torchmetrics.functional.classification import multiclass_jaccard_index

    pairs = [labels(number) for number in range(4)]
    big = [np.concatenate(side) for side in zip(*pairs, strict=True)]
    expected = multiclass_jaccard_index(
        torch.from_numpy(big[0]), torch.from_numpy(big[1]), 3, average="none"
    )
    found = styled("hpddrnet", pairs)
    assert [found[f"iou_{k}"] for k in range(3)] == pytest.approx(expected.tolist())
    assert found["miou"] == pytest.approx(expected.mean().item())
    assert found["pixel_accuracy"] == pytest.approx(100 * np.mean(big[0] == big[1]))
    strange = [(p, np.where(np.arange(18) < 9, IGNORE, t)) for p, t in pairs]
    half = [(p[:, 9:], t[:, 9:]) for p, t in pairs]
    assert styled("hpddrnet", strange) == pytest.approx(styled("hpddrnet", half))


@pytest.mark.parametrize("name", STYLES)
def test_every_style_names_its_program(name):
    assert "/" in StyledScores(name, 2).source


def test_columns_of_classes_are_words_and_no_two_alike():
    assert class_columns(["large cell", "large-cell", "a", "a_4", "a!", "!"]) == [
        "large_cell", "large_cell_2", "a", "a_4", "a_5", ""
    ]  # fmt: skip
    assert class_columns(["a", "a_3", "a!"]) == ["a", "a_3", "a_3_3"]
