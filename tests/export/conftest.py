"""Runs to export, and their graphs, each made once: that is what costs most."""

import pytest

from medseg.export import run as verb
from medseg.export.capture import capture
from medseg.inference import load_trained
from tests.inference.conftest import one_thread, write_run

__all__ = ["one_thread"]


@pytest.fixture(scope="session", autouse=True)
def captured():
    """Gives the verb the graph of a network that was captured before."""
    graphs = {}

    def once(trained):
        if trained.path not in graphs:
            graphs[trained.path] = capture(trained)
        return graphs[trained.path]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "capture", once)
        yield once


@pytest.fixture(scope="session")
def run_of(tmp_path_factory):
    """A run folder by the name of its network."""
    runs = {}

    def made(name):
        if name not in runs:
            runs[name] = write_run(tmp_path_factory.mktemp("runs") / name, model=name)
        return runs[name]

    return made


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Of a tiny network, on normalised images."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    options = {"width": 8, "depth": 1}
    return write_run(path, model="e_du_s", normalize="imagenet", options=options)


@pytest.fixture(scope="session")
def trained(run):
    return load_trained(run)
