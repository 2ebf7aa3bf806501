"""kill -9 at any moment, --resume, and the finished weights are the same bits."""

import os
import shutil
import signal

import pytest
import torch

from medseg.engine import Engine
from medseg.train import main

from .conftest import numbers_of
from .processes import TRAIN, finish, finished_weights, kill, start, wait_for_checkpoint

# dropout, augmentation, averaged weights, and a checkpoint after every step
LONG = ["--epochs", "3", "--batch", "2", "--size", "32", "--ema", "0.9", "--save_minutes", "1e-9"]
LONG += ["--rescale", "0.5,2"]


def _flags(smear, out, name, *more):
    return ["--data", smear, "--out", out, "--name", name, *LONG, *more]


def _same(run, whole):
    assert numbers_of(run) == numbers_of(whole)
    assert (run / "scores.csv").read_text() == (whole / "scores.csv").read_text()
    assert (run / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()
    ours, theirs = finished_weights(run), finished_weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture(scope="module")
def whole(smear, tmp_path_factory):
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("whole")
    assert main(list(map(str, _flags(smear, out, "run")))) == 0
    return out / "run"


def test_killed_in_the_middle_of_an_epoch(smear, tmp_path, whole):
    run = tmp_path / "run"
    process = start(*TRAIN, *_flags(smear, tmp_path, "run"))
    at = wait_for_checkpoint(run, process, 2)
    kill(process)
    assert at["step"] or at["epoch"]
    assert not (run / "report").exists()
    assert main(["--resume", str(run)]) == 0
    _same(run, whole)


def test_killed_before_the_first_checkpoint(tmp_path, whole):
    """A run's folder has its config from the moment it is there."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(whole / "config.yaml", run)
    (run / ".last.ckpt.1.tmp").write_bytes(b"half")
    assert main(["--resume", str(run)]) == 0
    _same(run, whole)
    assert not list(run.glob(".*"))


def test_two_processes_killed(smear, tmp_path):
    pair = ["--devices", "cpu:2", "--batch", "1", "--accumulate", "2"]
    once = start(*TRAIN, *_flags(smear, tmp_path, "once", *pair))
    killed = start(*TRAIN, *_flags(smear, tmp_path, "killed", *pair))
    at = wait_for_checkpoint(tmp_path / "killed", killed, 2)
    kill(killed)
    assert at["step"] % 2 == 0
    finish(once, start(*TRAIN, "--resume", tmp_path / "killed"))
    _same(tmp_path / "killed", tmp_path / "once")


def test_a_scheduler_stops_the_whole_group(smear, tmp_path):
    """SIGTERM reaches the processes that read images, too; their end is not what ended the run."""
    long = ["--data", smear, "--out", tmp_path, "--name", "run", "--epochs", "999", "--batch", "2"]
    process = start(*TRAIN, *long, "--size", "32", "--workers", "2")
    wait_for_checkpoint(tmp_path / "run", process, 1)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "stopped in epoch" in said and f"--resume {tmp_path / 'run'} goes on from it" in said
    assert "--workers" not in said and "Traceback" not in said


def test_another_batch_cannot_go_on_within_an_epoch(smear, tmp_path, capsys, monkeypatch):
    step, calls = Engine._step, []

    def cut(engine, image, mask):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(engine, image, mask)

    monkeypatch.setattr(Engine, "_step", cut)
    assert main(list(map(str, _flags(smear, tmp_path, "run")))) == 130
    assert "after epoch 0, step 2 of the next" in capsys.readouterr().err
    assert main(["--resume", str(tmp_path / "run"), "--batch", "4"]) == 2
    assert "take its own --batch" in capsys.readouterr().err
