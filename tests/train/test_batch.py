"""`--batch auto`: the rule of the CPU, and the measure of the GPU on an invented one."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medseg.config import TrainConfig
from medseg.prepare.batch import choose_batch, largest_batch


@pytest.mark.parametrize(
    ("size", "images", "batch"),
    [(128, 1000, 8), (64, 1000, 8), (256, 1000, 2), (180, 1000, 4), (512, 1000, 2), (128, 17, 4)],
)
def test_rule_of_the_cpu(size, images, batch):
    network: Any = None  # the rule does not look at it
    table: Any = SimpleNamespace(part=lambda split: [None] * images)
    fabric: Any = SimpleNamespace(device=torch.device("cpu"), world_size=1)
    assert choose_batch(TrainConfig(size=size), fabric, network, table) == batch
    patches = TrainConfig(size=size, patches=1000)
    assert choose_batch(patches, fabric, network, table) >= batch


def gpu(fixed, each, whole):
    """Memory of an invented GPU: (bytes of a step, batches tried)."""
    tried = []

    def peak(batch):
        tried.append(batch)
        if fixed + each * batch > whole:
            raise torch.OutOfMemoryError
        return fixed + each * batch

    return peak, tried


@pytest.mark.parametrize(
    ("fixed", "each", "room", "batch"),
    [(100, 10, 1000, 64), (100, 100, 1000, 8), (100, 100, 899, 4), (0, 400, 1000, 2), (0, 1, 9, 8)],
)
def test_as_many_as_fit(fixed, each, room, batch):
    peak, tried = gpu(fixed, each, whole=2000)
    assert largest_batch(peak, room, 64) == batch
    assert max(tried) <= max(4, batch)


def test_a_step_that_takes_more_than_two_foretold_is_halved():
    def peak(batch):
        return 100 * batch if batch <= 4 else 160 * batch

    assert largest_batch(peak, 3200, 64) == 16


def test_a_gpu_that_is_full_with_four_and_with_two():
    assert largest_batch(gpu(0, 100, whole=300)[0], 10_000, 64) == 2
    with pytest.raises(torch.OutOfMemoryError):
        largest_batch(gpu(0, 100, whole=100)[0], 10_000, 64)
