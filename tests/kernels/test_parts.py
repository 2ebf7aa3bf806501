"""Pooling and application as ops of their own, on the CPU backend; see also test_ops.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.kernels import split_apply, split_pool, triplet_apply, triplet_pool
from tests.kernels.parts_cases import (
    pooled_index,
    split_gates,
    split_parts,
    triplet_gates,
    triplet_parts,
)
from tests.kernels.truth import DTYPES, SHAPES, check, layouts, on_threads

FORMATS = pytest.mark.parametrize(
    "memory_format", (torch.contiguous_format, torch.channels_last), ids=str
)


def check_split(x, radix=2, backend="cpu"):
    n, width, h, w = x.shape
    gates = [g.to(torch.promote_types(x.dtype, torch.float32)) for g in split_gates(x)]
    check(*split_parts(radix, backend), x, gates, shape=(n, width // radix, h, w))


def check_triplet(x, spatial=True, backend="cpu"):
    gates = triplet_gates(x, spatial)
    gates = [g.to(torch.promote_types(x.dtype, torch.float32)) for g in gates]
    check(*triplet_parts(backend), x, gates)


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("dtype", (torch.float64, *DTYPES), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cpu_holds_the_rule(shape, dtype):
    n, c, h, w = shape
    for x in layouts(shape, dtype):
        check_triplet(x, spatial=c != 7)
    for radix in (2,) if c == 64 else (1, 2, 3, 4):
        for x in layouts((n, radix * c, h, w), dtype):
            check_split(x, radix)


@pytest.mark.usefixtures("needs_cpu")
@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 4),
    c=st.integers(1, 20),
    h=st.integers(1, 20),
    w=st.integers(1, 20),
    radix=st.integers(1, 4),
    last=st.booleans(),
    threads=st.integers(1, 16),
)
def test_any_shape_and_number_of_threads(n, c, h, w, radix, last, threads):
    x = torch.randn(n, radix * c, h, w, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    with on_threads(threads):
        check_split(x, radix)
        check_triplet(x, spatial=threads % 2 == 0)


@pytest.mark.usefixtures("every_isa")
@FORMATS
def test_the_first_of_equal_maxima_gets_the_gradient(memory_format):
    x = torch.randint(-1, 2, (2, 9, 21, 35)).double().contiguous(memory_format=memory_format)
    x.requires_grad_()
    got = pooled_index(triplet_pool(x, backend="cpu"), x)
    want = pooled_index(triplet_pool(x, backend="reference"), x)
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w) and set(w.unique().tolist()) == {0.0, 1.0}


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
@FORMATS
def test_special_values_spread_as_in_the_reference(value, memory_format):
    x = torch.randn(2, 6, 20, 37)
    x[1, 2, 3, 4] = value
    x = x.contiguous(memory_format=memory_format)
    for pair, gates in ((split_parts(2, "cpu"), split_gates(x)), (triplet_parts("cpu"), None)):
        got, want = (fn(x, *(gates or triplet_gates(x))) for fn in pair)
        torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-4, atol=1e-4)
        assert not want.isfinite().all()


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
@FORMATS
def test_a_gate_that_is_not_there_takes_no_part(value, memory_format):
    """Infinity times 0 would be NaN; on rows longer and shorter than a vector."""
    for width in (37, 3):
        x = torch.randn(2, 6, 20, width)
        x[1, 2, 3, 1] = value
        x = x.contiguous(memory_format=memory_format)
        gates = [torch.rand(2, 1, 6, width) + 0.1, torch.rand(2, 1, 20, 6) + 0.1]
        got, want = (triplet_apply(x, gates, backend=name) for name in ("cpu", "reference"))
        torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-4, atol=1e-4)
        assert want[1, 2, 3, 1].isnan() == x[1, 2, 3, 1].isnan()


@pytest.mark.usefixtures("needs_cpu")
def test_empty_batch():
    x = torch.randn(0, 4, 5, 6, requires_grad=True)
    for (fused, _), gates in (
        (split_parts(2, "cpu"), split_gates(x)),
        (triplet_parts("cpu"), triplet_gates(x)),
    ):
        out = fused(x, *(g.requires_grad_() for g in gates))
        grads = torch.autograd.grad(out.sum(), (x, *gates))
        assert out.shape[0] == 0 and [g.shape for g in grads] == [t.shape for t in (x, *gates)]


@pytest.mark.usefixtures("needs_cpu")
def test_what_is_kept_for_backward_is_small():
    """Beside x itself: the gates, and of the pooled planes where the maxima were."""
    x = torch.randn(1, 64, 128, 128, requires_grad=True)
    for (fused, _), gates, share in (
        (split_parts(2, "cpu"), split_gates(x), 0.001),
        (triplet_parts("cpu"), triplet_gates(x), 0.12),
    ):
        kept = {}

        def keep(t, kept=kept):
            kept[t.data_ptr()] = t.nbytes
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            fused(x, *gates)
        assert sum(kept.values()) - x.nbytes < share * x.nbytes


@pytest.mark.usefixtures("needs_cpu")
@FORMATS
def test_planes_lie_as_the_gates_see_them(memory_format):
    x = torch.randn(2, 3, 5, 7).contiguous(memory_format=memory_format)
    over_h, over_w, over_c = triplet_pool(x, backend="cpu")
    torch.testing.assert_close(over_h, torch.stack((x.amax(2), x.mean(2)), 1))
    torch.testing.assert_close(over_w, torch.stack((x.amax(3).mT, x.mean(3).mT), 1))
    torch.testing.assert_close(over_c, torch.stack((x.amax(1), x.mean(1)), 1))
    assert len(triplet_pool(x, spatial=False, backend="cpu")) == 2


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32))
@pytest.mark.parametrize("backend", ("reference", None))
def test_pooled_values_are_float32(dtype, backend):
    x = torch.randn(1, 4, 3, 3).to(dtype)
    assert split_pool(x, backend=backend).dtype is torch.float32
    assert {p.dtype for p in triplet_pool(x, backend=backend)} == {torch.float32}
    gates = [g.to(dtype) for g in triplet_gates(x)]
    assert triplet_apply(x, gates, backend=backend).dtype is dtype
    assert split_apply(x, split_gates(x)[0].to(dtype), backend=backend).dtype is dtype


MAP = torch.ones(2, 4, 5, 6)
GATES = triplet_gates(MAP)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: split_pool(torch.ones(3, 4, 4)), r"x must be \(N, C, H, W\), got \(3, 4, 4\)"),
        (lambda: split_pool(MAP.long()), "x must be float16.* got torch.int64"),
        (lambda: split_pool(torch.ones(1, 4, 0, 2)), "x must have C, H and W of at least 1"),
        (lambda: split_pool(MAP, radix=5), "radix must be 1 to 4, got 5"),
        (lambda: split_pool(MAP, radix=3), r"x must have radix = 3 groups of channels, got"),
        (lambda: split_apply(MAP, torch.ones(2, 2)), r"gates must be \(2, 4\) like x, got \(2, 2"),
        (lambda: split_apply(MAP, torch.ones(2, 4).long()), "gates must be floating point on cpu"),
        (lambda: split_apply(MAP, torch.ones(2, 4, device="meta")), "got torch.float32 on meta"),
        (lambda: triplet_pool(torch.ones(3, 4, 4)), r"x must be \(N, C, H, W\)"),
        (lambda: triplet_pool(torch.ones(0, 4, 0, 2)), "x must have C, H and W of at least 1"),
        (lambda: triplet_apply(MAP, GATES[:1]), "gates must be 2 or 3 tensors, got 1"),
        (
            lambda: triplet_apply(MAP, [GATES[1], GATES[0]]),
            r"gates\[0\] must be \(2, 1, 4, 6\), got \(2, 1, 5, 4\)",
        ),
        (
            lambda: triplet_apply(MAP, [GATES[0], GATES[1].double()]),
            r"gates must be of one float dtype, gates\[1\] is torch.float64",
        ),
        (
            lambda: triplet_apply(MAP, [GATES[0], GATES[1].to("meta")]),
            r"gates\[1\] must be on cpu like x, got meta",
        ),
    ],
)
def test_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_named_backend_that_cannot_run_says_why():
    for call in (split_pool, triplet_pool):
        with pytest.raises(RuntimeError, match=r"cannot run .*: cuda needs a CUDA tensor, got cpu"):
            call(MAP, backend="cuda")
