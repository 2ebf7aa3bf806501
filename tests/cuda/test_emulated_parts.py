"""The CUDA kernels of pooling and application, compiled for the CPU; see test_emulated.py."""

import pytest
import torch

from medseg.kernels import triplet_pool
from tests.cuda.test_emulated import TRIPLET_SHAPES, same_in_any_order, with_gradients
from tests.kernels.parts_cases import (
    pooled_index,
    split_gates,
    split_parts,
    triplet_gates,
    triplet_parts,
)
from tests.kernels.test_parts import check_split, check_triplet
from tests.kernels.truth import DTYPES, layouts

# (N, C, H, W) of out and radix: each radix, one and several slabs and parts, gaps and none.
SPLITS = (
    ((4, 8, 16, 16), 2),
    ((3, 7, 17, 19), 2),
    ((2, 3, 2, 2), 1),
    ((3, 6, 33, 1), 3),
    ((2, 5, 1, 9), 4),
    ((2, 2, 65, 66), 2),
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SPLITS, ids=str)
def test_split_holds_the_rule(emulator, case, dtype):
    (n, c, h, w), radix = case
    for x in layouts((n, radix * c, h, w), dtype):
        check_split(x, radix, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", TRIPLET_SHAPES[:-1])
def test_triplet_holds_the_rule(emulator, shape, dtype):
    for x in layouts(shape, dtype):
        check_triplet(x, dtype is not torch.float16, "cuda")


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
def test_the_first_of_equal_maxima_gets_the_gradient(emulator, layout):
    x = torch.randint(-1, 2, (2, 6, 34, 36)).float().contiguous(memory_format=layout)
    x.requires_grad_()
    got = pooled_index(triplet_pool(x, backend="cuda"), x)
    want = pooled_index(triplet_pool(x, backend="reference"), x)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


def test_a_long_axis_keeps_int32_indices(emulator):
    x = torch.randn((1, 1, 1, 33000), generator=torch.Generator().manual_seed(0))
    check_triplet(x, True, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_again_and_in_any_order_of_threads(emulator, dtype):
    for x in layouts((2, 20, 20, 40), dtype):

        def everything(x=x):
            split = with_gradients(split_parts(2, "cuda")[0], x, split_gates(x))
            return split + with_gradients(triplet_parts("cuda")[0], x, triplet_gates(x))

        same_in_any_order(emulator, everything)


def test_launches(emulator):
    """Kernels of ours: pool, apply, then back through both."""
    x = torch.randn(2, 16, 12, 12, requires_grad=True)

    def count(fn):
        before = emulator.launches()
        return fn(), emulator.launches() - before

    for (fused, _), gates, expected in (
        (split_parts(2, "cuda"), split_gates(x), (2, 2)),
        (triplet_parts("cuda"), triplet_gates(x), (3, 4)),
    ):
        out, forward = count(lambda f=fused, g=gates: f(x, *g))
        _, backward = count(lambda o=out: o.sum().backward())
        assert (forward, backward) == expected


def test_empty_batches_need_no_launch(emulator):
    before = emulator.launches()
    x = torch.empty((0, 4, 4, 5), requires_grad=True)
    for (fused, _), gates in (
        (split_parts(2, "cuda"), split_gates(x)),
        (triplet_parts("cuda"), triplet_gates(x)),
    ):
        out = fused(x, *(g.requires_grad_() for g in gates))
        assert all(g.numel() == 0 for g in torch.autograd.grad(out.sum(), [x, *gates]))
    assert emulator.launches() == before


def test_refusals(emulator):
    module = emulator.module
    shape = module.SplitShape((1, 4, 20), (160, 20), False, (5, 1, 1), False, 0.0)
    assert module.split_parts(0, shape) == 0
    with pytest.raises(RuntimeError, match="CUDA launch failed: invalid argument"):
        module.split_pool(0, 0, 0, shape, 0, 0)
