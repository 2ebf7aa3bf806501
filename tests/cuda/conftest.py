"""The CUDA kernels on the CPU: built once, and reached as backend "cuda" by CPU tensors."""

import contextlib
import ctypes
from collections.abc import Iterator

import pytest
import torch

from medseg.kernels import _backend
from medseg.kernels.eca import cuda as eca_cuda
from medseg.kernels.gate import cuda as gate_cuda
from medseg.kernels.mde import cuda as mde_cuda
from medseg.kernels.split import cuda as split_cuda
from medseg.kernels.triplet import cuda as triplet_cuda
from tests.cuda.emulator import build


class Emulator:
    """The emulated `_cuda` and what only an emulator can tell."""

    def __init__(self, module):
        self.module = module
        self._library = ctypes.CDLL(module.__file__)
        self._library.emulator_launches.restype = ctypes.c_long

    def launches(self) -> int:
        """Kernels launched so far."""
        return self._library.emulator_launches()

    @contextlib.contextmanager
    def shuffled(self) -> Iterator[None]:
        """Threads run in another order, blocks last to first."""
        self._library.emulator_shuffle(1)
        try:
            yield
        finally:
            self._library.emulator_shuffle(0)


@pytest.fixture(scope="session")
def emulator_build(tmp_path_factory):
    if build.compiler() is None:
        pytest.skip("no C++ compiler was found to build the CUDA kernels for the CPU")
    return Emulator(build.build_module(tmp_path_factory.mktemp("emulated")))


@pytest.fixture
def emulator(emulator_build, monkeypatch):
    """Sends backend "cuda" through the emulator; fresh memory is full of NaN meanwhile."""

    @contextlib.contextmanager
    def on_device(x):
        yield 0, 0

    for launchers in (eca_cuda, gate_cuda, mde_cuda, split_cuda, triplet_cuda):
        monkeypatch.setattr(launchers, "native", lambda name: emulator_build.module)
        monkeypatch.setattr(launchers, "on_device", on_device)
    monkeypatch.setattr(_backend, "_why_not_cuda", lambda device: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    _backend._resolve.cache_clear()
    yield emulator_build
    torch.use_deterministic_algorithms(before)
    _backend._resolve.cache_clear()
