"""The attention gate's middle on every backend that runs here, against the float64 reference."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.kernels import attention_gate, gate_reference
from medseg.kernels._backend import why_not
from tests.kernels.gate_cases import SPECIAL, check, check_special, triples
from tests.kernels.truth import DTYPES, SHAPES, on_threads


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
@SPECIAL
def test_special_values_and_a_missing_gradient(value, outputs):
    for backend in every_backend():
        check_special(value, outputs, backend)


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
