"""Training images scaled at random before their square is cut."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medseg.data import IGNORE, PatchSet, SegmentationSet, load_table
from medseg.data.cut import cut_patch

KINDS = ("patches", "squares")


@pytest.fixture
def discs(folder):
    """Four 60x80 images: a bright disc of 255 on a dark ground, class 1 where it is."""
    import cv2

    down, across = np.mgrid[:60, :80]
    for index in range(4):
        inside = (down - 30) ** 2 + (across - 35 - 3 * index) ** 2 < 8**2
        mask = np.where(inside, 255, 0).astype(np.uint8)
        assert cv2.imwrite(str(folder.root / "masks" / f"d{index}.png"), mask)
        assert cv2.imwrite(str(folder.root / "images" / f"d{index}.png"), mask)
    return load_table(folder.root)


def opened(kind, table, rescale, size=40, seed=0, **more):
    if kind == "patches":
        return PatchSet(table, table.samples, size, 2, 1.0, seed, rescale=rescale, **more)
    return SegmentationSet(table, table.samples, size, rescale=rescale, seed=seed, **more)


def area(mask):
    """Share of the disc among all pixels."""
    return (mask == 1).float().mean().item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_what_is_seen_grows_with_the_square_of_the_factor(discs, kind, factor):
    """The largest share is that of a disc which no border of the square cuts."""
    plain, scaled = (opened(kind, discs, r, size=80) for r in (None, (factor, factor)))
    found = []
    for epoch in range(6):
        scaled.set_epoch(epoch)
        found += [area(scaled[place]["mask"]) for place in range(len(scaled))]
    assert max(found) == pytest.approx(factor**2 * area(plain[0]["mask"]), rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_stays_on_its_image(discs, kind):
    data = opened(kind, discs, (0.4, 2.5))
    for epoch in (1, 2):
        data.set_epoch(epoch)
        for item in (data[place] for place in range(len(data))):
            assert item["image"].shape == (1, 40, 40) and item["mask"].shape == (40, 40)
            known = item["mask"] != IGNORE
            assert set(item["mask"].unique().tolist()) <= {IGNORE, 0, 1}
            bright = item["image"].mean(0) > 0.5
            assert (bright == (item["mask"] == 1))[known].float().mean() > 0.97


@pytest.mark.parametrize("kind", KINDS)
def test_beside_a_shrunken_image_nothing_is_known(discs, kind):
    item = opened(kind, discs, (0.25, 0.25))[0]
    known = item["mask"] != IGNORE
    wide = 20 if kind == "patches" else 10
    assert known.any(0).sum() == wide and known.any(1).sum() == round(wide * 60 / 80)
    assert item["image"].ne(item["image"][:, :1, :1]).any(0)[~known].any()  # reflected, not blank


def test_unknown_pixels_grow_and_shrink_with_the_others():
    """Mask values of a known place come back by the nearest pixel, none between them."""
    mask = np.kron(np.array([[0, 255], [7, 1]], np.uint8), np.ones((8, 8), np.uint8))
    pixels = np.repeat(mask[:, :, None], 3, 2)
    for size in (4, 16, 32):
        image, labels = cut_patch(pixels, mask, (0, 0), 16, size)
        whole = np.ones((size // 2, size // 2), np.uint8)
        np.testing.assert_array_equal(labels, np.kron([[0, 255], [7, 1]], whole))
        if size < 16:
            np.testing.assert_array_equal(image[:, :, 0], labels)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_are_drawn_anew_and_repeat(discs, kind):
    """By seed, epoch and place alone: with workers, another order, and without the cache."""

    def masks(seed=0, epoch=1, workers=None, **more):
        data = opened(kind, discs, (0.5, 2), seed=seed, **more)
        data.set_epoch(epoch)
        if workers:
            return torch.cat([batch["mask"] for batch in DataLoader(data, 2, num_workers=workers)])
        return torch.stack([data[place]["mask"] for place in reversed(range(len(data)))]).flip(0)

    first = masks()
    assert torch.equal(first, masks(workers=2)) and torch.equal(first, masks(cache_bytes=0))
    assert not torch.equal(first, masks(epoch=2)) and not torch.equal(first, masks(seed=1))
    shares = [area(mask) for epoch in range(8) for mask in masks(epoch=epoch)]
    assert max(shares) > 5 * min(filter(None, shares))


@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_of_one_changes_nothing(discs, kind):
    if kind == "patches":  # a place is drawn behind the factor: compare what has none to draw
        plain, other = (opened(kind, discs, r, size=80)[0] for r in (None, (1.0, 1.0)))
    else:
        plain, other = (opened(kind, discs, r)[0] for r in (None, (1.0, 1.0)))
    assert torch.equal(plain["image"], other["image"])
    assert torch.equal(plain["mask"], other["mask"])
