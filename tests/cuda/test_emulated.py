"""The CUDA kernels, compiled for the CPU from the same sources, against float64.

The emulator (tests/cuda/emulator) runs one fiber per CUDA thread, so indexing, barriers, shuffles,
shared memory and every formula are proved here; speed, and what only a real memory system can get
wrong, are not: see test_gpu.py.
"""

import functools

import pytest
import torch

from medseg.kernels import eca_attention, triplet_attention
from medseg.kernels.eca.reference import eca_reference
from medseg.kernels.triplet import cuda as triplet_cuda
from medseg.kernels.triplet.reference import triplet_reference
from tests.kernels.eca_cases import POOLED, check_pool, first_of_equals, joined
from tests.kernels.truth import DTYPES, SHAPES, check, layouts

# Beside the common shapes: more than one tile, part and gate tile in every direction, and tiles
# without a gap in either layout. The model's map would take the emulator too long.
ECA_SHAPES = (*SHAPES[:-1], (1, 2, 96, 97), (2, 70, 16, 21))
TRIPLET_SHAPES = (
    *SHAPES[:-1],
    (1, 9, 65, 66),
    (1, 9, 64, 64),
    (1, 64, 9, 32),
    (1, 70, 9, 12),
    (260, 2, 3, 2),
)
RUNS = (
    (torch.float32, False),
    (torch.float32, True),
    (torch.bfloat16, True),
    (torch.float16, False),
)


def eca_params(taps, dtype, bias=True):
    generator = torch.Generator().manual_seed(taps)
    weight = torch.randn(taps, generator=generator).to(dtype)
    return [weight, torch.randn(1, generator=generator).to(dtype)] if bias else [weight]


def triplet_params(gates, k, dtype):
    generator = torch.Generator().manual_seed(10 * gates + k)
    conv = torch.randn((gates, 2, k, k), generator=generator) / k
    scale = 0.5 + torch.rand(gates, generator=generator)
    shift = torch.randn(gates, generator=generator)
    return [p.to(dtype) for p in (conv, scale, shift)]


def triplet(op, training, gates, **options):
    """The op as a function of x and its parameters, on running statistics of its own."""

    def run(x, conv, scale, shift):
        mean = torch.linspace(-0.2, 0.3, gates, dtype=scale.dtype, device=x.device)
        var = torch.linspace(0.5, 1.5, gates, dtype=scale.dtype, device=x.device)
        return op(x, conv, scale, shift, mean, var, training=training, **options)

    return run


fused_eca = functools.partial(eca_attention, backend="cuda")


fused_pooled_eca = joined(eca_attention, 2, backend="cuda")


