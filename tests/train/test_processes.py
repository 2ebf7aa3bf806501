"""Several processes, and several machines, are one process with the batch of all."""

import pytest
import torch

from .conftest import rows_of
from .processes import TRAIN, finish, finished_weights, free_port, start, torchrun

# no dropout and no draws; statistics of the batch, which need a GPU to be shared, are frozen
FLAGS = [
    *("--model", "dpsau2_net_s", "--freeze_norm", "true", "--augment", "false"),
    *("--epochs", "2", "--size", "32", "--lr", "1e-3", "--accumulate", "2"),
]


@pytest.fixture(scope="module")
def runs(smear, tmp_path_factory):
    """The same training in one process, in two, by torchrun, and on two nodes."""
    out = tmp_path_factory.mktemp("processes")

    def flags(name, batch):
        return ["--data", smear, "--out", out, "--name", name, "--batch", batch, *FLAGS]

    node = ["--nnodes", 2, "--nproc-per-node", 1, "--rdzv-id", "two", "--rdzv-backend", "c10d"]
    node += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    finish(start(*TRAIN, *flags("one", 4)), start(*TRAIN, *flags("two", 2), "--devices", "2"))
    finish(start(*torchrun("--nproc-per-node", 2), *flags("torchrun", 2)))
    finish(*(start(*torchrun(*node), *flags("nodes", 2)) for _ in range(2)))
    return out


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes GPUs where there are some")
@pytest.mark.parametrize("name", ["two", "torchrun", "nodes"])
def test_same_numbers_as_one_process(runs, name):
    ours, theirs = finished_weights(runs / name), finished_weights(runs / "one")
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-5)
    for our, their in zip(*(rows_of(runs / n / "metrics.csv") for n in (name, "one")), strict=True):
        for column in ("loss", "val_loss", "dice", "lr"):
            assert float(our[column]) == pytest.approx(float(their[column]), rel=1e-5, abs=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes GPUs where there are some")
@pytest.mark.parametrize("name", ["two", "torchrun", "nodes"])
def test_every_val_image_has_one_row(runs, name):
    ours, theirs = (rows_of(runs / n / "scores.csv") for n in (name, "one"))
    assert [row["image"] for row in ours] == [row["image"] for row in theirs]
    assert "cpu x 2" in (runs / name / "train.log").read_text()
