"""Which ops a run says it used."""

import pytest
import torch
from torch.nn import functional as F

from medseg.engine import OpWatch
from medseg.kernels import mde_filter, position_attention, use_backend


@pytest.mark.usefixtures("no_small_position")
def test_fused_attention_of_pytorch_counts_as_position():
    """On a GPU position attention is no op of ours, on a CPU it is, and is counted once."""
    tokens = torch.randn(1, 1, 32, 8)
    with torch.no_grad(), OpWatch() as watch:
        F.scaled_dot_product_attention(tokens, tokens, tokens)
        assert watch.seen == {"position": {"cpu": 1}}
        position_attention(tokens[0], tokens[0], tokens[0])
    assert watch.seen == {"position": {"cpu": 2}}


def test_the_backend_is_told_from_other_words():
    """The filter is also given the names of its bank and of its border."""
    with torch.no_grad(), use_backend("cpu"), OpWatch() as watch:
        mde_filter(torch.randn(1, 4, 32, 32), torch.ones(1, 4))
    assert watch.seen == {"mde": {"cpu": 1}}
