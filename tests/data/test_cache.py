"""What is kept in memory, and how much of it."""

import numpy as np
import pytest

from medseg.data import IGNORE, cache, memory
from medseg.data.cache import keep_decoded, pack_mask, unpack_mask
from medseg.data.memory import free_memory


def read(item):
    return np.full((10, 10, 3), item, np.uint8), np.zeros((10, 10), np.uint8)


@pytest.mark.parametrize(("budget", "count"), [(0, 0), (399, 0), (400, 1), (16_399, 40), (1e9, 99)])
def test_the_first_are_kept_as_far_as_the_budget_goes(budget, count):
    kept = keep_decoded(read, range(99), int(budget))
    assert [int(image[0, 0, 0]) for image, _ in kept] == list(range(count))


def test_little_is_read_beyond_the_budget():
    seen = []
    keep_decoded(lambda item: (seen.append(item), read(item))[1], range(10_000), 4000)
    assert len(seen) < 100


def test_half_of_the_free_memory_is_the_most(monkeypatch):
    monkeypatch.setattr(cache, "free_memory", lambda: 4000)
    assert len(keep_decoded(read, range(99), 1 << 30)) == 5


def test_free_memory_heeds_the_control_group(monkeypatch, tmp_path):
    whole = free_memory()
    assert 0 < whole < 1 << 62
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert free_memory() == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 3000


def test_masks_survive_packing():
    labels = np.array([[IGNORE, 0, 1, 127, 128, 254]], np.int16)
    np.testing.assert_array_equal(unpack_mask(pack_mask(labels)), labels)
    assert pack_mask(labels).dtype == np.uint8
