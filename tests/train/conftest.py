"""A small set and a short way to run a training."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from medseg.data import write_blood_smear
from medseg.train import main

SHORT = ["--epochs", "2", "--batch", "4", "--size", "32"]


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Tiny tensors gain nothing from threads, and wait long for them on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smear(tmp_path_factory):
    return write_blood_smear(tmp_path_factory.mktemp("data") / "smear", count=10, size=48)


@pytest.fixture
def train(smear, tmp_path, capsys):
    """Calls `main` on the small set; gives code, out, err and the run folders below --out."""

    def call(*flags, data=smear, short=True):
        out = tmp_path / "runs"
        argv = ["--data", str(data), "--out", str(out), *(SHORT if short else []), *map(str, flags)]
        capsys.readouterr()
        code = main(argv)
        said = capsys.readouterr()
        folders = sorted(p for p in out.iterdir() if p.is_dir()) if out.exists() else []
        return SimpleNamespace(code=code, out=said.out, err=said.err, folders=folders)

    return call


@pytest.fixture(scope="package")
def finished(smear, tmp_path_factory):
    """The folder of one finished run."""
    out = tmp_path_factory.mktemp("runs")
    assert main(["--data", str(smear), "--out", str(out), "--name", "first", *SHORT]) == 0
    return out / "first"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def numbers_of(run: Path) -> list[dict[str, str]]:
    """metrics.csv without the columns that a clock fills."""
    return [
        {key: value for key, value in row.items() if not key.startswith(("seconds", "waiting"))}
        for row in rows_of(run / "metrics.csv")
    ]
