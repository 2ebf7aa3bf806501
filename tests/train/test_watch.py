"""Which ops a run says it used."""

import pytest
import torch
from torch.nn import functional as F

from medseg.engine import OpWatch
from medseg.kernels import position_attention


@pytest.mark.usefixtures("no_small_position")
def test_fused_attention_of_pytorch_counts_as_position():
    """On a GPU position attention is no op of ours, on a CPU it is, and is counted once."""
    tokens = torch.randn(1, 1, 32, 8)
    with torch.no_grad(), OpWatch() as watch:
        F.scaled_dot_product_attention(tokens, tokens, tokens)
        assert watch.seen == {"position": {"cpu": 1}}
        position_attention(tokens[0], tokens[0], tokens[0])
    assert watch.seen == {"position": {"cpu": 2}}
