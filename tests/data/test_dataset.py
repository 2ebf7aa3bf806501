"""Reading, fitting into the square, and the way back."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from medseg.data import IGNORE, SegmentationSet, load_table, read_image, to_labels, to_original
from medseg.data.geometry import fit_image, fit_mask, letterbox
from medseg.errors import UserError

from .conftest import SHARED

sides = st.integers(1, 60)


def one_hot(mask, classes):
    """Logits that are sure of ``mask``; unknown pixels say nothing."""
    hot = torch.nn.functional.one_hot(torch.from_numpy(mask).long().clamp(0), classes)
    return hot.permute(2, 0, 1).float() * 50


def test_sixteen_bit_is_kept(folder):
    for index in range(2):
        folder.mask(f"a{index}.png")
        folder.image(f"a{index}.png", channels=1, dtype=np.uint16)
    pixels = read_image(folder.root / "images" / "a0.png")
    assert pixels.dtype == np.uint16 and pixels.shape == (20, 24, 1) and pixels.max() > 255
    table = load_table(folder.root)
    item = SegmentationSet(table, table.samples, size=24)[0]["image"]
    np.testing.assert_array_equal(item[0, 2:-2].numpy(), np.float32(pixels[:, :, 0]) / 65535)


def test_sixteen_bit_mask_values(folder):
    for index in range(2):
        folder.pair(f"a{index}", values=(0, 1000, 40000), dtype=np.uint16)
    table = load_table(folder.root)
    assert table.values == (0, 1000, 40000)
    assert SegmentationSet(table, table.samples, 24)[0]["mask"].unique().tolist() == [-1, 0, 1, 2]


def test_channels_are_red_first_and_alpha_is_dropped(folder):
    pixels = folder.image("a.png", channels=4)
    read = read_image(folder.root / "images" / "a.png")
    np.testing.assert_array_equal(read, pixels[:, :, 2::-1])
    gray = folder.image("b.png", channels=1)
    read = read_image(folder.root / "images" / "b.png", channels=3)
    np.testing.assert_array_equal(read, np.repeat(gray[:, :, None], 3, 2))
    assert read_image(folder.root / "images" / "a.png", channels=1).shape == (20, 24, 1)


def test_unreadable_image_is_named(folder):
    with pytest.raises(UserError, match=r"none\.png cannot be read"):
        read_image(folder.root / "images" / "none.png")


def test_item(small):
    table = load_table(small.root)
    item = SegmentationSet(table, table.samples, size=24)[3]
    assert item["image"].shape == (3, 24, 24) and item["image"].dtype == torch.float32
    assert item["mask"].shape == (24, 24) and item["mask"].dtype == torch.int64
    assert item["index"] == 3
    pixels = read_image(table.samples[3].image)
    np.testing.assert_array_equal(
        item["image"][:, 2:-2].numpy(), np.float32(pixels.transpose(2, 0, 1)) / 255
    )
    assert (item["mask"][:2] == IGNORE).all() and (item["mask"][-2:] == IGNORE).all()
    assert (item["mask"][2:-2] >= 0).all()
    assert torch.equal(item["image"][:, 1], item["image"][:, 2])  # reflected


@pytest.mark.parametrize("cache_bytes", [0, 24 * 24 * 5 * 2 + 1, 1 << 30])
def test_cache_changes_nothing(small, cache_bytes):
    table = load_table(small.root)
    kept = SegmentationSet(table, table.samples, 24)
    other = SegmentationSet(table, table.samples, 24, cache_bytes=cache_bytes)
    for index in range(len(kept)):
        for key in ("image", "mask"):
            assert torch.equal(kept[index][key], other[index][key])


def test_items_do_not_share_memory_with_the_cache(small):
    table = load_table(small.root)
    data = SegmentationSet(table, table.samples, 24)
    for key in ("image", "mask"):
        data[0][key].zero_()
    assert data[0]["image"].any() and data[0]["mask"].any()


def test_size_is_checked(small):
    with pytest.raises(ValueError, match="size"):
        SegmentationSet(load_table(small.root), [], size=0)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_workers_read_the_same(small, cache_bytes):
    table = load_table(small.root)
    data = SegmentationSet(table, table.samples, 24, cache_bytes=cache_bytes)
    batches = [next(iter(DataLoader(data, 6, num_workers=count))) for count in (0, 2)]
    assert torch.equal(batches[0]["image"], batches[1]["image"])
    assert batches[0]["index"].tolist() == list(range(6))


@pytest.mark.parametrize("shape", [(2, 5, 7), (255, 3, 4), (3, 4, 6, 5)])
def test_labels_are_the_first_of_the_most_probable(shape):
    """Among few values many are equal; a pixel that is not a number is background."""
    found = torch.randint(0, 3, shape).float()
    found[..., 0, 0] = torch.nan
    labels = to_labels(found)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, found.numpy().argmax(-3))


@given(height=sides, width=sides, size=st.integers(1, 64))
def test_letterbox_lies_inside(height, width, size):
    box = letterbox(height, width, size)
    assert box.top >= 0 and box.top + box.height <= size
    assert box.left >= 0 and box.left + box.width <= size
    assert max(box.height, box.width) == size


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides, seed=st.integers(0, 99))
def test_round_trip_is_exact_where_nothing_shrinks(height, width, seed):
    mask = np.random.default_rng(seed).integers(0, 3, (height, width), dtype=np.uint8)
    for size in (max(height, width), 3 * max(height, width)):
        square = fit_mask(mask, size)
        back = to_original(one_hot(square, 3), height, width)
        np.testing.assert_array_equal(back.argmax(0).numpy(), mask)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(20, 200), width=st.integers(20, 200), size=st.integers(16, 128))
def test_round_trip_keeps_shapes_in_place(height, width, size):
    """A disc that went through the square lies on itself: no shift by any rounding."""
    rows, columns = np.mgrid[:height, :width]
    disc = np.hypot((rows - height / 2) / height, (columns - width / 3) / width) < 0.3
    square = fit_mask(disc.astype(np.uint8), size)
    back = to_original(one_hot(square, 2), height, width).argmax(0).numpy().astype(bool)
    pixel = max(1.0, max(height, width) / size)
    edge = cv2.morphologyEx(disc.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3)))
    assert (back != disc).sum() <= 0.75 * pixel * edge.sum()
    if min(disc.sum(), back.sum()) > 50 and min(height, width) * size / max(height, width) > 16:
        shift = np.argwhere(back).mean(0) - np.argwhere(disc).mean(0)
        assert np.abs(shift).max() <= 0.5 * pixel


@given(height=sides, width=sides, channels=st.sampled_from([1, 3]), size=st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_fit_image_any_shape(height, width, channels, size):
    image = np.full((height, width, channels), 7, np.uint16)
    square = fit_image(image, size)
    assert square.shape == (size, size, channels) and square.dtype == np.uint16
    assert (square == 7).all()


def test_to_original_gives_probabilities():
    back = to_original(torch.randn(3, 32, 32, dtype=torch.bfloat16), 20, 50)
    assert back.shape == (3, 20, 50) and back.dtype == torch.float32
    torch.testing.assert_close(back.sum(0), torch.ones(20, 50))
    with pytest.raises(ValueError, match=r"logits must be \(K, size, size\)"):
        to_original(torch.zeros(3, 32, 31), 20, 50)


def test_several_images_go_back_as_one_does():
    logits = torch.randn(5, 4, 32, 32)
    back = to_original(logits, 20, 50)
    for one, found, labels in zip(logits, back, to_labels(back), strict=True):
        assert torch.equal(to_original(one, 20, 50), found)
        assert np.array_equal(found.argmax(0), labels) and labels.dtype == np.uint8


def test_of_equal_classes_the_first_is_taken():
    even = torch.full((3, 2, 2), 1 / 3)
    even[1, 0, 0] = even[2, 0, 0] = 0.5
    assert to_labels(even).tolist() == [[1, 0], [0, 0]]
    assert (to_labels(torch.full((3, 2, 2), torch.nan)) == 0).all()


def test_real_images_and_masks_fit(real_table):
    table = real_table
    data = SegmentationSet(table, table.samples[:8], 128)
    for item in (data[index] for index in range(8)):
        assert item["image"].min() >= 0 and 0 < item["image"].max() <= 1
        assert item["mask"].min() >= -1 and item["mask"].max() < len(table.names)


def test_real_masks_survive_the_square():
    from medseg.data import read_mask
    from medseg.metrics import image_scores, summarise

    root = SHARED / "wbc_tecom"
    if not root.is_dir():
        pytest.skip("the real set wbc_tecom is not beside the checkout, in ../shared/data")
    table = load_table(root)
    rows = []
    for sample in table.part("val"):
        mask = read_mask(sample.mask, table)
        back = to_original(one_hot(fit_mask(mask, 128), 3), *mask.shape).argmax(0)
        rows.append(image_scores(back, mask, 3))
    assert summarise(rows).dice > 0.995
