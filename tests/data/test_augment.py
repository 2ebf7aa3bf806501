"""Augmentation moves image and mask together, and repeats with the seed."""

import pytest
import torch

from medseg.data import IGNORE, build_augmentation

SIZE = 64


@pytest.fixture(scope="module")
def augment():
    return build_augmentation(SIZE)


def blobs(count, channels=3):
    """Images that are bright where the mask is 1, dark where it is 0, middling where 2."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 1, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic")[:, 0]
    mask = torch.where(smooth > 0.6, 1, 0) + torch.where((smooth > 0.45) & (smooth <= 0.6), 2, 0)
    image = torch.tensor([0.15, 0.85, 0.5])[mask][:, None].repeat(1, channels, 1, 1)
    return image, mask


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_types_and_range(augment, channels):
    image, mask = blobs(4, channels)
    torch.manual_seed(0)
    new_image, new_mask = augment(image, mask)
    assert new_image.shape == image.shape and new_image.dtype == torch.float32
    assert new_mask.shape == mask.shape and new_mask.dtype == torch.int64
    assert new_image.min() >= 0 and new_image.max() <= 1
    assert set(new_mask.unique().tolist()) <= {0, 1, 2}
    assert new_image.is_contiguous() and new_mask.is_contiguous()


def test_mask_moves_with_its_image(augment):
    """Away from edges, brightness still tells the class, whatever was drawn."""
    image, mask = blobs(16)
    torch.manual_seed(3)
    new_image, new_mask = augment(image, mask)
    gray = new_image.mean(1)
    moved = 0
    for picture, before, labels in zip(gray, mask, new_mask, strict=True):
        levels = torch.stack([picture[labels == k].median() for k in (0, 2, 1)])
        assert levels[0] + 0.1 < levels[1] and levels[1] + 0.1 < levels[2]
        bounds = (levels[1:] + levels[:-1]) / 2
        told = torch.tensor([0, 2, 1])[torch.bucketize(picture, bounds)]
        assert (told == labels).float().mean() > 0.9
        moved += bool((before != labels).any())
    assert moved >= 12


def test_unknown_pixels_stay_unknown(augment):
    image, mask = blobs(12)
    mask[:, :10] = IGNORE
    image[:, :, :10] = 1.0
    torch.manual_seed(0)
    _, new_mask = augment(image, mask)
    share = (new_mask == IGNORE).float().mean((1, 2))
    assert (share > 0.05).all() and (share < 0.35).all()


def test_seed_repeats_and_images_differ(augment):
    image, mask = blobs(4)
    image, mask = image[:1].repeat(4, 1, 1, 1), mask[:1].repeat(4, 1, 1)
    torch.manual_seed(5)
    first = augment(image, mask)
    other = augment(image, mask)
    torch.manual_seed(5)
    again = build_augmentation(SIZE)(image, mask)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0][0], first[0][1])


def test_input_is_left_alone(augment):
    image, mask = blobs(2)
    image_before, mask_before = image.clone(), mask.clone()
    augment(image, mask)
    assert torch.equal(image, image_before) and torch.equal(mask, mask_before)


def test_last_batch_of_one(augment):
    image, mask = blobs(1)
    assert augment(image, mask)[0].shape == image.shape


def test_wrong_size_is_refused(augment):
    with pytest.raises(ValueError, match="must be 64x64"):
        augment(torch.zeros(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.int64))


def test_what_is_moved_in_is_unknown_where_that_is_asked_for(augment):
    """Same draws, same labels, but for the border: images stay reflected."""
    image, mask = blobs(24)
    torch.manual_seed(2)
    plain_image, plain = augment(image, mask)
    torch.manual_seed(2)
    new_image, new = build_augmentation(SIZE, ignore=True)(image, mask)
    assert torch.equal(new_image, plain_image)
    hidden = new == IGNORE
    assert torch.equal(new[~hidden], plain[~hidden]) and (plain != IGNORE).all()
    share = hidden.float().mean((1, 2))
    assert 6 <= (share > 0).sum() <= 18 and share.max() < 0.5  # half of the images are moved
    assert not hidden[:, SIZE // 2, SIZE // 2].any()
