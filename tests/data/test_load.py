"""Folders, CSV files and classes.json: what is read, and every refusal with its sentence."""

import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from medseg.data import load_table, read_mask
from medseg.errors import UserError


def refused(root, *parts, code=3, **options):
    """Loads, and checks that one sentence comes that holds all parts; returns it."""
    with pytest.raises(UserError) as caught:
        load_table(root, **options)
    sentence = str(caught.value)
    for part in parts:
        assert part in sentence
    assert caught.value.code == code
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


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


def test_csv_rules(small):
    small.text(
        "split.csv",
        "\ufeffimage,mask,split,group",
        "cell0.png,cell0.png,train,mono",
        "images/cell1.png,masks/cell1.png, Valid ,",
        "",
        "cell2.png,cell2.png,test,",
    )
    samples = load_table(small.root).samples
    assert [sample.split for sample in samples] == ["train", "val", "test"]
    assert [sample.group for sample in samples] == ["mono", "", ""]
    small.text(
        "other.csv", "split,mask,image", "val,cell3.png,cell3.png", "train,cell4.png,cell4.png"
    )
    for given in (small.root / "other.csv", Path("other.csv")):
        assert [s.image.stem for s in load_table(small.root, csv=given).samples] == [
            "cell3",
            "cell4",
        ]


def test_classes_json_names_and_orders(small):
    small.text("classes.json", json.dumps({"255": "nucleus", "0": "glass", "128": "cytoplasm"}))
    table = load_table(small.root, classes=3)
    assert table.values == (0, 128, 255)
    assert table.names == ("glass", "cytoplasm", "nucleus")


def test_count_of_classes_without_classes_json(folder):
    for index in range(2):
        folder.pair(f"a{index}", values=(0, 1, 3))
    assert load_table(folder.root).values == (0, 1, 3)
    assert load_table(folder.root, classes=4).values == (0, 1, 2, 3)
    refused(folder.root, "--classes 2", "the values 0, 1, 3", classes=2, code=2)
    refused(folder.root, "--classes 1", "2 to 255", classes=1, code=2)


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


GOOD = "cell0.png,cell0.png,train"


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (["image,mask", "cell0.png,cell0.png"], ['lacks the column "split"', "it is image,mask"]),
        ([""], ['lacks the column "image"']),
        (["image,mask,split", "cell9.png,cell0.png,train"], ["line 2 names cell9.png", "images"]),
        (["image,mask,split", "cell0.png,cell9.png,train"], ["line 2 names cell9.png", "masks"]),
        (["image,mask,split", "cell0.png,,train"], ["line 2 names no file", "mask column"]),
        (["image,mask,split", "cell0.png,cell0.png"], ['the split ""', "train, val or test"]),
        (["image,mask,split", GOOD, "a.png,a.png,holdout"], ['line 3 has the split "holdout"']),
        (["image,mask,split", GOOD, GOOD], ["line 3 lists cell0.png a second time"]),
        (["image,mask,split", GOOD], ['has no "val" rows']),
        (["image,mask,split", "cell0.png,cell0.png,val"], ['has no "train" rows']),
        (["image,mask,split", "../../secret.png,cell0.png,train"], ["lies outside", "secret.png"]),
        (["image,mask,split", "cell0.png,/etc/hostname,train"], ["lies outside", "/etc/hostname"]),
        (["image,mask,split", '"cell0.png,x'], ["cannot be read as a CSV file"]),
    ],
)  # fmt: skip
def test_bad_csv(small, lines, parts):
    (small.root.parent / "secret.png").write_bytes(b"x")
    small.text("split.csv", *lines)
    sentence = refused(small.root, *parts)
    assert "split.csv" in sentence


def test_csv_outside_relative_root(small, monkeypatch):
    monkeypatch.chdir(small.root)
    (small.root.parent / "secret.png").write_bytes(b"x")
    small.text("split.csv", "image,mask,split", "../../secret.png,cell0.png,train")
    refused(".", "lies outside")


def test_csv_that_is_not_text(small):
    (small.root / "split.csv").write_bytes(b"image,mask,split\n\xff\xfe,a,train\n")
    refused(small.root, "split.csv cannot be read as a CSV file")


def test_csv_with_blanks_after_commas(small):
    lines = ("image, mask, split", "cell0.png, cell0.png, train", "cell1.png, cell1.png, val")
    small.text("split.csv", *lines)
    assert [sample.split for sample in load_table(small.root).samples] == ["train", "val"]


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
    small.text("split.csv", "image,mask,split", GOOD, "cell1.png,cell1.png,val")
    small.mask("cell1.png", values=(0,))
    refused(small.root, "every val mask", "nothing to score")


def test_csv_flag_without_a_file(small):
    refused(small.root, "--csv none.csv", "no such file", csv=Path("none.csv"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"0": "a"}',
        '{"0": "a", "x": "b"}',
        '{"0": 1, "1": 2}',
        '{"0": "a", "-1": "b"}',
        '{"0": "a", "1": " "}',
        '{"0": "a", "1": "b", "2": "b"}',
        '{"0": "a", "1": "\\ud800"}',
    ],
)
def test_bad_classes_json(small, content):
    small.text("classes.json", content)
    refused(small.root, "classes.json must map", "background")


def test_count_that_disagrees_with_classes_json(small):
    small.text("classes.json", json.dumps({"0": "a", "128": "b", "255": "c"}))
    refused(small.root, "--classes 2", "names 3", classes=2, code=2)


def test_real_sets(real, real_table):
    table = real_table
    listed = (real / "split.csv").read_text().splitlines()[1:]
    assert len(table.samples) == len(listed)
    assert len(table.part("train")) + len(table.part("val")) == len(listed)
    names = json.loads((real / "classes.json").read_text())
    assert dict(zip(map(str, table.values), table.names, strict=True)) == names
    assert table.channels == (1 if real.name == "superalloy_sem" else 3)
    assert read_mask(table.samples[0].mask, table).max() < len(names)
