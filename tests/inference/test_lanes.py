"""Many images at once: in order, each with its own result, and the same as one by one."""

import time
from contextlib import closing

import numpy as np
import pytest
import torch

from medseg.errors import UserError
from medseg.inference import Pixels, Predictor, lanes, load_trained


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def pictures(count, high=40, seed=0):
    draw = np.random.default_rng(seed)
    sides = draw.integers(8, high, (count, 2))
    return [Pixels(draw.integers(0, 256, (*side, 3), np.uint8)) for side in sides]


def labels(image, slabs):
    return np.concatenate([slab.labels for slab in slabs])


@pytest.mark.parametrize("count", [0, 1, 2, 7, 16, 23])
def test_the_labels_are_those_of_one_image(run, two_cores, count):
    predictor, images = Predictor(load_trained(run), batch=3), pictures(count)
    found = list(predictor.stream(iter(images), labels))
    assert [image for image, _ in found] == images
    for image, future in found:
        assert np.array_equal(future.result(), predictor.labels(image.pixels))


def test_large_images_and_windows_among_small_ones(run, patch_run, two_cores, monkeypatch):
    monkeypatch.setattr(lanes, "_SMALL", 30 * 30)
    monkeypatch.setattr(lanes, "_MOST", 60 * 60)
    for path in (run, patch_run):
        predictor, images = Predictor(load_trained(path), batch=3), pictures(20, high=50)
        for image, future in predictor.stream(images, labels):
            assert np.array_equal(future.result(), predictor.labels(image.pixels))


class Broken(Pixels):
    def rows(self, start, stop):
        raise UserError("this one is broken", 3)


def test_a_broken_image_is_its_own_affair(run, two_cores):
    images = pictures(9)
    images[4] = Broken(images[4].pixels)
    predictor = Predictor(load_trained(run), batch=3)
    found = list(predictor.stream(images, labels))
    assert [f.exception() is not None for _, f in found] == [n == 4 for n in range(9)]
    with pytest.raises(UserError, match="broken"):
        found[4][1].result()


def test_what_the_network_or_the_work_raises_is_told(run, two_cores, monkeypatch):
    predictor, images = Predictor(load_trained(run), batch=2), pictures(5)

    def work(image, slabs):
        if image is images[3]:
            raise OSError("full")
        return labels(image, slabs)

    found = [future.exception() for _, future in predictor.stream(images, work)]
    assert [type(error).__name__ for error in found] == ["NoneType"] * 3 + ["OSError", "NoneType"]

    def fail(_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(predictor.forward, "network", fail)
    found = [future.exception() for _, future in predictor.stream(images, labels)]
    assert [str(error) for error in found] == ["out of memory"] * 5


def test_a_stream_that_is_closed_ends_soon(run, two_cores):
    begun = []

    def work(image, slabs):
        begun.append(image)
        time.sleep(0.01)

    predictor, images = Predictor(load_trained(run), batch=1), pictures(100)
    with closing(predictor.stream(images, work)) as found:
        next(found)
    count = len(begun)
    assert count < 20
    time.sleep(0.05)
    assert len(begun) == count
