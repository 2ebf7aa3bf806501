"""Images to predict on, and what a prediction has written."""

from typing import Any

import cv2
import numpy as np


def picture(height=40, width=30, channels=3, dtype: Any = np.uint8, seed=0):
    draw = np.random.default_rng(seed)
    coarse = draw.random((height // 8 + 2, width // 8 + 2, channels)).astype(np.float32)
    fine = cv2.resize(coarse, (width, height)).reshape(height, width, channels)
    return (fine * np.iinfo(dtype).max).astype(dtype)


def save(path, pixels):
    assert cv2.imwrite(str(path), pixels[:, :, ::-1] if pixels.shape[2] == 3 else pixels)
    return path


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
