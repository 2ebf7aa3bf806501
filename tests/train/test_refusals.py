"""What a training refuses: one sentence, its exit code, and no run folder."""

import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from medseg.console import Journal, guarded
from medseg.engine import Engine
from medseg.engine import engine as engine_module
from medseg.train import main as train_main

from .conftest import SHORT

FLAGS = [
    (["--epochz", "3"], "--epochz: unknown flag (did you mean --epoch"),
    (["--epochs", "many"], "--epochs many: must be a whole number"),
    (["--epochs", "0"], "--epochs 0: must be 1 or more"),
    (["--lr", "fast"], "--lr fast: must be a number"),
    (["--lr", "-1"], "--lr -1.0: must be a number above 0"),
    (["--config"], "--config: needs a value after it"),
    (["--batch"], "--batch: needs a value after it"),
    (["--model", "dra_nets"], "--model dra_nets: unknown (did you mean dra_net"),
    (["--backend", "tritn"], "--backend tritn: unknown (did you mean triton?)"),
    (["--backend", "cuda"], "--backend cuda: "),
    (["--loss", "dicece"], "--loss dicece: unknown (did you mean dice_ce?)"),
    (["--precision", "int8"], "--precision int8: unknown"),
    (["--precision", "fp16", "--devices", "cpu"], "take bf16 or fp32 on the CPU"),
    (["--devices", "gpu"], "--devices gpu: must be auto, cpu, cuda"),
    (["--classes", "1"], "--classes 1: must be 2 or more"),
    (["--classes", "7"], "--classes 7"),
    (["--name", "../x"], "--name ../x: may hold letters"),
    (["--resume", "nowhere"], "--resume nowhere: has no config.yaml"),
    (["--config", "nowhere.yaml"], "--config: File does not exist"),
    (["--batch", "0"], "--batch 0: must be auto, or 1 or more"),
    (["--batch", "all"], "--batch all: must be auto, or 1 or more"),
    (["--patches", "0"], "--patches 0: must be auto, or 1 or more"),
    (["--foreground", "1.5"], "--foreground 1.5: must lie in 0..1"),
    (["--folds", "1"], "--folds 1: must be 2 or more"),
    (["--fold", "2"], "--fold 2: needs --folds"),
    (["--folds", "3", "--fold", "3"], "--fold 3: must lie in 0..2"),
    (["--folds", "11"], "--folds 11: "),
    (["--group_by", "patient"], "--group_by patient: "),
    (["--group_by", "(p"], "--group_by (p: with a parenthesis it must be a regular expression"),
    (["--ignore_index", "-1"], "--ignore_index -1: must be a mask value"),
    (["--cache", "-1"], "--cache -1.0: must be 0 or more"),
    (["--class_weights", "mean"], "--class_weights mean: unknown (did you mean median?)"),
    (["--class_weights", "1,nan"], "--class_weights 1,nan: must be numbers above 0"),
    (["--class_weights", "1,2"], "--class_weights 1,2: must be 3 numbers, for background,"),
    (["--class_weights", "median", "--loss", "bce"], "--loss bce takes none; those that do: dice"),
    (["--rescale", "2"], "--rescale 2: must be none, or two numbers from 0.01 to 100"),
    (["--rescale", "2,0.5"], "--rescale 2,0.5: must be none, or two numbers"),
    (["--rescale", "0,nan"], "--rescale 0,nan: must be none, or two numbers"),
    (["extra"], "extra: unexpected word"),
    (["--out", "a\udcff"], "must be text in UTF-8"),
    (["--size", "16", "--batch", "1"], "take a larger --size or --batch"),
]


@pytest.mark.parametrize(("flags", "sentence"), FLAGS, ids=[" ".join(f) for f, _ in FLAGS])
def test_wrong_flags(train, flags, sentence):
    if flags == ["--backend", "cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    _refused(train(*flags), 2, sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epochz: 3\n", "epochz: unknown key in the --config file (did you mean epochs?)"),
        ("epochs: many\n", "--epochs many: must be a whole number"),
        ("a: [\n", "--config: "),
        ("- 1\n", "--config: the file must hold lines of `flag: value`"),
        ("", "--config: the file must hold lines of `flag: value`"),
        ("data: \xff\n", "--config: the file is not text in UTF-8"),
    ],
)
def test_wrong_config_file(train, tmp_path, text, sentence):
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("latin-1"))
    _refused(train("--config", path), 2, sentence)


def _drop_mask(folder):
    next((folder / "masks").iterdir()).unlink()
    (folder / "split.csv").unlink(missing_ok=True)


def _spoil_image(folder):
    sorted((folder / "images").iterdir())[0].write_bytes(b"no image")


def _shrink_mask(folder):
    path, mask = _first_mask(folder)
    cv2.imwrite(str(path), mask[:-3])


def _strange_value(folder):
    path, mask = _first_mask(folder)
    mask[0, 0] = 77
    cv2.imwrite(str(path), mask)


def _colour_mask(folder):
    path, mask = _first_mask(folder)
    noise = np.random.default_rng(0).integers(0, 255, (*mask.shape, 3), np.uint8)
    cv2.imwrite(str(path), noise)


def _first_mask(folder):
    path = sorted((folder / "masks").iterdir())[0]
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    return path, mask


