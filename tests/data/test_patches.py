"""Patches: where they lie, how often on the foreground, and that they repeat."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from medseg.data import IGNORE, PatchSet, load_table, patches_to_cover, read_image, read_mask
from medseg.data.cache import UNKNOWN
from medseg.data.cut import cut_patch

from .conftest import SHARED


@pytest.fixture
def rare(folder):
    """Two 64x80 images: class 1 is half of each, class 2 four pixels of the first."""
    for index in range(2):
        folder.image(f"a{index}.png", 64, 80)
        mask = np.zeros((64, 80), np.uint8)
        mask[:, 40:] = 128
        if index == 0:
            mask[50:52, 60:62] = 255
        assert cv2.imwrite(str(folder.root / "masks" / f"a{index}.png"), mask)
    folder.text("split.csv", "image,mask,split", "a0.png,a0.png,train", "a1.png,a1.png,val")
    return load_table(folder.root)


def test_a_patch_is_a_part_of_its_image(rare):
    data = PatchSet(rare, rare.samples, size=16, patches=3)
    assert len(data) == 6
    for place in range(6):
        item = data[place]
        assert item["index"] == place // 3
        assert item["image"].shape == (3, 16, 16) and item["image"].dtype == torch.float32
        assert item["mask"].shape == (16, 16) and item["mask"].dtype == torch.int64
        sample = rare.samples[place // 3]
        pixels, mask = read_image(sample.image), read_mask(sample.mask, rare)
        found = cv2.matchTemplate(
            pixels, (item["image"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), 1
        )
        assert found.min() < 1e-6
        row, column = np.unravel_index(found.argmin(), found.shape)
        labels = mask[row : row + 16, column : column + 16]
        np.testing.assert_array_equal(item["mask"].numpy(), labels)


@pytest.mark.parametrize(("foreground", "low", "high"), [(0.0, 0, 0.1), (0.5, 0.2, 0.35)])
def test_the_rare_class_is_seen(rare, foreground, low, high):
    """Half of the patches forced, and half of those on class 2, in the image that has it."""
    data = PatchSet(rare, rare.samples, size=8, patches=400, foreground=foreground)
    share = np.mean([bool((data[place]["mask"] == 2).any()) for place in range(400)])
    assert low <= share <= high
    assert not any((data[place]["mask"] == 2).any() for place in range(400, 800))


def test_forced_patches_are_centred(rare):
    data = PatchSet(rare, rare.samples, size=9, patches=40, foreground=1.0)
    masks = torch.stack([data[place]["mask"] for place in range(80)])
    inside = masks[(masks == 0).any((1, 2)) & (masks == 1).any((1, 2))]
    assert (masks[:, 4, 4] > 0).float().mean() > 0.8  # the others were moved in from the rim
    assert (masks > 0).any((1, 2)).all() and len(inside)


def test_draws_depend_on_seed_epoch_and_index_alone(rare):
    def items(seed=0, epoch=1, places=range(6), workers=0, cache=1 << 30):
        data = PatchSet(rare, rare.samples, 16, 3, seed=seed, cache_bytes=cache)
        data.set_epoch(epoch)
        if workers:
            return torch.cat([batch["image"] for batch in DataLoader(data, 2, num_workers=workers)])
        return torch.stack([data[place]["image"] for place in places])

    first = items()
    assert torch.equal(first, items()) and torch.equal(first, items(workers=2))
    assert torch.equal(first, items(cache=0))
    assert torch.equal(first.flip(0), items(places=range(5, -1, -1)))
    assert not torch.equal(first, items(epoch=2)) and not torch.equal(first, items(seed=1))
    assert len({tuple(one.flatten().tolist()) for one in first}) == 6


def test_living_workers_see_the_next_epoch(rare):
    data = PatchSet(rare, rare.samples, 16, 3)
    loader = DataLoader(data, 6, num_workers=1, persistent_workers=True)
    seen = []
    for epoch in (1, 2, 1):
        data.set_epoch(epoch)
        seen.append(next(iter(loader))["image"])
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])


@settings(max_examples=80, deadline=None)
@given(
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    corner=st.tuples(st.integers(-50, 50), st.integers(-50, 50)),
    side=st.integers(1, 48),
    size=st.integers(1, 48),
    channels=st.sampled_from([1, 3]),
)
def test_any_image_gives_a_whole_square(sides, corner, side, size, channels):
    pixels = np.full((*sides, channels), 7, np.uint16)
    image, mask = cut_patch(pixels, np.ones(sides, np.uint8), corner, side, size)
    assert image.shape == (size, size, channels) and (image == 7).all()
    high, wide = (max(1, round(min(side, each) * size / side)) for each in sides)
    known = high * wide
    assert (mask == 1).sum() == known and (mask == UNKNOWN).sum() == size**2 - known


def test_beside_a_small_image_nothing_is_known(small):
    table = load_table(small.root)
    item = PatchSet(table, table.samples, 32, 1)[0]
    assert (item["mask"][:6] == IGNORE).all() and (item["mask"][6:26, 4:28] >= 0).all()
    pixels = read_image(table.samples[0].image)
    np.testing.assert_array_equal(
        item["image"][:, 6:26, 4:28].numpy(), np.float32(pixels.transpose(2, 0, 1)) / 255
    )


def test_wrong_numbers_are_refused(rare):
    for size, patches, foreground in ((0, 1, 0.3), (8, 0, 0.3), (8, 1, 1.1)):
        with pytest.raises(ValueError, match=f"got {size}, {patches} and {foreground}"):
            PatchSet(rare, rare.samples, size, patches, foreground)


def test_patches_to_cover(rare):
    assert patches_to_cover(rare.samples, 64) == 2  # 64x80
    assert patches_to_cover(rare.samples, 16) == 20
    assert patches_to_cover(rare.samples, 100) == 1


def test_small_precipitates_of_the_superalloy():
    root = SHARED / "superalloy_sem"
    if not root.is_dir():
        pytest.skip("the real set superalloy_sem is not beside the checkout, in ../shared/data")
    table = load_table(root)
    shares = []
    for foreground in (0.0, 1.0):
        data = PatchSet(table, table.part("train"), 128, 8, foreground)
        masks = torch.stack([data[place]["mask"] for place in range(len(data))])
        shares.append((masks == 2).float().mean().item())
    assert 0.01 < shares[0] < 0.035 and shares[1] > 1.15 * shares[0]
