"""Every fault planted in a copy of a real set is found, by the file's name, all of them at once."""

import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from medseg.data import load_table, read_image
from medseg.data_check.check import Options, check
from medseg.errors import UserError

from .conftest import write_rows


def _truncated(copy, image, mask):
    path = copy.root / "images" / image
    path.write_bytes(path.read_bytes()[:40])
    return "error", image, "cannot be read as an image"


def _no_mask(copy, image, mask):
    (copy.root / "masks" / mask).unlink()
    return "error", mask, "is not in"


def _other_size(copy, image, mask):
    _rewrite(copy, mask, lambda pixels: pixels[:-2])
    return "error", image, "make them the same size"


def _strange_value(copy, image, mask):
    _rewrite(copy, mask, lambda pixels: np.where(np.eye(*pixels.shape) > 0, 77, pixels))
    return "error", mask, "has the value 77"


def _colour_mask(copy, image, mask):
    _rewrite(copy, mask, lambda pixels: np.dstack([pixels, pixels // 2, pixels]))
    return "error", mask, "is a colour mask"


def _palette_mask(copy, image, mask):
    path = copy.root / "masks" / mask
    with Image.open(path) as gray:
        picture = gray.convert("P")
    picture.putpalette([9, 9, 9] * 256)
    picture.save(path)
    return "error", mask, "is a palette mask"


def _turned(copy, image, mask):
    entry = Image.Exif()
    entry[0x0112] = 6
    path = copy.root / "images" / image
    with Image.open(path) as picture:
        picture.convert("RGB").save(path, format="JPEG", exif=entry)
    return "error", image, "is turned or mirrored"


def _float_pixels(copy, image, mask):
    path = copy.root / "images" / image
    height, width = read_image(path).shape[:2]
    _, packed = cv2.imencode(".tiff", np.zeros((height, width), np.float32))
    path.write_bytes(packed.tobytes())
    return "error", image, "float32"


def _deep(copy, image, mask):
    path = copy.root / "images" / image
    pixels = read_image(path).astype(np.uint16) * 257
    _, packed = cv2.imencode(".png", pixels[:, :, ::-1])
    path.write_bytes(packed.tobytes())
    return "warning", image, "16 bit, the others not"


def _empty_mask(copy, image, mask):
    _rewrite(copy, mask, np.zeros_like)
    return "warning", image, "masks of background alone"


def _blank_image(copy, image, mask):
    path = copy.root / "images" / image
    _, packed = cv2.imencode(".png", np.full_like(read_image(path), 90))
    path.write_bytes(packed.tobytes())
    return "warning", image, "one colour all over"


ON_FILES = (_truncated, _no_mask, _other_size, _strange_value, _colour_mask, _palette_mask)
ON_FILES += (_turned, _float_pixels, _deep, _empty_mask, _blank_image)


def _rewrite(copy, mask, change):
    path = copy.root / "masks" / mask
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None and cv2.imwrite(str(path), change(pixels).astype(np.uint8))


def _twins(copy, rows):
    """An exact copy in the other part, and a mirrored, darker JPEG of another image."""
    (first, mask, split, *_), (second, mask_2, split_2, *_) = rows[-1], rows[-2]
    shutil.copy(copy.root / "images" / first, copy.root / "images" / f"again_{first}")
    pixels = read_image(copy.root / "images" / second)[:, ::-1] * 0.8
    cv2.imwrite(str(copy.root / "images" / "mirrored.jpg"), pixels[:, :, ::-1])
    shutil.copy(copy.root / "masks" / mask_2, copy.root / "masks" / "mirrored.png")
    other = {"train": "val", "val": "train"}
    rows.append([f"again_{first}", mask, other[split], ""])
    rows.append(["mirrored.jpg", "mirrored.png", other[split_2], ""])
    yield (
        "warning",
        f"again_{first}",
        f"{first} ({split}) and again_{first} ({other[split]}) are the same",
    )
    yield "warning", "mirrored.jpg", "are nearly the same picture: what was trained on is scored"


def _rows(copy, rows):
    """Rows that no training takes, and a file in none."""
    image, mask, split, *_ = rows[-1]
    rows.append([image, mask, split, ""])
    rows.append(["never.png", mask, "train", ""])
    rows.append([image, mask, "holdout", ""])
    shutil.copy(copy.root / "images" / image, copy.root / "images" / f"lost_{image}")
    count = len(rows) + 1
    yield "error", None, f"line {count - 2} lists {image} a second time"
    yield "error", None, f"line {count - 1} names never.png"
    yield "error", None, f'line {count} has the split "holdout"'
    yield "note", f"lost_{image}", "are in no row of the table"


def test_all_at_once(part):
    copy, rows = part
    planted = [
        plant(copy, image, mask)
        for plant, (image, mask, *_) in zip(ON_FILES, rows[: len(ON_FILES)], strict=True)
    ]
    planted += list(_twins(copy, rows))
    planted += list(_rows(copy, rows))
    write_rows(copy.root, rows)
    done = check(Options(copy.root))
    assert not done.fits
    for level, name, words in planted:
        found = [f for f in done.findings if f.level == level and words in f.says]
        assert found, f"{name}: {words!r} was not found"
        assert name is None or any(name in f.files or name in f.says for f in found)
    errors = [f for f in done.findings if f.level == "error"]
    assert len(errors) == sum(level == "error" for level, *_ in planted)


@pytest.mark.parametrize("plant", ON_FILES, ids=lambda plant: plant.__name__[1:])
def test_error_is_what_a_training_refuses(small, plant):
    write_rows(
        small.root,
        [[f"cell{k}.png", f"cell{k}.png", "train" if k < 4 else "val", ""] for k in range(6)],
    )
    (small.root / "classes.json").write_text('{"0": "a", "128": "b", "255": "c"}')
    level, *_ = plant(small, "cell1.png", "cell1.png")
    done = check(Options(small.root))
    assert done.fits == (level != "error")
    if done.fits:
        load_table(small.root)
        return
    with pytest.raises(UserError) as refused:
        load_table(small.root)
    assert str(refused.value) in {f.says for f in done.findings}
