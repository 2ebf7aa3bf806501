"""The attention gate's middle on every backend that runs here, against the float64 reference."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.kernels import attention_gate, gate_reference
from medseg.kernels._backend import why_not
from tests.kernels.truth import DTYPES, FLOOR, FLOOR_FLOAT32, SHAPES, error, layouts, on_threads


def check(maps, backend="cpu"):
    """The rule of tests/kernels/truth.py for two outputs, and the layout of the first map."""

    def run(fn, tensors, **extra):
        leaves = [t.detach().requires_grad_() for t in tensors]
        outs = fn(*leaves, **extra)
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(o.shape, generator=generator).to(maps[0].dtype) for o in outs]
        cotangents = [d.to(o) for d, o in zip(drawn, outs, strict=True)]
        return [*outs, *torch.autograd.grad(outs, leaves, cotangents)]

    truth = run(gate_reference, [t.double() for t in maps])
    plain = run(gate_reference, maps)
    found = run(attention_gate, maps, backend=backend)
    floor = FLOOR.get(maps[0].dtype, FLOOR_FLOAT32)
    for i, (t, p, g) in enumerate(zip(truth, plain, found, strict=True)):
        assert error(g, t) <= (2 if i < 2 else 3) * error(p, t) + floor, i
        assert g.dtype is p.dtype
    last = not maps[0].is_contiguous() and maps[0].is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    assert all(o.is_contiguous(memory_format=layout) for o in found)


def triples(shape, dtype):
    """Three maps of one layout, of three layouts, and of none."""
    plain, last, cut, *_ = layouts(shape, dtype)
    yield plain, -plain.flip(0), plain.flip(1)
    yield last, last.flip(0), -last
    yield plain, last.roll(1), cut.roll(2)
    yield cut, cut + 1, cut - 1


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("dtype", (torch.float64, *DTYPES), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cpu_holds_the_rule(shape, dtype):
    for maps in triples(shape, dtype):
        check(maps)


@pytest.mark.usefixtures("needs_cpu")
@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*(st.integers(low, 12) for low in (0, 1, 1, 1))),
    threads=st.integers(1, 9),
)
def test_any_shape_and_number_of_threads(shape, threads):
    maps = [torch.randn(shape, dtype=torch.float64) for _ in "abc"]
    with on_threads(threads):
        check(maps)


@pytest.fixture
def needs_triton():
    reason = why_not("triton", "gate", "cpu")
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.usefixtures("needs_triton")
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("shape", (*SHAPES[:5], (2, 9, 20, 21)), ids=str)
def test_triton_holds_the_rule(shape, dtype):
    for maps in triples(shape, dtype):
        check(maps, "triton")


def every_backend():
    for backend in ("cpu", "triton"):
        if why_not(backend, "gate", "cpu") is None:
            yield backend


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf"), 0.0, -0.0))
@pytest.mark.parametrize("outputs", ((0,), (1,), (0, 1)), ids=str)
def test_special_values_and_a_missing_gradient(value, outputs):
    maps = [torch.rand(1, 2, 5, 7) + 0.1 for _ in "abc"]
    for i, t in enumerate(maps):
        t[0, 1, 2, 3 + i] = value
    for backend in every_backend():
        results = []
        for run in (gate_reference, lambda *t, b=backend: attention_gate(*t, backend=b)):
            leaves = [t.clone().requires_grad_() for t in maps]
            outs = run(*leaves)
            used = [outs[i] for i in outputs]
            grads = torch.autograd.grad(used, leaves, [torch.ones_like(o) for o in used])
            results.append((*outs, *grads))
        torch.testing.assert_close(results[1], results[0], equal_nan=True)


@pytest.mark.usefixtures("needs_cpu")
def test_only_the_maps_are_kept_for_backward():
    maps = [torch.randn(2, 8, 16, 16, requires_grad=True) for _ in "abc"]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        attention_gate(*maps)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in maps}


@pytest.mark.usefixtures("needs_cpu")
def test_opcheck():
    for maps in triples((2, 3, 5, 7), torch.float32):
        arguments = (*(t.clone().requires_grad_() for t in maps), "cpu")
        torch.library.opcheck(torch.ops.medseg.gate.default, arguments)


def test_a_single_map_may_want_a_gradient():
    a, b, c = (torch.randn(1, 2, 3, 4) for _ in "abc")
    b.requires_grad_()
    got = torch.autograd.grad(sum(attention_gate(a, b, c)).sum(), b)
    want = torch.autograd.grad(sum(gate_reference(a, b, c)).sum(), b)
    torch.testing.assert_close(got, want)


X = torch.ones(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        ((X[0], X, X), r"a must be \(N, C, H, W\), got \(2, 3, 4\)"),
        ((X, X.int(), X), "b must be float16.* got torch.int32"),
        ((X, X[:, :1], X), r"b must be \(1, 2, 3, 4\) .* like a, got \(1, 1, 3, 4\)"),
        ((X, X, X.double()), "c must be .* torch.float32 .* got .* torch.float64"),
        ((X, X, X.to("meta")), "c must be .* on cpu like a, got .* on meta"),
    ],
)
def test_refused(maps, words):
    with pytest.raises(ValueError, match=words):
        attention_gate(*maps)


def test_cuda_says_that_triton_has_it():
    assert why_not("cuda", "gate", "cuda") == "cuda has no kernels of this op, triton has"
    with pytest.raises(RuntimeError, match="cannot run gate: cuda has no kernels"):
        attention_gate(X, X, X, backend="cuda")
