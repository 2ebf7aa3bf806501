"""ECA on every backend that runs here, against the float64 reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.kernels import eca_attention, eca_reference
from tests.kernels.truth import DTYPES, SHAPES, check, layouts, on_threads


def params(taps=3, bias=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(taps)
    weight = torch.randn(taps, generator=generator).to(dtype)
    return [weight, torch.randn(1, generator=generator).to(dtype)] if bias else [weight]


def cpu(x, weight, bias=None):
    return eca_attention(x, weight, bias, backend="cpu")


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("dtype", (torch.float64, *DTYPES), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cpu_holds_the_rule(shape, dtype):
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    for x in layouts(shape, dtype):
        check(cpu, eca_reference, x, params(dtype=wide))
        check(cpu, eca_reference, x, params(5, bias=False, dtype=wide))


@pytest.mark.usefixtures("needs_cpu")
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_half_parameters_get_half_gradients(dtype):
    check(cpu, eca_reference, next(layouts((2, 7, 17, 19), dtype)), params(dtype=dtype))


@pytest.mark.usefixtures("needs_cpu")
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 3),
    c=st.integers(1, 40),
    h=st.integers(1, 20),
    w=st.integers(1, 20),
    taps=st.sampled_from((1, 3, 9)),
    last=st.booleans(),
    threads=st.integers(1, 16),
)
def test_any_shape_and_number_of_threads(n, c, h, w, taps, last, threads):
    x = torch.randn(n, c, h, w, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    weight = torch.randn(taps, dtype=torch.float64)
    with on_threads(threads):
        check(cpu, eca_reference, x, [weight])


@pytest.mark.usefixtures("needs_cpu")
@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
@pytest.mark.parametrize("images", (1, 2, 3))
def test_threads_share_images_without_changing_the_result(images, memory_format):
    """Large enough that the launcher really takes several threads."""
    x = torch.randn(images, 24, 96, 96).contiguous(memory_format=memory_format)
    check(cpu, eca_reference, x, params())


@pytest.mark.usefixtures("needs_cpu")
def test_second_run_gives_the_same_bits():
    x = torch.randn(3, 24, 64, 64)
    first, second = (cpu(x, *params()) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.usefixtures("needs_cpu")
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf"), 1e30))
def test_special_values_spread_as_in_the_reference(value):
    x = torch.randn(2, 6, 9, 11)
    x[1, 2, 3, 4] = value
    for layout in (torch.contiguous_format, torch.channels_last):
        got = cpu(x.contiguous(memory_format=layout), torch.ones(3))
        torch.testing.assert_close(got, eca_reference(x, torch.ones(3)), equal_nan=True)


@pytest.mark.usefixtures("needs_cpu")
def test_almost_nothing_is_kept_for_backward():
    x = torch.randn(2, 32, 64, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = cpu(x, *params())
    foreign = [t for t in kept if t.data_ptr() not in (x.data_ptr(), out.data_ptr())]
    assert sum(t.nbytes for t in foreign) < 0.001 * x.nbytes * 4


@pytest.mark.parametrize(
    ("x", "weight", "bias", "words"),
    [
        (torch.ones(2, 3, 4), torch.ones(3), None, r"x must be \(N, C, H, W\), got \(2, 3, 4\)"),
        (torch.ones(1, 1, 2, 2).int(), torch.ones(3), None, "x must be float16.* got torch.int32"),
        (torch.ones(1, 1, 2, 2), torch.ones(2), None, r"weight must be \(K,\) with K odd, got"),
        (torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3), None, r"weight .* got \(1, 1, 3\)"),
        (torch.ones(1, 1, 2, 2), torch.ones(3), torch.ones(2), r"bias must be \(1,\), got \(2,\)"),
        (torch.ones(1, 1, 2, 2), torch.ones(3).double(), None, "weight must be torch.float32 like"),
        (
            torch.ones(1, 1, 2, 2).half(),
            torch.ones(3),
            torch.ones(1).half(),
            "bias must be torch.fl",
        ),
        (torch.ones(1, 1, 2, 2), torch.ones(3, device="meta"), None, "weight must be on cpu like"),
    ],
)
def test_refused(x, weight, bias, words):
    with pytest.raises(ValueError, match=words):
        eca_attention(x, weight, bias)
