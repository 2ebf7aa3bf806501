"""A server in this process, and one in a process of its own, of networks nobody trained."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from tests.inference.conftest import one_thread, write_run  # noqa: F401

for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "httpx"):
    pytest.importorskip(package, reason=f"{package} is missing: pip install 'medseg[test]'")

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "fitted", class_names=["none", "a", "b <i>"])


def picture(height=40, width=30, seed=0, ending=".png"):
    """An image file's bytes: smooth colours, such as an untrained network tells apart."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    done, packed = cv2.imencode(ending, cv2.resize(coarse, (width, height)))
    assert done
    return packed.tobytes()


@contextlib.contextmanager
def started(run, *flags) -> Iterator[Any]:
    """A server in another process, which says on stdout when it is ready."""
    words = [sys.executable, "-m", "medseg.serve", str(run), "--port", "0", *flags]
    kept = {k: v for k, v in os.environ.items() if k != "MEDSEG_BACKEND"}
    kept |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        words, cwd=ROOT, env=kept, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="session")
def server(run):
    """url, pid and a way to the peak of its memory, in MB."""
    with started(run, "--json", "--max_mb", "8", "--max_megapixels", "4") as it:
        said = json.loads(it.stdout.readline())

        def peak():
            status = Path(f"/proc/{it.pid}/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) / 1024

        yield SimpleNamespace(**said, peak=peak, process=it)
        assert it.poll() is None, it.communicate()


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def network(run):
    from medseg.inference import Predictor, load_trained
    from medseg.serve.network import Network

    with contextlib.closing(Network(Predictor(load_trained(run)), 4)) as network:
        yield network


@pytest.fixture(scope="session")
def client(run, network, home):
    """Calls the application without a socket in between."""
    from fastapi.testclient import TestClient

    from medseg.serve.app import make_app
    from medseg.serve.config import ServeConfig

    config = ServeConfig(str(run), max_mb=2, max_megapixels=1, queue=4)
    app = make_app(config, network, home, {"127.0.0.1"})
    with TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client
