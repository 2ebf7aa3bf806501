"""Windows over an image: they cover it, agree with the network, and need a slab of memory."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from scipy.ndimage import gaussian_filter

from medseg.data import fit_image, to_original, to_planes
from medseg.inference import Forward, View, slabs
from medseg.inference.predictor import Pixels
from medseg.inference.tiles import _bell, starts


def image(height, width, channels=3, dtype=np.uint8):
    draw = np.random.default_rng(0)
    return draw.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


def each_pixel(squares):
    """A network without neighbourhood: three classes by brightness."""
    grey = squares.mean(1)
    return torch.stack([5 * grey, 2 - 3 * grey, 0 * grey], 1)


def whole(pixels, *args, **kwargs):
    found = list(slabs(Pixels(pixels), *args, **kwargs))
    assert [slab.top for slab in found] == np.cumsum(
        [0, *(slab.probabilities.shape[1] for slab in found)]
    )[:-1].tolist()
    return torch.cat([slab.probabilities for slab in found], 1)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(100, 77), (33, 32), (20, 90), (90, 20), (7, 5), (32, 32)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_windows_give_what_the_whole_image_gives(shape, overlap, dtype):
    pixels = image(*shape, dtype=dtype)
    found = whole(pixels, each_pixel, View(32, 32, patches=True), overlap, 3)
    expected = torch.softmax(each_pixel(to_planes(pixels)[None])[0], 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.33, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("side", [1, 31, 32, 33, 63, 64, 65, 1000])
def test_starts_cover_the_side_and_overlap(side, overlap):
    found = starts(side, 32, overlap)
    assert found[0] == 0 and found[-1] == max(0, side - 32)
    assert all(0 < b - a <= max(1, int(32 * (1 - overlap))) + 1 for a, b in pairwise(found))
    assert all(b - a <= 32 for a, b in pairwise(found))


def test_bell_is_a_gaussian_of_an_eighth():
    impulse = np.zeros(65)
    impulse[32] = 1
    expected = gaussian_filter(impulse, 65 / 8, mode="constant", truncate=5)
    found = _bell(65)
    np.testing.assert_allclose(found, expected / expected.max(), rtol=2e-3)


def test_monai_agrees_with_overlap_of_a_half():
    """A network that knows where in its window a pixel lies, so that weights and places count."""
    ramp = torch.linspace(-2, 2, 32)

    def network(squares):
        place = (ramp[:, None] + ramp).expand(len(squares), 32, 32)
        return torch.stack([place, squares.mean(1), -place], 1)

    pixels = image(80, 64)  # windows of 32 in steps of 16 end where the image ends
    found = whole(pixels, network, View(32, 32, patches=True), 0.5)
    expected = sliding_window_inference(
        to_planes(pixels)[None],
        32,
        4,
        lambda x: torch.softmax(network(x), 1),
        overlap=0.5,
        mode="gaussian",
        sigma_scale=0.125,
    )
    assert isinstance(expected, torch.Tensor)
    # MONAI lifts weights below 0.001, which are those of the rim
    middle = found[:, 8:-8, 8:-8], expected[0, :, 8:-8, 8:-8]
    torch.testing.assert_close(*middle, rtol=0, atol=5e-3)
    assert found.std() > 0.2


def test_an_image_that_fits_is_seen_as_in_training():
    pixels = image(40, 24)
    for window in (None, 40):
        found = whole(pixels, each_pixel, View(16, window))
        square = to_planes(fit_image(pixels, 16))
        torch.testing.assert_close(found, to_original(each_pixel(square[None])[0], 40, 24))


def test_a_larger_image_is_scaled_as_the_largest_in_training():
    """Stripes of eight pixels, that a square of half the size shows as four."""
    pixels = np.repeat(np.repeat(image(12, 9), 8, 0), 8, 1)
    found = whole(pixels, each_pixel, View(16, 32))
    expected = torch.softmax(each_pixel(to_planes(pixels)[None])[0], 0)
    middle = found[:, 3::8, 3::8], expected[:, 3::8, 3::8]
    torch.testing.assert_close(*middle, rtol=0, atol=0.3)
    assert (found - expected).abs().mean() < 0.06


def test_flips_average_four_mirror_images():
    network = torch.nn.Conv2d(3, 2, 3, padding=1)
    squares = torch.rand(2, 3, 8, 8)
    found = torch.softmax(Forward(network, flips=True)(squares), 1)
    turns = ([], [2], [3], [2, 3])
    with torch.no_grad():
        each = [torch.softmax(network(squares.flip(d)), 1).flip(d) for d in turns]
    torch.testing.assert_close(found, torch.stack(each).mean(0))
    plain = torch.softmax(Forward(network)(squares), 1)
    assert (found - plain).abs().max() > 1e-3


def test_half_precision_gives_float32_logits():
    network = torch.nn.Conv2d(3, 2, 3, padding=1)
    squares = torch.rand(2, 3, 8, 8)
    exact, half = Forward(network)(squares), Forward(network, "bf16")(squares)
    assert half.dtype == torch.float32
    assert 0 < (exact - half).abs().max() < 0.05
