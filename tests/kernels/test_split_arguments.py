"""What split attention refuses, and in which words."""

import pytest
import torch

from medseg.kernels import split_attention
from tests.kernels.test_split import params


def wrong(**changes):
    learned, running = params(2, 1, 3)
    return {"x": torch.ones(2, 6, 4, 4), "training": True, **learned, **running} | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": torch.ones(6, 4, 4)}, r"x must be \(N, C, H, W\), got \(6, 4, 4\)"),
        ({"x": torch.ones(2, 6, 4, 4).long()}, "x must be float16.* got torch.int64"),
        ({"x": torch.ones(2, 6, 0, 4)}, "x must have C, H and W of at least 1"),
        ({"x": torch.ones(2, 5, 4, 4)}, r"radix \* cardinality = 2 \* 1 groups of channels"),
        ({"cardinality": 2}, r"radix \* cardinality = 2 \* 2 groups of channels"),
        ({"cardinality": 0}, r"radix \* cardinality = 2 \* 0 groups of channels"),
        ({"radix": 5}, "radix must be 1 to 4, got 5"),
        ({"radix": 0}, "radix must be 1 to 4, got 0"),
        ({"x": torch.ones(1, 6, 4, 4)}, "Expected more than 1 value per channel when training"),
        ({"fc1_weight": torch.ones(0, 3)}, "fc1_weight must have rows in 1 groups"),
        ({"fc1_weight": torch.ones(3)}, r"fc1_weight must be \(3, 3\), got \(3,\)"),
        ({"fc1_bias": torch.ones(3)}, r"fc1_bias must be \(12,\), got \(3,\)"),
        ({"fc2_weight": torch.ones(6, 6)}, r"fc2_weight must be \(6, 12\), got \(6, 6\)"),
        ({"bn_bias": None}, "bn_bias must be a tensor, got None"),
        ({"fc1_weight": None}, "fc1_weight must be a tensor, got None"),
        ({"running_var": torch.ones(12).half()}, "running_var must be torch.float32 like fc1_w"),
        ({"bn_weight": torch.ones(12, device="meta")}, "bn_weight must be on cpu like x, got meta"),
        ({"scale": torch.ones(6)}, "scale and shift must be given together"),
        ({"scale": torch.ones(3), "shift": torch.ones(3)}, r"scale must be \(6,\), got \(3,\)"),
        ({"scale": torch.ones(6).half(), "shift": torch.ones(6)}, "scale must be torch.float32"),
    ],
)
def test_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        split_attention(**wrong(**changes))


def test_a_named_backend_that_cannot_run_says_why():
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run split: cuda needs a CUDA"):
        split_attention(**wrong(training=False), backend="cuda")
