"""Real, tiny trainings: what lies in the folder, and that it can be repeated."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import medseg
from medseg.engine import Engine

from .conftest import numbers_of, rows_of

FILES = (
    "best.safetensors",
    "config.yaml",
    "curves.svg",
    "environment.json",
    "last.ckpt",
    "metrics.csv",
    "report/index.html",
    "scores.csv",
    "split.csv",
    "train.log",
)


def test_every_file_is_there_and_nothing_else(finished):
    found = sorted(str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file())
    assert found == sorted(FILES)


def test_best_weights_rebuild_the_network(finished):
    with safe_open(finished / "best.safetensors", "pt") as file:
        about = file.metadata()
    model = medseg.create_model(
        about["model"], in_channels=int(about["in_channels"]), classes=int(about["classes"])
    )
    model.load_state_dict(load_file(finished / "best.safetensors"))
    assert json.loads(about["class_names"]) == ["background", "cytoplasm", "nucleus"]
    assert int(about["size"]) == 32


def test_checkpoint_loads_without_running_code(finished):
    state = torch.load(finished / "last.ckpt", weights_only=True)
    assert state["epoch"] == 2
    assert len(state["history"]) == 2


def test_tables_have_a_row_for_each_epoch_and_image(finished):
    metrics, scores = rows_of(finished / "metrics.csv"), rows_of(finished / "scores.csv")
    assert [row["epoch"] for row in metrics] == ["1", "2"]
    assert {"loss", "val_loss", "dice", "dice_nucleus", "lr", "seconds"} <= metrics[0].keys()
    split = rows_of(finished / "split.csv")
    assert [r["image"] for r in scores] == [r["image"] for r in split if r["split"] == "val"]


def test_environment_says_what_ran(finished):
    facts = json.loads((finished / "environment.json").read_text())
    assert facts["versions"]["torch"] == torch.__version__
    assert set(facts["ops"]) == {"eca", "triplet"}
    assert re.match("on|off", facts["huge_pages"])


def test_report_asks_nothing_of_the_network(finished):
    page = (finished / "report" / "index.html").read_text()
    assert len(page) < 5e6
    assert not re.search(r"""(?:src|href|action)\s*=(?!\s*["']?(?:data:|#))""", page)
    assert not re.search(r"@import|url\((?!#)|<script(?!>)|<link|<iframe", page)
    for word in ("nucleus", "95 %", "huge pages", "triplet", "prefers-color-scheme", "Dice ="):
        assert word in page


def test_config_repeats_the_run(train, finished):
    again = train("--config", finished / "config.yaml", "--name", "again")
    assert again.code == 0
    assert numbers_of(again.folders[0]) == numbers_of(finished)
    assert (again.folders[0] / "scores.csv").read_text() == (finished / "scores.csv").read_text()


def test_split_of_a_run_is_a_csv_for_the_next(train, finished):
    again = train("--csvfile", finished / "split.csv", "--epoch", 1)
    assert again.code == 0
    assert (again.folders[0] / "split.csv").read_text() == (finished / "split.csv").read_text()


def test_other_seed_other_numbers(train, finished):
    other = train("--seed", 1)
    assert numbers_of(other.folders[0]) != numbers_of(finished)


def test_the_log_names_the_backend_and_the_report(train):
    run = train("--backend", "reference", "--epochs", 1)
    assert run.code == 0
    assert "op       eca: reference (plain PyTorch, as asked for)" in run.out
    assert str(run.folders[0] / "report" / "index.html") in run.out
    assert "reference (plain PyTorch, as asked for)" in (run.folders[0] / "train.log").read_text()


def test_fused_ops_are_counted_where_they_run(train):
    from medseg.kernels import backend_report

    reason = backend_report("cpu")["eca"]["cpu"]
    if reason:
        pytest.skip(reason)
    run = train("--backend", "cpu", "--epochs", 1)
    assert "eca: cpu (fused, 6 x a forward pass)" in run.out
    assert "triplet: cpu (fused, 3 x a forward pass)" in run.out


def test_bf16_trains(train):
    run = train("--precision", "bf16", "--epochs", 1)
    assert run.code == 0
    weights = load_file(run.folders[0] / "best.safetensors")
    assert all(v.dtype in (torch.float32, torch.int64) for v in weights.values())


def test_two_processes_share_the_work(smear, tmp_path):
    words = ["--data", smear, "--devices", "cpu:2", "--epochs", 1, "--batch", 2, "--size", 32]
    done = _process("train", *words, "--out", tmp_path, "--name", "pair", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["device"] == "cpu x 2"
    assert done.stderr.count("epoch 1/1") == 1
    assert len(rows_of(tmp_path / "pair" / "scores.csv")) == 2


def test_interrupted_run_goes_on_to_the_same_numbers(train, finished, monkeypatch):
    whole = Engine.train_epoch

    def interrupted(engine, tick):
        if engine.epoch == 1:
            raise KeyboardInterrupt
        return whole(engine, tick)

    monkeypatch.setattr(Engine, "train_epoch", interrupted)
    half = train("--name", "half")
    assert half.code == 130
    assert "stopped in epoch 2" in half.err
    assert str(half.folders[0] / "last.ckpt") in half.err
    monkeypatch.undo()
    assert train("--resume", half.folders[0]).code == 0
    assert numbers_of(half.folders[0]) == numbers_of(finished)


def test_first_epoch_cut_short_is_repeated_exactly(train, finished, monkeypatch):
    step, calls = Engine._step, []

    def cut(engine, image, mask):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(engine, image, mask)

    monkeypatch.setattr(Engine, "_step", cut)
    cut_short = train()
    assert cut_short.code == 130
    monkeypatch.undo()
    assert train("--resume", cut_short.folders[0]).code == 0
    assert numbers_of(cut_short.folders[0]) == numbers_of(finished)


def test_resume_writes_the_report_that_is_missing(train, finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "runs" / "copy")
    shutil.rmtree(copy / "report")
    (copy / "scores.csv").unlink()
    assert train("--resume", copy).code == 0
    assert (copy / "report" / "index.html").is_file()
    assert (copy / "scores.csv").read_text() == (finished / "scores.csv").read_text()
    again = train("--resume", copy)
    assert again.code == 2
    assert "ask for more --epochs" in again.err


@pytest.mark.parametrize("damage", ["cut", "other", "gone"])
def test_resume_of_a_damaged_run(train, finished, tmp_path, damage):
    copy = shutil.copytree(finished, tmp_path / "runs" / "copy")
    _damage(copy / "last.ckpt", damage)
    run = train("--resume", copy, "--epochs", 3)
    assert run.code == (2 if damage == "gone" else 3)
    assert "last.ckpt" in run.err
    assert len(run.err.strip().splitlines()) == 1


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_resume_mends_damaged_best_weights(train, finished, tmp_path, damage):
    """As a run leaves them that is killed between its checkpoint and its best weights."""
    copy = shutil.copytree(finished, tmp_path / "runs" / "copy")
    (copy / "report" / "index.html").unlink()
    _damage(copy / "best.safetensors", damage)
    run = train("--resume", copy)
    assert run.code == 0, run.err
    assert (copy / "best.safetensors").read_bytes() == (finished / "best.safetensors").read_bytes()


def _damage(path, kind):
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "other":
        torch.save([1], path)
    else:
        path.unlink()


def test_sigterm_ends_a_run_like_ctrl_c(train, finished, monkeypatch):
    whole = Engine.train_epoch

    def ended(engine, tick):
        if engine.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(engine, tick)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Engine, "train_epoch", ended)
    run = train()
    assert run.code == 130
    assert "stopped in epoch 2" in run.err
    assert signal.getsignal(signal.SIGTERM) is before


def test_classes_of_like_names_have_columns_of_their_own(train, smear, tmp_path):
    folder = shutil.copytree(smear, tmp_path / "odd")
    names = {"0": "background", "128": "a b", "255": "a-b $x_{$ <b>"}
    (folder / "classes.json").write_text(json.dumps(names))
    first = train("--epochs", 1, data=folder)
    assert first.code == 0, first.err
    names["255"] = "a-b"
    (folder / "classes.json").write_text(json.dumps(names))
    run = train("--epochs", 1, "--name", "z", data=folder)
    assert {"dice_a_b", "dice_a_b_2"} <= rows_of(run.folders[-1] / "metrics.csv")[0].keys()


def test_huge_pages_hold_without_a_new_process(smear, tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("THP_MEM_ALLOC_ENABLE is for Linux")
    done = _process("train", "--data", smear, "--size", 32, "--epochs", 1, "--out", tmp_path)
    assert "pages    huge pages on" in done.stdout or "says never" in done.stdout, done.stderr


def _process(*words):
    command = [sys.executable, "-m", "medseg", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_weights_of_another_number_of_classes(train, tmp_path):
    """Refused with the flag that helps; with the flag, all but the head is taken."""
    model = medseg.create_model("dra_net_s", classes=9)
    save_file(model.state_dict(), tmp_path / "other.safetensors")
    refused = train("--weights", tmp_path / "other.safetensors")
    assert refused.code == 2 and not refused.folders
    assert "classes=9" in refused.err and "--reset_head true" in refused.err
    run = train("--weights", tmp_path / "other.safetensors", "--reset_head", "true", "--epochs", 1)
    assert run.code == 0, run.err
    assert "head.weight, head.bias start anew" in run.out


def test_any_size(train):
    assert train("--size", 37, "--epochs", 1).code == 0


@pytest.mark.parametrize(("loss", "precision"), [("hpddrnet", "bf16"), ("dice_ce", "fp32")])
def test_deep_supervision(train, monkeypatch, loss, precision):
    """Auxiliary outputs reach the loss, and the heads that make them learn."""

    def create(*args, **options):
        return medseg.create_model(*args, deep_supervision=True, **options)

    monkeypatch.setattr("medseg.prepare.build.create_model", create)
    torch.manual_seed(0)
    run = train("--loss", loss, "--precision", precision, "--epochs", 1)
    assert run.code == 0, run.err
    weights = load_file(run.folders[0] / "best.safetensors")
    state = torch.load(run.folders[0] / "last.ckpt", weights_only=True)["optimizer"]["state"]
    heads = [key for key in weights if key.startswith("side.")]
    assert len(heads) == 6
    assert all(entry["exp_avg_sq"].any() for entry in list(state.values())[-6:])
