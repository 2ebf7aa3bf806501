"""The CUDA kernels of split attention, compiled for the CPU; see test_emulated.py."""

import functools
import itertools

import pytest
import torch

from tests.cuda.test_emulated import same_in_any_order, with_gradients
from tests.kernels.split_cases import split_pair, split_params
from tests.kernels.truth import DTYPES, check, error, layouts

# Shape of out, radix, cardinality, hidden units, biases: each radix, one and several slabs, parts
# and warps' worth of everything, with tiles that have no gap and tiles that do.
CASES = (
    ((4, 8, 16, 16), 2, 1, 8, True),
    ((3, 7, 17, 19), 2, 1, 5, False),
    ((2, 3, 2, 2), 1, 1, 40, True),
    ((3, 6, 33, 1), 3, 2, 4, True),
    ((2, 5, 1, 9), 4, 1, 3, True),
    ((2, 2, 65, 66), 2, 1, 4, True),
    ((2, 36, 16, 21), 2, 2, 6, True),
)


def check_split(case, dtype, training, params_dtype=None):
    shape, radix, cardinality, inner, bias = case
    n, c, h, w = shape
    params = split_params(c, inner, radix, cardinality, bias)
    params = [p.to(params_dtype or dtype) for p in params]
    fused, reference = split_pair(radix, cardinality, training, "cuda")
    for x in layouts((n, radix * c, h, w), dtype):
        check(fused, reference, x, params, shape=shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case[:2]))
def test_holds_the_rule(emulator, case, dtype):
    """Two images give a batch norm that tells no more than their order: those in evaluation."""
    check_split(case, dtype, training=case[0][0] > 2)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_float32_parameters_beside_half_input(emulator, dtype):
    check_split(CASES[1], dtype, True, torch.float32)


def test_more_images_than_warps_and_threads(emulator):
    check_split(((260, 3, 2, 1), 2, 1, 3, True), torch.float32, True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm_and_relu_in_front_are_folded_in(emulator, dtype):
    """Edges of blocks too: what lies outside must not count as relu(shift)."""
    fused, reference = split_pair(2, 1, False, "cuda")
    for c, h, w in ((5, 9, 11), (36, 6, 7), (2, 70, 66)):
        scale, shift = torch.linspace(-1, 1, 2 * c), torch.linspace(1, -0.5, 2 * c)
        params = split_params(c, 6, 2)
        for x in layouts((2, 2 * c, h, w), dtype):
            with torch.no_grad():
                got = fused(x, *params, scale=scale, shift=shift)
                plain = reference(x, *params, scale=scale, shift=shift)
                wide = [t.double() for t in (x, *params)]
                truth = reference(*wide, scale=scale.double(), shift=shift.double())
            assert error(got, truth) <= 2 * error(plain, truth) + 1e-6
            x[0, 1, 2, 3] = torch.nan  # which the ReLU must let through
            with torch.no_grad():
                got, want = (fn(x, *params, scale=scale, shift=shift) for fn in (fused, reference))
            assert got[0].isnan().all() and torch.equal(got.isnan(), want.isnan())


@pytest.mark.parametrize("bad", (torch.nan, torch.inf, -torch.inf))
@pytest.mark.parametrize("training", (False, True))
def test_nan_and_infinity_travel_as_in_the_reference(emulator, training, bad):
    fused, reference = split_pair(2, 1, training, "cuda")
    params = split_params(4, 6, 2)
    for x in layouts((3, 8, 5, 9), torch.float32):
        x[0, 2, 3, 4] = bad
        got, want = with_gradients(fused, x, params), with_gradients(reference, x, params)
        for g, w in zip(got[:2], want[:2], strict=True):
            assert torch.equal(g.isnan(), w.isnan()) and torch.equal(g.isinf(), w.isinf())
        assert want[0].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_again_and_in_any_order_of_threads(emulator, dtype):
    """A missing barrier, a race between blocks or an unordered sum would show here."""
    for radix, training in ((2, True), (3, False)):
        fused, _ = split_pair(radix, 1, training, "cuda")
        params = [p.to(dtype) for p in split_params(18, 6, radix)]
        for x in layouts((4, radix * 18, 20, 41), dtype):
            same_in_any_order(emulator, functools.partial(with_gradients, fused, x, params))


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
def test_launches(emulator, layout):
    x = torch.randn(3, 16, 12, 12).contiguous(memory_format=layout).requires_grad_()
    params = [p.requires_grad_() for p in split_params(8, 6, 2)]
    counts = [emulator.launches()]
    out = split_pair(2, 1, True, "cuda")[0](x, *params)
    counts.append(emulator.launches())
    torch.autograd.grad(out.sum(), [x, *params], retain_graph=True)
    counts.append(emulator.launches())
    torch.autograd.grad(out.sum(), params)
    counts.append(emulator.launches())
    assert [b - a for a, b in itertools.pairwise(counts)] == [4, 5, 5]


def test_empty_batch_needs_no_launch(emulator):
    before = emulator.launches()
    x = torch.empty(0, 8, 4, 5, requires_grad=True)
    params = [p.requires_grad_() for p in split_params(4, 6, 2)]
    out = split_pair(2, 1, True, "cuda")[0](x, *params)
    grads = torch.autograd.grad(out.sum(), [x, *params])
    assert out.shape == (0, 4, 4, 5) and not any(g.any() for g in grads)
    assert emulator.launches() == before


def test_behind_the_python_door(emulator):
    """The C++ launchers answer for an empty batch and for sizes that do not fit themselves."""
    module, grads = emulator.module, torch.full((6, 8), torch.nan)
    shape = module.SplitShape((0, 4, 20), (160, 20), False, (2, 1, 2), True, 1e-5)
    ats = [row.data_ptr() for row in grads]
    none = (0, 0)
    module.split_backward(0, 0, 0, shape, 0, 0, [none] * 5, 0, 0, 0, ats, 0)
    counts = (8, 2, 2, 2, 16, 8)
    assert not any(grads.flatten()[8 * i : 8 * i + min(k, 8)].any() for i, k in enumerate(counts))
    stats = torch.full((3, 2), torch.nan)
    module.split_forward(0, 0, 0, shape, 0, [none] * 10, 0, stats.data_ptr(), 0, 0)
    assert not stats.any()
    shape = module.SplitShape((1, 4, 20), (160, 20), False, (5, 1, 2), True, 1e-5)
    with pytest.raises(RuntimeError, match="CUDA launch failed: invalid argument"):
        module.split_forward(0, 0, 0, shape, 0, [none] * 10, 0, 0, 0, 0)
