"""Folds and groups: nothing twice, nothing divided, like parts of each kind."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.data import Sample, load_table
from medseg.data.splits import draw_folds, draw_split
from medseg.errors import UserError


def samples_of(*clusters, group="", split="train"):
    return [
        Sample(Path(f"images/{n}.png"), Path(f"masks/{n}.png"), split, group, cluster)
        for n, cluster in enumerate(clusters)
    ]


def val_of(samples):
    return {sample.image for sample in samples if sample.split == "val"}


@settings(max_examples=60, deadline=None)
@given(
    clusters=st.lists(st.sampled_from(["", "", "a", "b", "c", "d"]), min_size=8, max_size=40),
    folds=st.integers(2, 5),
    seed=st.integers(0, 9),
)
def test_folds_cover_everything_once_and_divide_nothing(clusters, folds, seed):
    samples = samples_of(*clusters)
    units = len(set(clusters) - {""}) + clusters.count("")
    if units < folds:
        with pytest.raises(UserError, match=f"--folds {folds}: "):
            draw_folds(samples, folds, 0, seed)
        return
    parts = [val_of(draw_folds(samples, folds, fold, seed)) for fold in range(folds)]
    assert Counter(path for part in parts for path in part) == Counter(s.image for s in samples)
    assert all(parts)
    for part in parts:
        inside = {s.cluster for s in samples if s.image in part and s.cluster}
        outside = {s.cluster for s in samples if s.image not in part and s.cluster}
        assert not inside & outside


def test_folds_hold_like_parts_of_each_group():
    kinds = ["rare"] * 5 + ["common"] * 50 + ["other"] * 20
    samples = [
        Sample(Path(f"{n}.png"), Path(f"{n}.png"), "train", kind) for n, kind in enumerate(kinds)
    ]
    for fold in range(5):
        val = [s.group for s in draw_folds(samples, 5, fold, 3) if s.split == "val"]
        assert Counter(val) == {"rare": 1, "common": 10, "other": 4}


def test_folds_depend_on_names_and_seed_only():
    samples = samples_of(*[""] * 12)
    first = val_of(draw_folds(samples, 3, 1, 0))
    assert first == val_of(draw_folds(samples[::-1], 3, 1, 0))
    assert first != val_of(draw_folds(samples, 3, 1, 1))


def test_the_test_part_stays():
    samples = [*samples_of(*[""] * 6), *samples_of("", "", split="test")]
    drawn = draw_folds(samples, 3, 0, 0)
    assert [s.split for s in drawn[6:]] == ["test", "test"]
    assert len(val_of(drawn)) == 2


@settings(max_examples=40, deadline=None)
@given(
    clusters=st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=2, max_size=30),
    seed=st.integers(0, 9),
)
def test_a_drawn_split_divides_nothing(clusters, seed):
    samples = samples_of(*clusters)
    if clusters.count("") + len(set(clusters) - {""}) < 2:
        with pytest.raises(UserError, match="a single group: add one"):
            draw_split(samples, 0.2, seed)
        return
    drawn = draw_split(samples, 0.2, seed)
    parts = {}
    for sample in drawn:
        if sample.cluster:
            assert parts.setdefault(sample.cluster, sample.split) == sample.split
    assert {sample.split for sample in drawn} == {"train", "val"}


LINES = ("a,a,train,x,p1", "b,b,train,x,p1", "c,c,val,y,p2", "d,d,val,y,p3")


@pytest.fixture
def patients(folder):
    for name in "abcd":
        folder.pair(name)
    rows = (line.replace(",", ".png,", 2) for line in LINES)
    folder.text("split.csv", "image,mask,split,group,patient", *rows)
    return folder


def test_group_by_a_column(patients):
    table = load_table(patients.root, group_by="patient")
    assert [s.cluster for s in table.samples] == ["p1", "p1", "p2", "p3"]
    assert [s.group for s in table.samples] == ["x", "x", "y", "y"]
    assert [s.cluster for s in load_table(patients.root).samples] == [""] * 4
    sides = [
        {
            s.cluster
            for s in load_table(patients.root, group_by="patient", folds=3, fold=k).part("val")
        }
        for k in range(3)
    ]
    assert sorted(map(sorted, sides)) == [["p1"], ["p2"], ["p3"]]


def test_group_by_names(folder):
    for patient in range(4):
        for number in range(3):
            folder.pair(f"p{patient}_{number}")
    table = load_table(folder.root, group_by=r"^(p\d+)_")
    assert sorted({s.cluster for s in table.samples}) == ["p0", "p1", "p2", "p3"]
    assert len({s.cluster for s in table.part("val")}) == 1 and len(table.part("val")) == 3
    with pytest.raises(UserError, match=r"finds nothing in the name of .*p0_0\.png") as caught:
        load_table(folder.root, group_by=r"^(q\d+)_")
    assert caught.value.code == 2


def test_a_split_that_divides_a_group_is_refused(patients):
    text = (patients.root / "split.csv").read_text()
    (patients.root / "split.csv").write_text(text.replace("p2", "p1"))
    load_table(patients.root)
    with pytest.raises(UserError, match="has p1 of --group_by in train and in val") as caught:
        load_table(patients.root, group_by="patient")
    assert caught.value.code == 3
    load_table(patients.root, group_by="patient", folds=2)


def test_columns_that_are_not_there_or_empty(patients):
    with pytest.raises(UserError, match=r"--group_by patent: .* \(did you mean patient\?\)"):
        load_table(patients.root, group_by="patent")
    text = (patients.root / "split.csv").read_text()
    (patients.root / "split.csv").write_text(text.replace("p3", ""))
    with pytest.raises(UserError, match='line 5 has nothing in the column "patient"') as caught:
        load_table(patients.root, group_by="patient")
    assert caught.value.code == 3
    (patients.root / "split.csv").unlink()
    with pytest.raises(UserError, match=r"names a column, but .* has no split\.csv"):
        load_table(patients.root, group_by="patient")


@pytest.mark.parametrize("text", ["(", "(?:a)", "[(]", "(?P<a>"])
def test_expressions_that_find_no_group(patients, text):
    with pytest.raises(UserError, match="must be a regular expression whose first group"):
        load_table(patients.root, group_by=text)


def test_an_ignored_value_is_no_class(folder):
    for index in range(4):
        folder.pair(f"a{index}", values=(0, 1, 255))
    table = load_table(folder.root, ignore=255)
    assert table.values == (0, 1) and table.ignore == 255
    folder.text("classes.json", '{"0": "background", "1": "cell", "255": "unknown"}')
    assert load_table(folder.root, ignore=255).names == ("background", "cell")
    assert load_table(folder.root).names == ("background", "cell", "unknown")


def test_ignored_pixels_become_the_label_of_the_losses(folder):
    from medseg.data import IGNORE, SegmentationSet, read_mask

    for index in range(4):
        pixels = folder.pair(f"a{index}", values=(0, 1, 255))
    table = load_table(folder.root, ignore=255)
    mask = read_mask(table.samples[-1].mask, table)
    assert ((mask == IGNORE) == (pixels == 255)).all() and (mask == 1).any()
    item = SegmentationSet(table, table.samples, 24)[3]
    assert (item["mask"][2:-2].numpy() == mask).all()
