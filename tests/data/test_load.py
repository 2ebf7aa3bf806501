"""Folders, CSV files and classes.json: what is read, and every refusal with its sentence."""

import json
import os
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from medseg.data import load_table, read_mask
from medseg.errors import UserError

from .refusal import refused


def test_pairs_split_and_classes_without_a_csv(small):
    table = load_table(small.root)
    assert len(table.samples) == 6 and len(table.part("val")) == 1
    assert table.values == (0, 128, 255)
    assert table.names == ("background", "class 128", "class 255")
    assert table.channels == 3
    assert all(sample.image.stem == sample.mask.stem for sample in table.samples)


def test_split_depends_on_names_and_seed_only(small):
    parts = [
        {
            sample.image.stem
            for sample in load_table(small.root, seed=seed, val_fraction=0.5).part("val")
        }
        for seed in (0, 0, 1, 2)
    ]
    assert parts[0] == parts[1] and all(len(part) == 3 for part in parts)
    assert len({frozenset(part) for part in parts}) > 1


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_val_fraction_must_leave_both_parts(small, fraction):
    with pytest.raises(ValueError, match="val_fraction"):
        load_table(small.root, val_fraction=fraction)


@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "bmp", "PNG"])
def test_image_formats(folder, extension):
    for index in range(2):
        folder.image(f"a{index}.{extension}")
        folder.mask(f"a{index}.{'tif' if extension == 'tif' else 'png'}")
    assert len(load_table(folder.root).samples) == 2


def test_other_files_are_left_alone(small):
    for name in ("images/notes.txt", "masks/.hidden.png", "images/Thumbs.db"):
        small.text(name, "x")
    assert len(load_table(small.root).samples) == 6


def test_gray_set_has_one_channel_and_a_mixed_one_three(folder):
    for index in range(2):
        folder.image(f"a{index}.png", channels=1)
        folder.mask(f"a{index}.png")
    assert load_table(folder.root).channels == 1
    folder.pair("b")
    assert load_table(folder.root).channels == 3


def test_missing_folders(tmp_path):
    refused(tmp_path / "nowhere", "nowhere does not exist", "images/ and masks/")
    refused(tmp_path, str(tmp_path / "images"), "put images/ and masks/")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "file is a file")


def test_empty_folders(folder):
    refused(folder.root, "images holds no image", ".png")


def test_unpaired(small):
    small.image("lone.png")
    refused(small.root, "lone.png has no mask", "masks: add it")
    small.image("lone2.png")
    refused(small.root, "the first of 2 such files")
    for name in ("lone.png", "lone2.png", "mask3.png"):
        small.mask(name)
    refused(small.root, "masks/mask3.png has no image", "images: add it")


def test_same_stem_twice(small):
    small.image("cell0.jpg")
    refused(small.root, "cell0.jpg", "cell0.png", "keep one")


def test_single_pair_cannot_be_split(folder):
    folder.pair("a")
    refused(folder.root, "holds a single image")


@pytest.mark.parametrize("content", [b"", b"no picture", None])
@pytest.mark.parametrize("part", ["images", "masks"])
def test_unreadable(small, part, content, capfd):
    path = small.root / part / "cell3.png"
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    refused(small.root, f"{part}/cell3.png cannot be read", "replace it")
    assert capfd.readouterr().err == ""


def test_several_bad_files_are_counted(small):
    for name in ("cell1.png", "cell4.png"):
        (small.root / "images" / name).write_bytes(b"")
    refused(small.root, "cell1.png", "(the first of 2 such files)")


def test_different_sizes(small):
    small.mask("cell2.png", height=24, width=20)
    refused(small.root, "images/cell2.png is 24x20", "masks/cell2.png is 20x24", "same size")


def test_unknown_values(small):
    small.text("classes.json", json.dumps({"0": "background", "255": "nucleus"}))
    sentence = refused(small.root, "masks/cell0.png", "has the value 128", "classes.json")
    assert "first of 6" in sentence and "the values 0, 255" in sentence


