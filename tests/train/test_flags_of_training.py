"""Schedules, recipes, averages, early ends, and the sentences of accidents."""

import dataclasses
import os
import signal

import pytest
import torch
from safetensors import safe_open
from torch import nn

from medseg.config import TrainConfig, parse_flags
from medseg.engine import accidents, learning_rate
from medseg.engine.average import Average
from medseg.engine.batches import EpochBatches
from medseg.errors import UserError
from medseg.recipes import RECIPES

from .conftest import rows_of


def _rates(total=20, steps=5, losses=(), **fields):
    config = dataclasses.replace(TrainConfig(lr=1.0, warmup=0.0), **fields)
    return [learning_rate(config, step, steps, total, losses) for step in range(1, total + 1)]


def test_poly_is_that_of_pytorch():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=20, power=0.9)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert _rates(schedule="poly", power=0.9, lr_end=0.0) == pytest.approx(expected)


def test_step_drops_after_its_epochs():
    rates = _rates(schedule="step", step_size=2, gamma=0.5)
    assert rates == [1.0] * 10 + [0.5] * 10


def test_plateau_is_that_of_pytorch():
    losses = [1.0, 0.9, 0.9, 0.95, 0.8, 0.8, 0.8, 0.9, 0.7, 0.7, 0.7, 0.7, 0.7]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    # PyTorch drops after more than `patience` epochs
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=1, threshold=0.0, threshold_mode="abs"
    )
    for number, loss in enumerate(losses, 1):
        theirs.step(loss)
        rate = _rates(1, 1, losses[:number], schedule="plateau", step_size=2, gamma=0.5)[0]
        assert rate == optimizer.param_groups[0]["lr"], number


def test_constant_after_a_warm_up():
    assert _rates(4, schedule="constant", warmup=0.5) == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains(train, name):
    """Each published setting, on a small variant; what the caller says wins over it."""
    small = ["--model", f"{name}_s", "--epochs", 1, "--batch", 4, "--size", 32]
    run = train("--recipe", name, *small, "--steps", 2, short=False)
    assert run.code == 0, run.err
    again = parse_flags(["--config", str(run.folders[0] / "config.yaml")])
    assert (again.loss, again.optimizer, again.lr) == tuple(
        RECIPES[name][key] for key in ("loss", "optimizer", "lr")
    )
    assert (again.model, again.size) == (f"{name}_s", 32)


