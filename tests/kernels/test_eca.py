"""ECA on every backend that runs here, against the float64 reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.kernels import eca_attention, eca_reference
from tests.kernels.eca_cases import POOLED, check_pool, first_of_equals, joined
from tests.kernels.truth import DTYPES, SHAPES, check, layouts, on_threads


def params(taps=3, bias=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(taps)
    weight = torch.randn(taps, generator=generator).to(dtype)
    return [weight, torch.randn(1, generator=generator).to(dtype)] if bias else [weight]


def cpu(x, weight, bias=None):
    return eca_attention(x, weight, bias, backend="cpu")


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("dtype", (torch.float64, *DTYPES), ids=str)
@pytest.mark.parametrize("shape", POOLED, ids=str)
def test_cpu_adds_and_pools(shape, dtype):
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    for x in layouts(shape, dtype):
        check_pool(eca_attention, x, params(dtype=wide), backend="cpu")


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
@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(0, 3),
    c=st.integers(1, 40),
    h=st.integers(2, 20),
    w=st.integers(2, 40),
    last=st.booleans(),
    threads=st.integers(1, 16),
)
def test_any_shape_and_number_of_threads_with_residual_and_pool(n, c, h, w, last, threads):
    x = torch.randn(n, c, h, w, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    with on_threads(threads):
        check_pool(eca_attention, x, params(dtype=torch.float64), backend="cpu")


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
    leaf = x.clone().requires_grad_()
    outs = [joined(eca_attention, 2, backend="cpu")(leaf, x.flip(2), *params()) for _ in range(2)]
    first, second = ((o, *torch.autograd.grad(o.square().sum(), leaf)) for o in outs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("needs_cpu")
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf"), 1e30))
def test_special_values_spread_as_in_the_reference(value):
    x = torch.randn(2, 6, 9, 11)
    x[1, 2, 3, 4] = value
    for layout in (torch.contiguous_format, torch.channels_last):
        got = cpu(x.contiguous(memory_format=layout), torch.ones(3))
        torch.testing.assert_close(got, eca_reference(x, torch.ones(3)), equal_nan=True)


@pytest.mark.usefixtures("needs_cpu")
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf"), 1e30))
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=str)
def test_special_values_pass_the_pool_as_in_torch(value, layout):
    """Two in one window: of NaNs the last is taken; infinity times a gate of 0 is a NaN too.

    PyTorch multiplies the zero gradient of what was not picked by it, and so finds more NaN where
    that is infinite; nothing else may differ.
    """
    x = torch.randn(2, 6, 9, 40).contiguous(memory_format=layout)
    x[1, 2, 3, 4] = x[1, 2, 2, 5] = x[0, 4, 0, 34] = x[0, 1, 8, 39] = value
    found = []
    for op in (eca_attention, eca_reference):
        leaf = x.clone().requires_grad_()
        out = op(leaf, torch.ones(3), pool=2)
        found.append((out, *torch.autograd.grad(out, leaf, torch.ones_like(out))))
    (got, got_grad), (want, want_grad) = found
    torch.testing.assert_close(got, want, equal_nan=True)
    if torch.tensor(value).isinf():
        got_grad[want_grad.isnan()] = torch.nan
    torch.testing.assert_close(got_grad, want_grad, equal_nan=True)


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("dtype", (torch.float64, *DTYPES), ids=str)
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=str)
def test_first_of_equal_maxima_gets_the_gradient(layout, dtype):
    x = torch.randint(-1, 2, (1, 5, 7, 40)).to(dtype).contiguous(memory_format=layout)
    x.requires_grad_()
    assert torch.equal(first_of_equals(eca_attention, x), first_of_equals(eca_reference, x))


def gradients_of_sum(op, x, residual, learned, grads):
    """Gradients where only the given ones of the two outputs are used."""
    outputs = op(x, *learned, residual=residual, pool=2)
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
    outputs, grads = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, (x, residual, *learned), grads, allow_unused=True)


@pytest.mark.usefixtures("needs_cpu")
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=str)
def test_gradients_of_the_sum_come_as_slices_or_not_at_all(layout):
    x, residual = torch.randn(2, 2, 6, 9, 14, dtype=torch.float64)
    learned = [t.requires_grad_() for t in params(dtype=torch.float64)]
    x, residual = (t.contiguous(memory_format=layout).requires_grad_() for t in (x, residual))
    small = torch.randn(2, 6, 4, 7, dtype=torch.float64).contiguous(memory_format=layout)
    wide = torch.randn(2, 13, 9, 14, dtype=torch.float64).contiguous(memory_format=layout)
    turned = wide[:, 2:8].transpose(2, 3).contiguous().transpose(2, 3)
    for grads in (
        (small, wide[:, 7:]),
        (small, turned),
        (small, wide[:1, :1].expand(2, 6, 9, 14)),
        (small, None),
        (None, wide[:, :6]),
    ):
        got = gradients_of_sum(eca_attention, x, residual, learned, grads)
        want = gradients_of_sum(eca_reference, x, residual, learned, grads)
        torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("needs_cpu")
@pytest.mark.parametrize("wanted", ("x", "residual", "weight"))
def test_gradients_with_a_residual_only_where_they_are_asked(wanted):
    tensors = {"x": torch.randn(1, 3, 4, 5), "residual": torch.randn(1, 3, 4, 5)}
    tensors["weight"] = torch.randn(3)
    leaf = tensors[wanted].requires_grad_()
    found = []
    for op in (eca_attention, eca_reference):
        out, summed = op(**tensors, pool=2)  # pyright: ignore
        loss = out.square().sum() + summed.square().sum()
        slope = torch.autograd.grad(loss, leaf, create_graph=True)[0]
        found.append((slope, *torch.autograd.grad(slope.square().sum(), leaf)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("needs_cpu")
@pytest.mark.parametrize("pool", (1, 2))
def test_almost_nothing_is_kept_for_backward(pool):
    x, residual = torch.randn(2, 2, 32, 64, 64, requires_grad=True)
    for other in (None, residual):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # noqa: B023
            found = eca_attention(x, *params(), residual=other, pool=pool, backend="cpu")  # pyright: ignore
        known = {t.data_ptr() for t in ([x, found] if other is None else found)}
        foreign = [t for t in kept if t.data_ptr() not in known]
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


ONES = torch.ones(1, 2, 4, 4)


@pytest.mark.parametrize("backend", (None, "cpu", "cuda", "triton", "reference"))
@pytest.mark.parametrize("shape", ((2, 3, 0, 5), (2, 3, 5, 0), (2, 0, 4, 5), (0, 3, 4, 0)), ids=str)
def test_maps_without_pixels_are_refused_by_every_backend(shape, backend):
    with pytest.raises(ValueError, match="x must have C, H and W of at least 1, got"):
        eca_attention(torch.empty(shape), torch.ones(3), backend=backend)


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (ONES, {"pool": 3}, "pool must be 1 or 2, got 3"),
        (ONES[..., :1], {"pool": 2}, r"at least 2x2 to be pooled, got \(1, 2, 4, 1\)"),
        (ONES, {"residual": ONES[:, :1]}, r"residual must have the shape of x, .* got .*\[1, 1, "),
        (ONES, {"residual": ONES.half()}, "residual must have the dtype of x, torch.float32, got"),
        (ONES, {"residual": ONES.to("meta")}, "residual must have the device of x, cpu, got meta"),
    ],
)
def test_refused_options(x, options, words):
    with pytest.raises(ValueError, match=words):
        eca_attention(x, torch.ones(3), **options)
