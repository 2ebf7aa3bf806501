"""The flags about data, in whole runs: patches, folds, groups, ignored pixels, weights, cache."""

import shutil

import cv2
import pytest
import yaml

from medseg.data import PatchSet, load_table, read_image, read_mask
from medseg.inference import Predictor, load_trained
from medseg.metrics import image_scores

from .conftest import numbers_of, rows_of


@pytest.fixture(scope="module")
def patched(smear, tmp_path_factory):
    """A run on patches, and the epochs that it asked the set for."""
    from medseg.train import main

    out, epochs = tmp_path_factory.mktemp("patched"), []
    with pytest.MonkeyPatch.context() as patch:
        real = PatchSet.set_epoch

        def heard(self, epoch):
            epochs.append(epoch)
            real(self, epoch)

        patch.setattr(PatchSet, "set_epoch", heard)
        words = ["--data", smear, "--out", out, "--name", "p", "--size", 32, "--epochs", 2]
        words += ["--patches", "auto", "--batch", "auto", "--class_weights", "median"]
        assert main([*map(str, words)]) == 0
    return out / "p", epochs


def test_every_epoch_has_patches_of_its_own(patched):
    run, epochs = patched
    assert epochs == [1, 2]
    assert "3 of each image an epoch, 33% of them centred" in (run / "train.log").read_text()


def test_what_was_left_open_is_a_number_in_the_config(patched):
    config = yaml.safe_load((patched[0] / "config.yaml").read_text())
    assert config["patches"] == 3  # 48x48 pixels in patches of 32x32
    assert config["batch"] == 4  # 24 patches, four steps an epoch at least


def test_weights_of_the_classes_are_said(patched):
    assert "weights  background 0." in (patched[0] / "train.log").read_text()


def scores_of(run, table):
    """The Dice of each image in scores.csv."""
    names = [f"dice_{name}" for name in table.names[1:]]
    rows = rows_of(run / "scores.csv")
    return [[float(row[name]) if row[name] else None for name in names] for row in rows]


def dice_of(predictor, sample, table):
    labels = predictor.labels(read_image(sample.image, table.channels))
    return image_scores(labels, read_mask(sample.mask, table), len(table.names))


def test_scores_are_those_of_sliding_windows(patched, smear):
    """The run's own scores are what a user of its weights gets."""
    table, predictor = load_table(smear), Predictor(load_trained(patched[0]))
    assert predictor.view.patches and predictor.view.window == 32
    assert scores_of(patched[0], table) == [
        pytest.approx(dice_of(predictor, sample, table), abs=0.02) for sample in table.part("val")
    ]


def test_config_repeats_a_run_on_patches(patched, train):
    run = train("--config", patched[0] / "config.yaml", short=False)
    assert numbers_of(run.folders[0]) == numbers_of(patched[0])


def test_folds_validate_on_different_groups(train):
    seen = []
    for fold in range(2):
        words = ["--folds", 5, "--fold", fold, "--group_by", r"(\d)$", "--epochs", 1]
        run = train(*words, "--name", f"fold{fold}")
        assert run.code == 0
        seen.append({row["image"] for row in rows_of(run.folders[fold] / "scores.csv")})
        rows = rows_of(run.folders[fold] / "split.csv")
        assert {row["cluster"] for row in rows} == set("0123456789")
    assert len(seen[0]) == len(seen[1]) == 2 and not seen[0] & seen[1]


def test_ignored_pixels_are_not_scored(train, smear, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(smear, folder)
    for path in (folder / "masks").iterdir():
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert mask is not None
        mask[:30] = 7
        cv2.imwrite(str(path), mask)
    plain = train(data=folder)
    assert plain.code == 3 and "has the value 7, but" in plain.err
    run = train("--ignore_index", 7, "--epochs", 1, data=folder)
    assert run.code == 0, run.err
    table, predictor = load_table(folder, ignore=7), Predictor(load_trained(run.folders[0]))
    assert scores_of(run.folders[0], table) == [
        pytest.approx(dice_of(predictor, sample, table), abs=0.02) for sample in table.part("val")
    ]


def test_a_small_cache_is_said_and_changes_nothing(train, finished):
    run = train("--cache", "1e-5")
    assert "of 10 images lie in memory, the others are read each time: --cache 1e-05" in run.out
    assert numbers_of(run.folders[0]) == numbers_of(finished)