PUBLISHED = {  # by the sections of the specifications on losses and recipes
    "dra_net": "--optimizer adam --lr 1e-4 --weight_decay 1e-4 --schedule constant --epochs 300 "
    "--early_stop 50 --batch 6 --size 256 --augment false --seed 2023",
    "dpsau2_net": "--optimizer adam --lr 1e-3 --weight_decay 0 --schedule step --step_size 100 "
    "--gamma 0.5 --epochs 200 --batch 16 --size 256 --normalize imagenet --seed 42",
    "drrmsan": "--optimizer adam --lr 1e-5 --weight_decay 0 --schedule constant --epochs 150 "
    "--batch 2 --size 256 --augment false --deep_supervision true --seed 3",
    "hpddrnet": "--optimizer sgd --lr 0.01 --momentum 0.9 --weight_decay 5e-4 --schedule poly "
    "--power 0.9 --lr_end 0 --steps 120000 --batch 6 --size 1024 --patches 1 --foreground 0 "
    "--rescale 0.5,2 --normalize imagenet --deep_supervision true --seed 304",
    "e_du": "--optimizer adam --lr 1e-3 --weight_decay 0 --schedule plateau --step_size 10 "
    "--gamma 0.1 --lr_end 1e-5 --early_stop 20 --epochs 200 --batch 16 --size 256 --augment false",
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_published_numbers(name):
    loss = {"e_du": "bce"}.get(name, name)
    words = f"--model {name} --loss {loss} --warmup 0 --clip 0 {PUBLISHED[name]}"
    assert parse_flags(["--recipe", name]) == dataclasses.replace(
        parse_flags(words.split()), recipe=name
    )


def test_class_weights_of_hpddrnet():
    config = parse_flags(["--recipe", "hpddrnet", "--class_weights", "0.8373,0.918,0.866"])
    assert config.class_numbers == (0.8373, 0.918, 0.866)
    assert parse_flags(["--class_weights", "median"]).class_numbers is None


def test_recipe_of_a_file_lies_below_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("recipe: dra_net\nlr: 0.5\n")
    config = parse_flags(["--config", str(path), "--batch", "3"])
    assert (config.lr, config.batch, config.early_stop) == (0.5, 3, 50)


def test_average_forgets_the_first_weights():
    network = nn.BatchNorm1d(2)
    average = Average(network, 0.9)
    with torch.no_grad():
        network.weight.fill_(3.0)
        network.state_dict()["num_batches_tracked"].fill_(7)
    average.update(network)  # d = min(0.9, 1 / 10)
    assert average.network.state_dict()["weight"].tolist() == pytest.approx([0.1 * 1 + 0.9 * 3] * 2)
    assert int(average.network.state_dict()["num_batches_tracked"]) == 7


def test_early_stop_ends_and_tells(train):
    run = train("--early_stop", 1, "--epochs", 9, "--lr", 1e-12, "--weight_decay", 0)
    assert run.code == 0
    assert "ended early" in run.out
    assert len(rows_of(run.folders[0] / "metrics.csv")) < 9
    again = train("--resume", run.folders[0])
    assert again.code == 2
    assert "larger --early_stop" in again.err


def test_accumulated_batches_are_one_large_batch(train):
    """Of a mean over images that all count the same, and norms that see no batch."""
    flags = ["--model", "e_du_s", "--loss", "bce", "--augment", "false", "--epochs", 1]
    flags += ["--optimizer", "sgd", "--freeze_norm", "true", "--clip", 0, "--lr", 1e-2]
    large = train(*flags, "--batch", 4, "--name", "large")
    small = train(*flags, "--batch", 2, "--accumulate", 2, "--name", "small")
    ours, theirs = (
        torch.load(run.folders[-1] / "last.ckpt", weights_only=True)["model"]
        for run in (small, large)
    )
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_options_reach_network_and_metadata(train):
    run = train("--model_options.width", 8, "--epochs", 1, "--normalize", "imagenet")
    assert run.code == 0, run.err
    with safe_open(run.folders[0] / "best.safetensors", "pt") as file:
        about = file.metadata()
    assert about["options"] == '{"width": 8}'
    assert about["normalize"] == "imagenet"
    refused = train("--model_options.widht", 8)
    assert refused.code == 2 and "did you mean 'width'" in refused.err


def test_tensorboard_has_every_epoch(train):
    pytest.importorskip("tensorboard", reason="an extra: pip install 'medseg[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train("--tensorboard", "true")
    assert run.code == 0, run.err
    events = EventAccumulator(str(run.folders[0] / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("dice")] == [1, 2]


def test_shares_of_processes_are_the_batch_of_all():
    alone = EpochBatches(11, 4, seed=3)
    shares = [EpochBatches(11, 2, 3, rank, 2) for rank in range(2)]
    for one in (alone, *shares):
        one.start(5)
    whole, parts = list(alone), list(zip(*shares, strict=True))
    assert [[*first, *second] for first, second in parts] == whole
    assert len(whole) == len(alone) == 2
    alone.start(5, done=1)
    assert list(alone) == whole[1:]
    alone.start(6)
    assert list(alone) != whole


class _Dies(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        assert torch.utils.data.get_worker_info() is not None  # else it would end the tests
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_reader_is_named():
    with (
        pytest.raises(UserError, match=r"^--workers 1: .*(killed|exited).*take fewer") as caught,
        accidents(TrainConfig(workers=1)),
    ):
        list(torch.utils.data.DataLoader(_Dies(), num_workers=1))
    assert caught.value.code == 3


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: tried 1 bytes")],
)
def test_full_memory_is_named(error):
    with (
        pytest.raises(UserError, match=r"^--batch 8, --size 128: .* this machine"),
        accidents(TrainConfig()),
    ):
        raise error


def test_a_lost_process_is_named():
    with (
        pytest.raises(UserError, match=r"^--devices 2: another process"),
        accidents(TrainConfig(devices="2")),
    ):
        raise RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:1")
