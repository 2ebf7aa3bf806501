"""split.csv and classes.json: what they may say, and every refusal with its sentence."""

import json
from pathlib import Path

import pytest

from medseg.data import load_table

from .refusal import refused

GOOD = "cell0.png,cell0.png,train"


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