def _empty(folder):
    shutil.rmtree(folder)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()


def _csv_without_column(folder):
    (folder / "split.csv").write_text("image,split\na.png,train\n")


def _csv_of_missing_file(folder):
    (folder / "split.csv").write_text("image,mask,split\nnone.png,none.png,train\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_drop_mask, "has no mask"),
        (_spoil_image, "cannot be"),
        (_shrink_mask, "same size"),
        (_strange_value, "77"),
        (_colour_mask, "colour"),
        (_empty, "images"),
        (_csv_without_column, "mask"),
        (_csv_of_missing_file, "none.png"),
        (shutil.rmtree, "does not exist"),
    ],
    ids=lambda v: getattr(v, "__name__", "says"),
)
def test_wrong_data(train, smear, tmp_path, spoil, words):
    folder = tmp_path / "bad"
    shutil.copytree(smear, folder)
    spoil(folder)
    _refused(train(data=folder), 3, words)


def test_csv_that_is_not_there(train):
    _refused(train("--csv", "nowhere.csv"), 3, "--csv nowhere.csv")


@pytest.mark.skipif(torch.cuda.is_available(), reason="triton can run on the GPU here")
def test_backend_of_the_environment(smear, tmp_path):
    command = [sys.executable, "-m", "medseg.train", "--data", str(smear), "--size", "32"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "runs")],
        env=os.environ | {"MEDSEG_BACKEND": "triton", "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "the variable MEDSEG_BACKEND: backend 'triton' cannot run" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_name_that_is_taken(train, finished):
    run = train("--name", "first", "--out", finished.parent)
    assert run.code == 2
    assert "take another name" in run.err


def test_nan_before_the_first_epoch_leaves_no_folder(train):
    _refused(train("--lr", "1e30", "--epochs", "9"), 3, "take a smaller --lr than 1e+30")


def test_nan_in_the_only_step_is_seen(train):
    _refused(
        train("--lr", "1e30", "--epochs", 1, "--batch", 99), 3, "on the val part after epoch 1"
    )


def test_single_image_to_train_on(train, smear, tmp_path):
    rows = (smear / "split.csv").read_text().splitlines()
    both = [next(row for row in rows if f",{part}," in row) for part in ("train", "val")]
    path = tmp_path / "two.csv"
    path.write_text("\n".join([rows[0], *both]))
    _refused(train("--csv", path, "--size", 16), 2, "--size 16: batch norm cannot train")


def test_full_memory_of_a_gpu(train, monkeypatch):
    def full(engine, tick):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "train_epoch", full)
    _refused(train(), 3, "--batch 4, --size 32: they do not fit into the memory")


@pytest.mark.parametrize("kept", [2_000, 200_000], ids=["first file", "first checkpoint"])
def test_full_disk_leaves_no_folder(smear, tmp_path, kept):
    done = _train_process(smear, tmp_path, f"ulimit -f {kept // 1000}; ")
    assert done.returncode == 3, done.stderr
    assert "cannot be written (File too large): make room there" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


def test_path_that_the_system_refuses(train):
    _refused(train("--csv", "x" * 300), 3, "cannot be used (File name too long)")


def test_synthetic_set_below_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train_main(["--out", str(tmp_path / "file")]) == 3
    assert "cannot be written" in capsys.readouterr().err


def _train_process(smear, tmp_path, before):
    words = [sys.executable, "-m", "medseg.train", "--data", smear, "--out", tmp_path / "runs"]
    line = before + "exec " + " ".join(map(str, [*words, *SHORT]))
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300)


def test_nan_later_keeps_what_was_reached(train, monkeypatch):
    real = engine_module.build_loss

    def poisoned(*args):
        loss, calls = real(*args), []

        def call(logits, target):
            calls.append(1)
            return loss(logits, target) * (float("nan") if len(calls) > 4 else 1.0)

        return call

    monkeypatch.setattr(engine_module, "build_loss", poisoned)
    run = train("--precision", "bf16", "--epochs", "3")
    assert run.code == 3
    assert "The loss became nan in epoch 2, step " in run.err
    assert "or --precision fp32 instead of bf16" in run.err
    assert "Training ended early" in (run.folders[0] / "report" / "index.html").read_text()
    assert (run.folders[0] / "best.safetensors").is_file()


def test_an_accident_leaves_its_traceback_in_the_log(train, monkeypatch):
    def accident(engine, tick):
        raise RuntimeError("the roof fell in")

    monkeypatch.setattr(Engine, "train_epoch", accident)
    run = train()
    assert run.code == 1
    assert "Traceback" not in run.out + run.err
    assert "the roof fell in" in run.err
    log = run.folders[0] / "train.log"
    assert str(log) in run.err
    assert "Traceback" in log.read_text()


def test_an_accident_before_the_folder_leaves_a_file(capsys):
    def accident(journal: Journal):
        raise RuntimeError("no floor")

    assert guarded(accident) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_unknown_command():
    done = subprocess.run(
        [sys.executable, "-m", "medseg", "trian"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "did you mean train?" in done.stderr


def _refused(run, code, sentence):
    assert run.code == code, run.err
    assert sentence in run.err
    assert len(run.err.strip().splitlines()) == 1
    assert "Traceback" not in run.out + run.err
    assert run.folders == []
