"""Every test draws the same numbers on every run, so that a failure is there again tomorrow."""

import signal

import pytest
from hypothesis import settings

from medseg.startup import settle

settle()  # before PyTorch is loaded; beside other programs the tests would take far longer
# A shell's background job is deaf to Ctrl-C, and so would be the programs that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def same_numbers():
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="module")
def no_small_position():
    """Takes small position attention the way that large ones go."""
    from medseg.kernels.position import op

    before, op.SMALL = op.SMALL, 0
    yield
    op.SMALL = before