def fused_triplet(training, gates):
    return triplet(triplet_attention, training, gates, backend="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ECA_SHAPES)
def test_eca(emulator, shape, dtype):
    for x in layouts(shape, dtype):
        check(fused_eca, eca_reference, x, eca_params(3, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", (*POOLED[:5], (1, 2, 98, 96), (2, 72, 7, 24)))
def test_eca_adds_and_pools(emulator, shape, dtype):
    for x in layouts(shape, dtype):
        check_pool(eca_attention, x, eca_params(3, dtype), backend="cuda")


@pytest.mark.parametrize("shape", ((1, 5, 7, 20), (1, 8, 8, 24)))
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
def test_first_of_equal_maxima_behind_eca_gets_the_gradient(emulator, layout, shape):
    x = torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(0)).float()
    x = x.contiguous(memory_format=layout).requires_grad_()
    got = first_of_equals(eca_attention, x, backend="cuda")
    assert torch.equal(got, first_of_equals(eca_reference, x))


@pytest.mark.parametrize("taps", (1, 5, 9))
def test_eca_taps(emulator, taps):
    """More taps than channels too, and no bias."""
    for x in layouts((2, 3, 5, 20), torch.float32):
        check(fused_eca, eca_reference, x, eca_params(taps, torch.float32, bias=False))


@pytest.mark.parametrize(("dtype", "training"), RUNS)
@pytest.mark.parametrize("shape", TRIPLET_SHAPES)
def test_triplet(emulator, shape, dtype, training):
    gates = 2 if training and shape == SHAPES[0] else 3
    reference = triplet(triplet_reference, training, gates)
    for x in layouts(shape, dtype):
        check(fused_triplet(training, gates), reference, x, triplet_params(gates, 7, dtype))


@pytest.mark.parametrize("k", (1, 3, 5, 9, 25))
@pytest.mark.parametrize("gates", (2, 3))
def test_triplet_kernel_sizes(emulator, k, gates):
    reference = triplet(triplet_reference, True, gates)
    for x in layouts((2, 5, 33, 12), torch.float32):
        check(fused_triplet(True, gates), reference, x, triplet_params(gates, k, torch.float32))


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_float32_parameters_beside_half_input(emulator, dtype):
    for x in layouts((2, 7, 17, 19), dtype):
        check(fused_eca, eca_reference, x, eca_params(3, torch.float32))
        reference = triplet(triplet_reference, False, 3)
        check(fused_triplet(False, 3), reference, x, triplet_params(3, 7, torch.float32))


def test_many_channels_sum_the_taps_in_slices(emulator):
    for x in layouts((2, 5000, 1, 3), torch.float32):
        check(fused_eca, eca_reference, x, eca_params(3, torch.float32))


def test_long_axis_keeps_int32_indices(emulator):
    x = torch.randn((1, 1, 1, 33000), generator=torch.Generator().manual_seed(0))
    reference = triplet(triplet_reference, False, 3)
    check(fused_triplet(False, 3), reference, x, triplet_params(3, 3, torch.float32))


@pytest.mark.parametrize("value", (0.0, 1.5, -torch.inf))
def test_first_of_equal_maxima_gets_the_gradient(emulator, value):
    """A constant map, or one whose columns are all -inf: the index decides, not the value."""
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.full((2, 6, 34, 18), 0.5).contiguous(memory_format=layout)
        x[:, 3:] = value
        conv, scale, shift = triplet_params(3, 3, torch.float32)
        stats = torch.ones(2, 3)
        index = triplet_cuda.forward(x, conv, scale, shift, stats[0], stats[1], False, 1e-5, True)[
            3
        ]
        order = (2, 3, 1) if layout is torch.channels_last else (1, 2, 3)
        parts = index.split([x.numel() // x.shape[axis] for axis in order])
        for axis, part in zip(order, parts, strict=True):
            kept = [a for a in order if a != axis]
            got = part.view(2, *(x.shape[a] for a in kept)).long()
            want = x.max(axis).indices  # (N, the other two axes in NCHW order)
            assert torch.equal(got, want if kept == sorted(kept) else want.transpose(1, 2)), axis


@pytest.mark.parametrize("bad", (torch.nan, torch.inf, -torch.inf))
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_travel_as_in_the_reference(emulator, dtype, bad):
    for x in layouts((2, 6, 10, 40), dtype):
        x[0, 2, 3, 33] = bad
        for fused, reference, params in (
            (fused_eca, eca_reference, eca_params(3, dtype)),
            (fused_eca, eca_reference, eca_params(5, dtype)),
            (
                functools.partial(fused_eca, pool=2),
                functools.partial(eca_reference, pool=2),
                eca_params(3, dtype),
            ),
            (
                fused_triplet(False, 3),
                triplet(triplet_reference, False, 3),
                triplet_params(3, 3, dtype),
            ),
        ):
            got = fused(x, *params)
            # In float32: PyTorch's own bfloat16 convolution carries NaN further than its taps.
            want = reference(x.float(), *(p.float() for p in params))
            assert torch.equal(got.isnan(), want.isnan())
            assert torch.equal(got.isinf(), want.isinf())


def with_gradients(fn, x, params):
    leaves = [t.detach().to(x.device, copy=True).requires_grad_() for t in (x, *params)]
    out = fn(*leaves)
    return [out, *torch.autograd.grad(out, leaves, torch.ones_like(out) / 3)]


def everything(x):
    """Outputs and gradients of both ops, training and evaluation."""
    return [
        *with_gradients(fused_eca, x, eca_params(5, x.dtype)),
        *with_gradients(fused_pooled_eca, x, [x.flip(0), *eca_params(5, x.dtype)]),
        *with_gradients(fused_triplet(True, 3), x, triplet_params(3, 7, x.dtype)),
        *with_gradients(fused_triplet(False, 2), x, triplet_params(2, 3, x.dtype)),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_again_and_in_any_order_of_threads(emulator, dtype):
    """A missing barrier, a race between blocks or an unordered sum would show here."""
    for x in layouts((2, 20, 40, 72), dtype):
        same_in_any_order(emulator, lambda x=x: everything(x))


def test_same_bits_where_blocks_own_several_tiles(emulator):
    """Beyond 256 tiles of a plane the gate kernels' blocks take more than one."""
    x = torch.randn((258, 1, 9, 9), generator=torch.Generator().manual_seed(0), requires_grad=True)
    for training in (False, True):
        params = triplet_params(3, 3, x.dtype)
        same_in_any_order(
            emulator, lambda p=params, t=training: with_gradients(fused_triplet(t, 3), x, p)
        )
        check(
            fused_triplet(training, 3), triplet(triplet_reference, training, 3), x.detach(), params
        )


def same_in_any_order(emulator, run):
    first, again = run(), run()
    with emulator.shuffled():
        other = run()
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
def test_launches(emulator, layout):
    x = torch.randn(2, 16, 12, 12).contiguous(memory_format=layout).requires_grad_()

    def count(fn):
        before = emulator.launches()
        return fn(), emulator.launches() - before

    out, forward = count(lambda: fused_eca(x, *eca_params(3, x.dtype)))
    _, backward = count(lambda: out.sum().backward())
    assert (forward, backward) == (2, 2)
    out, forward = count(lambda: fused_pooled_eca(x, x.flip(0), *eca_params(3, x.dtype)))
    _, backward = count(lambda: out.sum().backward())
    assert (forward, backward) == (2, 2)
    params = triplet_params(3, 7, x.dtype)
    for training, expected in ((False, (3, 4)), (True, (4, 4))):
        out, forward = count(lambda t=training: fused_triplet(t, 3)(x, *params))
        _, backward = count(lambda o=out: o.sum().backward())
        assert (forward, backward) == expected


def test_empty_batches_need_no_launch(emulator):
    before = emulator.launches()
    x = torch.empty((0, 3, 4, 5), requires_grad=True)
    params = [p.requires_grad_() for p in eca_params(3, x.dtype)]
    out = fused_eca(x, *params)
    grads = torch.autograd.grad(out.sum(), [x, *params])
    assert out.shape == x.shape and not any(g.any() for g in grads)
    out = fused_pooled_eca(x, x, *params)
    assert out.shape == (0, 3, 2, 2)
    assert not any(g.any() for g in torch.autograd.grad(out.sum(), [x, *params]))
    params = [p.requires_grad_() for p in triplet_params(3, 3, x.dtype)]
    out = fused_triplet(True, 3)(x, *params)
    grads = torch.autograd.grad(out.sum(), [x, *params])
    assert out.shape == x.shape and not any(g.any() for g in grads)
    assert emulator.launches() == before


def test_empty_batch_behind_the_python_door(emulator):
    """The C++ launchers answer for an empty batch themselves: gradients are zero."""
    module, grads = emulator.module, torch.full((4,), torch.nan)
    shape = module.EcaShape((0, 3, 2, 2), (12, 4), False, 3, 1)
    at = grads.data_ptr()
    module.eca_backward(0, 0, 0, shape, 0, 0, 0, (0, 0), (at, 0), 0, 0, at, at + 12, 0)
    assert not grads.any()
    stats = torch.full((3, 3), torch.nan)
    shape = module.TripletShape(0, (2, 2, 2), (8, 4, 2), False, 3, 3, True, 1e-5)
    none = [(0, 0)] * 5
    module.triplet_forward(0, 0, 0, shape, 0, none, 0, stats.data_ptr(), 0, 0, 2, 0)
    assert not stats.any()


def test_refusals(emulator):
    x = torch.randn(1, 2, 4, 4)
    with pytest.raises(ValueError, match=r"k of at most 25 for backend 'cuda'"):
        fused_triplet(False, 3)(x, *triplet_params(3, 27, x.dtype))
    shape = emulator.module.EcaShape((1, 2, 4, 4), (32, 16), False, 10001, 1)
    with pytest.raises(RuntimeError, match="CUDA launch failed: invalid argument"):
        emulator.module.eca_forward(0, 0, 0, shape, 0, 0, (0, 0), (0, 0), 0, 0, 0, 0)


def test_module_tells_how_it_was_built(emulator):
    assert emulator.module.build_info() == {"cuda": "0.0", "archs": ""}
