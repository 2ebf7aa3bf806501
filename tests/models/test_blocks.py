"""Shared blocks, where they are more than PyTorch's layers in a row."""

import torch

from medseg.models import fuse_conv_bn
from medseg.models.blocks import Up


def test_up_takes_its_batch_norm_in():
    torch.manual_seed(0)
    up, x = Up(6, 3, bias=False), torch.randn(2, 6, 5, 4)
    up(x)
    folded = fuse_conv_bn(up.eval(), x)
    assert isinstance(folded.bn, torch.nn.Identity)
    torch.testing.assert_close(folded(x), up(x))
