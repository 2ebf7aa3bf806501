"""Pooling and application as ops of their own on Triton; see test_triton.py."""

import pytest
import torch

from medseg.kernels import triplet_pool
from tests.kernels.parts_cases import (
    pooled_index,
    split_gates,
    split_parts,
    triplet_gates,
    triplet_parts,
)
from tests.kernels.test_parts import check_split, check_triplet
from tests.kernels.test_triton import BRAIN, FORMATS, HALF, SINGLE, far_apart
from tests.kernels.truth import layouts


@pytest.mark.parametrize("dtype", (SINGLE, HALF, BRAIN), ids=str)
@pytest.mark.parametrize("radix", (1, 2, 3, 4))
def test_split_holds_the_rule(radix, dtype, device):
    for x in layouts((2, radix * 3, 7, 9), dtype, device):
        check_split(x, radix, "triton")


@pytest.mark.parametrize("dtype", (SINGLE, HALF, BRAIN), ids=str)
@pytest.mark.parametrize("shape", ((2, 5, 9, 11), (1, 3, 2, 2), (2, 4, 9, 1)), ids=str)
def test_triplet_holds_the_rule(shape, dtype, device):
    for x in layouts(shape, dtype, device):
        check_triplet(x, dtype is not HALF, "triton")


@FORMATS
def test_shares_of_large_planes_are_added(memory_format, device):
    x = torch.randn(1, 2, 40, 66).to(device, memory_format=memory_format)
    check_split(x, 2, "triton")
    check_triplet(x, True, "triton")


@FORMATS
def test_the_first_of_equal_maxima_gets_the_gradient(memory_format, device):
    x = torch.randint(-1, 2, (2, 3, 9, 33)).float().to(device, memory_format=memory_format)
    for value in (x, x.bfloat16()):
        value = value.detach().requires_grad_()
        got = pooled_index(triplet_pool(value, backend="triton"), value)
        want = pooled_index(triplet_pool(value, backend="reference"), value)
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_empty_batch(device):
    x = torch.randn(0, 4, 5, 6, device=device, requires_grad=True)
    for pair, gates in (
        (split_parts(2, "triton"), split_gates(x)),
        (triplet_parts("triton"), triplet_gates(x)),
    ):
        out = pair[0](x, *(g.requires_grad_() for g in gates))
        assert all(g.numel() == 0 for g in torch.autograd.grad(out.sum(), (x, *gates)))


def test_images_beyond_32_bit_indices(device):
    check_split(far_apart((2, 6, 4, 5), device), 2, "triton")
    check_triplet(far_apart((2, 6, 4, 5), device), True, "triton")
