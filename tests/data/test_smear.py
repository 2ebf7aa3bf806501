"""The synthetic set: same bits, whole or not there, and not trivial."""

import json
import threading

import cv2
import numpy as np
import pytest

from medseg.data import load_table, read_image, read_mask, write_blood_smear
from medseg.data import smear as smear_module
from medseg.data.smear_draw import KINDS
from medseg.errors import UserError


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_blood_smear(tmp_path_factory.mktemp("smear") / "set", count=30, size=96, seed=3)


def test_it_is_a_good_set(written):
    table = load_table(written)
    assert table.names == ("background", "cytoplasm", "nucleus")
    assert table.values == (0, 128, 255) and table.channels == 3
    assert len(table.part("train")) == 24 and len(table.part("val")) == 6
    assert {sample.group for sample in table.samples} <= {kind.name for kind in KINDS}
    assert read_image(table.samples[0].image).shape == (96, 96, 3)


def test_same_seed_same_bits(written, tmp_path):
    assert contents(write_blood_smear(tmp_path / "b", 30, 96, 3)) == contents(written)
    other = contents(write_blood_smear(tmp_path / "c", 30, 96, 4))
    assert other["images/0000.png"] != contents(written)["images/0000.png"]


def test_whole_set_is_reused_and_half_a_set_is_not(tmp_path):
    folder = write_blood_smear(tmp_path / "set", 5, 48)
    stamp = (folder / "images" / "0000.png").stat().st_mtime_ns
    write_blood_smear(folder, 5, 48)
    assert (folder / "images" / "0000.png").stat().st_mtime_ns == stamp
    (folder / "masks" / "0002.png").unlink()
    write_blood_smear(folder, 5, 48)
    assert (folder / "masks" / "0002.png").is_file()
    write_blood_smear(folder, 6, 48)
    assert len(list((folder / "images").iterdir())) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_small_sets_have_both_parts(tmp_path):
    table = load_table(write_blood_smear(tmp_path / "set", 2, 64))
    assert len(table.part("train")) == len(table.part("val")) == 1


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(UserError, match="no synthetic set") as caught:
        write_blood_smear(tmp_path, 2, 48)
    assert caught.value.code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    assert load_table(write_blood_smear(tmp_path / "set", 3, 64)).channels == 3


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_blood_smear(tmp_path / "file" / "set", 2, 48)


def test_nothing_is_left_when_drawing_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("interrupted")

    monkeypatch.setattr(smear_module, "draw_smear", fail)
    with pytest.raises(RuntimeError, match="interrupted"):
        write_blood_smear(tmp_path / "set", 2, 48)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_at_once(tmp_path):
    errors = []

    def write():
        try:
            write_blood_smear(tmp_path / "set", 4, 48)
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not errors and [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(("count", "size"), [(1, 64), (10, 16)])
def test_too_small_is_refused(tmp_path, count, size):
    with pytest.raises(ValueError, match="at least"):
        write_blood_smear(tmp_path / "set", count, size)


def test_recipe_is_written(written):
    recipe = json.loads((written / "smear.json").read_text())
    assert recipe == {"version": smear_module.VERSION, "count": 30, "size": 96, "seed": 3}


def test_it_is_not_trivial(written):
    """No threshold on any colour channel, the best one chosen, finds the nuclei or the cells."""
    table = load_table(written)
    images = [read_image(sample.image) for sample in table.samples]
    masks = [read_mask(sample.mask, table) for sample in table.samples]
    assert all(0.01 < np.mean(mask > 0) < 0.7 for mask in masks)
    several = sum(cv2.connectedComponents((mask > 0).astype(np.uint8))[0] > 2 for mask in masks)
    assert several >= 5
    for label, most in ((1, 0.6), (2, 0.9)):
        truth = np.stack([mask == label for mask in masks])
        for channel in range(3):
            pixels = np.stack([image[:, :, channel] for image in images])
            best = max(
                2 * (truth & (pixels < level)).sum() / (truth.sum() + (pixels < level).sum())
                for level in range(20, 240, 10)
            )
            assert best < most, (label, channel, best)
