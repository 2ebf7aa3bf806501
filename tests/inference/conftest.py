"""Networks as a training leaves them, without the training."""

from types import SimpleNamespace

import pytest
import torch

from medseg.models import create_model
from medseg.predict import main
from medseg.runs import RunFolder

FACTS = {
    "format": "pt",
    "medseg": "1",
    "model": "hpddrnet_s",
    "in_channels": 3,
    "classes": 3,
    "size": 32,
    "class_names": ["background", "cytoplasm", "nucleus"],
    "mask_values": [0, 128, 255],
    "epoch": 2,
    "dice": 0.5,
}


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Tiny tensors gain nothing from threads, and wait long for them on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_run(path, **facts):
    """A run folder with weights as they are drawn, and batch norms that have seen something."""
    facts = {**FACTS, **facts}
    torch.manual_seed(1)
    network = create_model(
        facts["model"], facts["in_channels"], facts["classes"], **facts.get("options", {})
    )
    with torch.no_grad():
        for _ in range(2):
            network(torch.rand(4, facts["in_channels"], 32, 32))
    path.mkdir(parents=True)
    RunFolder(path).write_weights("best.safetensors", network.state_dict(), facts)
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "fitted")


@pytest.fixture(scope="session")
def patch_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "patched", window=32, patches=True)


@pytest.fixture
def predict(run, tmp_path, capsys):
    """Calls `main` with the run and a fresh folder; gives code, out, err and the folder."""

    def call(*flags, weights=run, out=tmp_path / "out"):
        capsys.readouterr()
        flags = ("--weights", weights, "--out", out, *flags)
        code = main([str(each) for each in flags])
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err, folder=out)

    return call
