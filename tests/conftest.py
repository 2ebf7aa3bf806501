"""Every test draws the same numbers on every run, so that a failure is there again tomorrow."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)
