"""Triplet attention on every backend that runs here, against the float64 reference."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medseg.kernels import triplet_attention, triplet_reference
from tests.kernels.truth import DTYPES, SHAPES, check, layouts, on_threads


def params(gates=3, k=7, dtype=torch.float32):
    """Taps, batch-norm weight and bias; running mean and variance."""
    generator = torch.Generator().manual_seed(k)
    conv = torch.randn((gates, 2, k, k), generator=generator) / k
    rest = [torch.rand(gates, generator=generator) + 0.5 for _ in range(4)]
    return [t.to(dtype) for t in (conv, rest[0], rest[1])], [t.to(dtype) for t in rest[2:]]


def with_running(fn, running, training, **extra):
    """fn(x, conv_weight, bn_weight, bn_bias), the running statistics fresh in every call."""

    def call(x, *learned):
        fresh = [t.to(learned[0].dtype).clone() for t in running]
        return fn(x, *learned, *fresh, training=training, **extra)

    return call


def check_cpu(x, gates=3, k=7, training=True, dtype=None):
    wide = dtype or (torch.float64 if x.dtype is torch.float64 else torch.float32)
    learned, running = params(gates, k, wide)
    fused = with_running(triplet_attention, running, training, backend="cpu")
    check(fused, with_running(triplet_reference, running, training), x, learned)


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
@pytest.mark.parametrize("dtype", (torch.float64, *DTYPES), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cpu_holds_the_rule(shape, dtype, training):
    for x in layouts(shape, dtype):
        for gates in (3, 2):
            check_cpu(x, gates, training=training)
        check_cpu(x, k=5, training=training)


@pytest.mark.usefixtures("needs_cpu")
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 4),
    c=st.integers(1, 20),
    h=st.integers(1, 20),
    w=st.integers(2, 20),
    k=st.sampled_from((1, 3, 7, 9)),
    last=st.booleans(),
    training=st.booleans(),
    threads=st.integers(1, 16),
)
def test_any_shape_and_number_of_threads(n, c, h, w, k, last, training, threads):
    # One value per gate is refused in training, and two are all but: their difference decides.
    training = training and n * min(c * w, h * c, h * w) > 4
    x = torch.randn(n, c, h, w, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    with on_threads(threads):
        check_cpu(x, k=k, training=training)


@pytest.mark.usefixtures("needs_cpu")
@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
@pytest.mark.parametrize("images", (1, 2, 3, 5))
def test_threads_share_images_without_changing_the_result(images, memory_format):
    """Large enough that the launcher really takes several threads."""
    x = torch.randn(images, 24, 96, 96).contiguous(memory_format=memory_format)
    check_cpu(x)
    check_cpu(x, training=False)


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("threads", (2, 5, 16))
def test_more_threads_than_rows_to_share(threads):
    """Some threads of an image, the first above all, then have no row."""
    with on_threads(threads):
        for x in layouts((1, 6, 1, 40), torch.float64):
            check_cpu(x)
        for x in layouts((2, 3, 3, 5), torch.float64):
            check_cpu(x, training=False)


@pytest.mark.usefixtures("needs_cpu")
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
def test_empty_batch(training):
    learned, running = params()
    x = torch.randn(0, 3, 4, 5, requires_grad=True)
    before = [t.clone() for t in running]
    out = triplet_attention(x, *learned, *running, training=training, backend="cpu")
    out.sum().backward()
    assert x.grad is not None and out.shape == x.shape == x.grad.shape
    assert all(torch.equal(a, b) for a, b in zip(before, running, strict=True))


@pytest.mark.usefixtures("needs_cpu")
def test_running_statistics_move_as_batch_norm_moves_them():
    learned, running = params()
    x = torch.randn(3, 5, 12, 9)
    twin = [t.clone() for t in running]
    for _ in range(3):
        triplet_attention(x, *learned, *running, training=True, momentum=0.1, backend="cpu")
        triplet_reference(x, *learned, *twin, training=True, momentum=0.1)
    torch.testing.assert_close(running, twin, rtol=2e-6, atol=2e-6)
    assert not torch.equal(running[0], params()[1][0])


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
def test_the_first_of_equal_maxima_gets_the_gradient(memory_format):
    x = torch.randint(-1, 2, (2, 9, 21, 35)).double().contiguous(memory_format=memory_format)
    for dtype in (torch.float64, torch.bfloat16):
        check_cpu(x.to(dtype), training=False)
    check_cpu(torch.zeros_like(x), training=False)


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
def test_special_values_spread_as_in_the_reference(value, memory_format):
    learned, running = params(k=3)
    x = torch.randn(2, 6, 20, 37)
    x[1, 2, 3, 4] = value
    x = x.contiguous(memory_format=memory_format)
    got = triplet_attention(x, *learned, *running, training=False, backend="cpu")
    want = triplet_reference(x, *learned, *running, training=False)
    torch.testing.assert_close(got, want, equal_nan=True)
    assert got.isnan().any() and not got.isnan().all()


@pytest.mark.usefixtures("needs_cpu")
def test_second_run_gives_the_same_bits():
    x = torch.randn(3, 24, 64, 64, requires_grad=True)
    learned, running = params()
    runs = []
    for _ in range(2):
        out = triplet_attention(x, *learned, *running, training=False, backend="cpu")
        runs.append((out, *torch.autograd.grad(out.square().sum(), x)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.usefixtures("needs_cpu")
def test_what_is_kept_for_backward_is_small():
    """Under 8 % of x where planes are thin: 10 bytes a plane position."""
    x = torch.randn(1, 64, 128, 128, requires_grad=True)
    learned, running = params()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        triplet_attention(x, *learned, *running, training=True, backend="cpu")
    foreign = sum(t.nbytes for t in kept if t.data_ptr() != x.data_ptr())
    positions = 64 * 128 * 2 + 128 * 128
    assert foreign < 10.2 * positions
    assert foreign < 0.08 * x.nbytes


def wrong(**changes):
    x = changes.pop("x", torch.ones(2, 3, 4, 4))
    learned, running = params()
    names = ("conv_weight", "bn_weight", "bn_bias", "running_mean", "running_var")
    given: dict[str, Any] = dict(zip(names, [*learned, *running], strict=True)) | changes
    return x, given


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": torch.ones(3, 4, 4)}, r"x must be \(N, C, H, W\), got \(3, 4, 4\)"),
        ({"x": torch.ones(2, 3, 4, 4).long()}, "x must be float16.* got torch.int64"),
        ({"x": torch.ones(2, 3, 0, 4)}, "x must have C, H and W of at least 1"),
        ({"x": torch.ones(1, 1, 1, 1)}, "training needs more than one value per gate"),
        (
            {"conv_weight": torch.ones(3, 2, 6, 6)},
            "conv_weight must have k odd",
        ),
        ({"conv_weight": torch.ones(1, 2, 7, 7)}, "conv_weight must be"),
        ({"conv_weight": torch.ones(3, 98)}, "conv_weight must be"),
        ({"bn_bias": torch.ones(2)}, r"bn_bias must be \(3,\) like conv_weight, got \(2,\)"),
        ({"running_var": torch.ones(3).half()}, "running_var must be torch.float32 like conv"),
        (
            {"conv_weight": torch.ones(3, 2, 7, 7).double()},
            "conv_weight must be torch.float32 like x",
        ),
        ({"conv_weight": torch.ones(3, 2, 51, 51)}, "conv_weight must have k odd and at most 49"),
        ({"running_mean": None}, "running_mean must be a tensor, got None"),
        ({"bn_weight": torch.ones(3, device="meta")}, "bn_weight must be on cpu like x, got meta"),
    ],
)
def test_refused(changes, words):
    x, given = wrong(**changes)
    with pytest.raises(ValueError, match=words):
        triplet_attention(x, **given, training=True)


@pytest.mark.usefixtures("needs_cpu")
def test_module_of_the_paper_agrees():
    """A module written as the paper draws it, one gate, with PyTorch's own layers."""
    conv, norm = nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1)
    x = torch.randn(2, 4, 10, 8)
    zeros = torch.zeros(3, 2, 7, 7)
    zeros[2] = conv.weight.detach()[0]
    out = triplet_attention(
        x, zeros, torch.ones(3), torch.zeros(3), torch.zeros(3), torch.ones(3),
        training=False, backend="cpu",
    )  # fmt: skip
    pooled = torch.stack((x.amax(1), x.mean(1)), 1)
    spatial = norm.eval()(conv(pooled)).sigmoid()
    torch.testing.assert_close(out, x * (0.5 + 0.5 + spatial) / 3)
