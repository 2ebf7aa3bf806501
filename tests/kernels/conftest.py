"""Backends of this machine as fixtures; what cannot run is a skip that says why."""

import pytest

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
