"""Small sets of real files to read."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from medseg.data import load_table

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


class Folder:
    """A data folder under construction; pixel values are random, mask values as asked for."""

    def __init__(self, root):
        self.root = root
        self.draw = np.random.default_rng(0)
        for part in ("images", "masks"):
            (root / part).mkdir(parents=True)

    def image(self, name, height=20, width=24, channels=3, dtype=np.uint8):
        shape = (height, width) if channels == 1 else (height, width, channels)
        pixels = self.draw.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
        assert cv2.imwrite(str(self.root / "images" / name), pixels)
        return pixels

    def mask(self, name, height=20, width=24, values=(0, 128, 255), dtype=np.uint8):
        pixels = self.draw.choice(np.array(values, dtype), (height, width))
        pixels[0, : len(values)] = values
        assert cv2.imwrite(str(self.root / "masks" / name), pixels)
        return pixels

    def pair(self, stem, **mask):
        self.image(f"{stem}.png")
        return self.mask(f"{stem}.png", **mask)

    def text(self, name, *lines):
        (self.root / name).write_text("\n".join(lines) + "\n")


@pytest.fixture(autouse=True)
def one_thread():
    """The tensors here are tiny: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path):
    """An empty data folder."""
    return Folder(tmp_path / "set")


@pytest.fixture
def small(folder):
    """Six good pairs, with the values 0, 128, 255."""
    for index in range(6):
        folder.pair(f"cell{index}")
    return folder


@pytest.fixture(
    scope="session", params=["wbc_tecom", "wbc_pbc", "superalloy_sem", "nuclei_dsb2018"]
)
def real(request):
    """The folder of a real set."""
    if not (SHARED / request.param).is_dir():
        pytest.skip(f"the real set {request.param} is not beside the checkout, in ../shared/data")
    return SHARED / request.param


@pytest.fixture(scope="session")
def real_table(real):
    """The table of that set."""
    return load_table(real)
