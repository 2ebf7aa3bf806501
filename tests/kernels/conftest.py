"""Backends of this machine as fixtures; what cannot run is a skip that says why."""

import importlib

import numpy as np
import pytest
import torch

from medseg.kernels._backend import compiled, why_not


@pytest.fixture
def needs_cpu():
    reason = why_not("cpu", "eca")
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(params=("baseline", "avx2", "avx512"))
def every_isa(request, needs_cpu):
    """Runs the test with the compiled CPU kernels of each instruction set."""
    module, _ = compiled("_cpu")
    assert module is not None
    if request.param not in module.isas():
        pytest.skip(f"this processor cannot run the {request.param} kernels")
    before = module.isa()
    module.set_isa(request.param)
    yield request.param
    module.set_isa(before)


@pytest.fixture(params=("cpu", pytest.param("cuda", marks=pytest.mark.gpu)))
def device(request, monkeypatch):
    """Where Triton runs: a CPU under its interpreter, or a GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU, PyTorch finds none")
    reason = why_not("triton", "eca", request.param)
    if reason is not None:
        pytest.skip(reason)
    if request.param == "cpu":
        round_as_a_gpu_does(monkeypatch)
    return request.param


def round_as_a_gpu_does(monkeypatch):
    """The interpreter cuts float32 off to bfloat16, up to twice the error of rounding."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    convert = interpreter._convert_float

    def rounded(values, source, target, mode):
        if (source.name, target.name) != ("fp32", "bf16"):
            return convert(values, source, target, mode)
        single = torch.from_numpy(np.ascontiguousarray(values).view(np.float32))
        return single.bfloat16().view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