def test_read_mask_refuses_values_of_no_class(small):
    table = load_table(small.root)
    small.mask("cell0.png", values=(0, 7, 255))
    with pytest.raises(UserError, match=re.escape("cell0.png has the value 7")):
        read_mask(table.samples[0].mask, table)


def test_photograph_as_mask(folder):
    for index in range(2):
        folder.image(f"a{index}.png")
        folder.mask(f"a{index}.png", height=20, width=24, values=range(0, 24))
    folder.mask("a1.png", values=range(30, 54))
    refused(folder.root, "a0.png", "48 values", "PNG")


def test_single_class_everywhere(folder):
    for index in range(3):
        folder.pair(f"a{index}", values=(128,))
    refused(folder.root, "masks holds the value 128", "nothing to learn")


@pytest.mark.parametrize("colours", ["equal", "different"])
def test_colour_mask(small, colours):
    path = small.root / "masks" / "cell1.png"
    gray = np.asarray(Image.open(path))
    cv2.imwrite(str(path), np.dstack([gray, gray if colours == "equal" else gray // 2, gray]))
    refused(small.root, "masks/cell1.png is a colour mask", "one-channel")


def test_palette_mask(small):
    path = small.root / "masks" / "cell1.png"
    gray = np.asarray(Image.open(path))
    Image.fromarray(gray).convert("P").save(path)
    assert Image.open(path).mode == "P"
    table = load_table(small.root)  # index and gray level agree
    classes = read_mask(path, table)
    np.testing.assert_array_equal(np.array(table.values)[classes], gray)
    picture = Image.fromarray((gray // 127).astype(np.uint8))
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(path)
    refused(small.root, "masks/cell1.png is a palette mask", "one-channel gray")


def test_pixels_of_other_types(small):
    path = small.root / "images" / "cell0.tif"
    (small.root / "images" / "cell0.png").unlink()
    cv2.imwrite(str(path), np.zeros((20, 24), np.float32))
    refused(small.root, "cell0.tif has float32 pixels", "8 or 16")
    path.unlink()
    small.image("cell0.png")
    (small.root / "masks" / "cell0.png").unlink()
    cv2.imwrite(str(small.root / "masks" / "cell0.tif"), np.zeros((20, 24), np.float32))
    refused(small.root, "masks/cell0.tif has float32 pixels", "8 or 16")


@pytest.mark.parametrize("turn", [3, 6])
def test_image_turned_by_exif(small, turn):
    path = small.root / "images" / "cell0.jpg"
    entry = Image.Exif()
    entry[0x0112] = turn
    Image.open(path.with_suffix(".png")).save(path, exif=entry)
    path.with_suffix(".png").unlink()
    refused(small.root, "cell0.jpg is turned or mirrored by its EXIF entry", "save")
    entry[0x0112] = 1
    Image.new("RGB", (24, 20)).save(path, exif=entry)
    load_table(small.root)


def test_name_that_is_no_text(small):
    for part in ("images", "masks"):
        folder = os.fsencode(small.root / part)
        try:
            os.rename(folder + b"/cell0.png", folder + b"/cell\xff.png")
        except OSError as error:
            pytest.skip(f"this file system takes text only ({error})")
    refused(small.root, "holds 'cell\\udcff.png'", "rename")


def test_val_masks_without_foreground(small):
    small.text(
        "split.csv", "image,mask,split", "cell0.png,cell0.png,train", "cell1.png,cell1.png,val"
    )
    small.mask("cell1.png", values=(0,))
    refused(small.root, "every val mask", "nothing to score")


def test_real_sets(real, real_table):
    table = real_table
    listed = (real / "split.csv").read_text().splitlines()[1:]
    assert len(table.samples) == len(listed)
    assert len(table.part("train")) + len(table.part("val")) == len(listed)
    names = json.loads((real / "classes.json").read_text())
    assert dict(zip(map(str, table.values), table.names, strict=True)) == names
    assert table.channels == (1 if real.name == "superalloy_sem" else 3)
    assert read_mask(table.samples[0].mask, table).max() < len(names)
