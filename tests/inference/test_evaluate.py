"""`medseg evaluate` on a run that was really trained."""

import csv
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from medseg.data import load_table, write_blood_smear
from medseg.evaluate import main
from medseg.train import main as train

from .conftest import write_run

SHORT = ["--model", "hpddrnet_s", "--epochs", "2", "--batch", "4", "--size", "32"]


@pytest.fixture(scope="module")
def smear(tmp_path_factory):
    return write_blood_smear(tmp_path_factory.mktemp("data") / "smear", count=10, size=48)


@pytest.fixture(scope="module")
def runs(smear, tmp_path_factory):
    """Two trained runs."""
    out = tmp_path_factory.mktemp("runs")
    for name, rate in (("a", "0.002"), ("b", "0.0001")):
        flags = ["--data", str(smear), "--out", str(out), "--name", name, "--lr", rate, *SHORT]
        assert train(flags) == 0
    return out


@pytest.fixture
def evaluate(capsys):
    """Calls `main`; gives code, out, err."""

    def call(*flags):
        capsys.readouterr()
        code = main([str(flag) for flag in flags])
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return call


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_the_training(evaluate, runs, tmp_path):
    done = evaluate("--weights", runs / "a", "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    ours, theirs = rows_of(tmp_path / "out" / "evaluation.csv"), rows_of(runs / "a" / "scores.csv")
    assert [row["image"] for row in ours] == [row["image"] for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for key, value in other.items():
            if key.startswith(("dice_", "iou_")) and value:
                assert float(mine[key]) == pytest.approx(float(value), abs=2e-3)
    assert document == json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert document["split"] == "val" and document["images"] == len(theirs)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "evaluation.csv",
        "evaluation.json",
    ]


def test_table_on_the_terminal(evaluate, runs, smear):
    done = evaluate(
        *("--weights", runs / "a" / "best.safetensors", "--data", smear, "--split", "all"),
        *("--metric-style", "hpddrnet", "--flips", "--group_by", "group"),
    )
    assert done.code == 0, done.err
    for words in ("10 images", "HD95", "cytoplasm", "by group", "mmsegmentation", "miou"):
        assert words in done.out


@pytest.mark.parametrize("kind", ["scores", "comparison"])
def test_tables_fit_a_narrow_terminal(evaluate, runs, smear, monkeypatch, kind):
    """Each class is named, and no interval is cut short."""
    monkeypatch.setenv("COLUMNS", "80")
    what = ("--weights", runs / "a") if kind == "scores" else ("--compare", runs / "a", runs / "b")
    said = evaluate("--data", smear, *what).out
    assert "\u2026" not in said
    names = [name.split()[0] for name in load_table(smear).names[1:]]
    for word in ("all classes", *names):
        assert said.count(word) >= 2, word  # in both halves


@pytest.mark.parametrize("table", [True, False])
def test_comparison_of_runs_and_of_tables(evaluate, runs, tmp_path, table):
    sides = [runs / "a", runs / "b"]
    if table:
        for number, side in enumerate(sides):
            evaluate("--weights", side, "--out", tmp_path / str(number))
        sides = [tmp_path / str(number) / "evaluation.csv" for number in range(2)]
    done = evaluate("--compare", *sides, "--json")
    assert done.code == 0, done.err
    dice = json.loads(done.out)["mean"]["dice"]
    assert dice["low"] <= dice["mean"] <= dice["high"] and 0 < dice["p"] <= 1
    assert "A less B on 2 images" in evaluate("--compare", *sides).out


def test_a_folder_without_a_split_is_scored_whole(evaluate, tmp_path, run):
    draw = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / "set" / part).mkdir(parents=True)
    for number, side in enumerate((20, 32, 90)):
        pixels = draw.integers(0, 255, (side, side + 3, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "set" / "images" / f"{number}.png"), pixels)
        mask = draw.choice(np.array([0, 128, 255], np.uint8), (side, side + 3))
        cv2.imwrite(str(tmp_path / "set" / "masks" / f"{number}.png"), mask)
    flags = ("--weights", run, "--data", tmp_path / "set")
    whole = json.loads(evaluate(*flags, "--json").out)
    assert whole["split"] == "all" and whole["images"] == 3
    tiled = json.loads(evaluate(*flags, "--json", "--window", 32).out)
    assert tiled["mean"]["dice"]["mean"] != whole["mean"]["dice"]["mean"]
    known = json.loads(evaluate(*flags, "--json", "--ignore_index", 128).out)
    assert known["classes"]["cytoplasm"]["recall"]["mean"] == 0


def test_what_cannot_be_scored_is_refused_in_a_sentence(evaluate, runs, smear, tmp_path, run):
    other = write_run(tmp_path / "other", mask_values=[0, 1, 2])
    (tmp_path / "text.safetensors").write_text("no weights")
    cases = [
        ([], 2, "--weights"),
        (["--weights", runs / "a", "--compare", "x", "y"], 2, "--weights"),
        (["--compare", runs / "a"], 2, "takes two"),
        (["--weights", tmp_path / "none"], 2, "is not there"),
        (["--weights", tmp_path / "text.safetensors"], 3, "is damaged"),
        (["--weights", run], 2, "--data"),
        (["--weights", run, "--data", tmp_path / "none"], 3, "is no folder"),
        (["--weights", other, "--data", smear], 3, "but the classes of"),
        (["--weights", runs / "a", "--split", "test"], 3, "has no such image"),
        (["--weights", runs / "a", "--split", "vall"], 2, "did you mean val?"),
        (["--weights", runs / "a", "--metric-style", "e_du"], 2, "unknown"),
        (["--weights", runs / "a", "--overlap", "1"], 2, "0..1"),
        (["--weights", runs / "a", "--weigths", "1"], 2, "did you mean --weights?"),
        (["--weights", runs / "a", "--out", tmp_path / "text.safetensors"], 2, "--out"),
    ]
    for flags, code, words in cases:
        done = evaluate(*flags)
        assert (done.code, done.out) == (code, ""), (flags, done)
        assert done.err.startswith("error:") and words in done.err, (flags, done.err)
        assert "Traceback" not in done.err
