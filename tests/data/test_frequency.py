"""Median frequency weights, against the formula by hand."""

import cv2
import numpy as np
import pytest

from medseg.data import load_table, median_frequency_weights


def folder_of(folder, *rows_of_each):
    """Masks 10 wide: (rows of 0, of 1, of 2, of 9) from the top."""
    for index, rows in enumerate(rows_of_each):
        mask = np.repeat(np.array([0, 1, 2, 9], np.uint8), rows)[:, None].repeat(10, 1)
        folder.image(f"a{index}.png", len(mask), 10)
        assert cv2.imwrite(str(folder.root / "masks" / f"a{index}.png"), mask)
    return folder.root


def test_formula(folder):
    root = folder_of(folder, (8, 1, 1, 0), (6, 4, 0, 0))
    table = load_table(root)
    frequency = np.array([14 / 20, 5 / 20, 1 / 10])  # class 2 is in the first image alone
    expected = np.median(frequency) / frequency
    weights = median_frequency_weights(table, table.samples)
    np.testing.assert_allclose(weights, expected / expected.mean())
    assert np.mean(weights) == pytest.approx(1)


def test_unknown_pixels_do_not_count(folder):
    root = folder_of(folder, (8, 1, 1, 10), (6, 4, 0, 20))
    table = load_table(root, ignore=9)
    frequency = np.array([14 / 20, 5 / 20, 1 / 10])
    expected = np.median(frequency) / frequency
    weights = median_frequency_weights(table, table.samples)
    np.testing.assert_allclose(weights, expected / expected.mean())


def test_class_that_does_not_occur_counts_as_the_median(folder):
    root = folder_of(folder, (8, 1, 1, 0), (6, 4, 0, 0))
    table = load_table(root)
    weights = median_frequency_weights(table, table.samples[1:])
    raw = np.array([0.5 / 0.6, 0.5 / 0.4, 1.0])
    np.testing.assert_allclose(weights, raw / raw.mean())
