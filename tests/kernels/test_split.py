"""Split attention on the CPU backend and as the reference, against the float64 reference."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medseg.kernels import split_attention, split_reference
from tests.kernels.truth import DTYPES, check, layouts, on_threads

NAMES = ("fc1_weight", "fc1_bias", "bn_weight", "bn_bias", "fc2_weight", "fc2_bias")
# radix, cardinality, then the shape of x: a power of two, odd ones, smaller than any vector, a
# tall and a flat one, one of a model; nine images leave a last one for several threads to share.
CASES = (
    (2, 1, (4, 16, 16, 16)),
    (1, 1, (3, 7, 17, 19)),
    (3, 1, (3, 9, 2, 2)),
    (2, 2, (4, 12, 33, 1)),
    (4, 3, (9, 24, 1, 9)),
    (2, 1, (5, 64, 32, 32)),
)


Named = dict[str, Any]  # tensors and options by name


def params(radix, cardinality, channels, inner=12, dtype=torch.float32) -> tuple[Named, Named]:
    """The learned tensors by name, and the running statistics."""
    generator = torch.Generator().manual_seed(radix + channels)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    width = radix * channels
    learned = {
        "fc1_weight": draw(inner, channels // cardinality),
        "fc1_bias": draw(inner) / 4,
        "bn_weight": draw(inner).abs() + 0.5,
        "bn_bias": draw(inner),
        "fc2_weight": draw(width, inner // cardinality) / 2,
        "fc2_bias": draw(width),
    }
    running = {"running_mean": draw(inner) / 4, "running_var": draw(inner).abs() + 0.5}
    return {k: v.to(dtype) for k, v in learned.items()}, {
        k: v.to(dtype) for k, v in running.items()
    }


def folded(width, dtype=torch.float32) -> Named:
    """scale and shift of a batch norm in front."""
    generator = torch.Generator().manual_seed(width)
    scale, shift = torch.randn((2, width), generator=generator).to(dtype)
    return {"scale": scale, "shift": shift}


def with_running(fn, names, running, **options):
    """fn(x, *learned), the running statistics fresh in every call."""

    def call(x, *learned):
        fresh = {k: v.to(learned[0].dtype).clone() for k, v in running.items()}
        given: Named = dict.fromkeys(("fc1_bias", "fc2_bias"))
        return fn(x, **given | dict(zip(names, learned, strict=True)), **fresh, **options)

    return call


def check_cpu(x, radix, cardinality, training, dtype=None, inner=12, bias=True):
    wide = dtype or (torch.float64 if x.dtype is torch.float64 else torch.float32)
    n, width, h, w = x.shape
    learned, running = params(radix, cardinality, width // radix, inner, wide)
    # In training the gradient of fc1_bias is zero but for rounding.
    left = {"fc1_bias"} if training else set() if bias else {"fc1_bias", "fc2_bias"}
    learned = {k: v for k, v in learned.items() if k not in left}
    options: Named = {"radix": radix, "cardinality": cardinality, "training": training}
    fused = with_running(split_attention, learned, running, backend="cpu", **options)
    plain = with_running(split_reference, learned, running, **options)
    check(fused, plain, x, list(learned.values()), shape=(n, width // radix, h, w))


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
@pytest.mark.parametrize("dtype", (torch.float64, *DTYPES), ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cpu_holds_the_rule(case, dtype, training):
    radix, cardinality, shape = case
    for x in layouts(shape, dtype):
        check_cpu(x, radix, cardinality, training)
    check_cpu(x, radix, cardinality, training, inner=36, bias=False)
    if x.dtype is torch.bfloat16:
        check_cpu(x, radix, cardinality, training, dtype=torch.bfloat16)


@pytest.mark.usefixtures("needs_cpu")
@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 7),
    radix=st.integers(1, 4),
    cardinality=st.integers(1, 3),
    width=st.integers(1, 20),
    h=st.integers(1, 20),
    w=st.integers(1, 20),
    last=st.booleans(),
    training=st.booleans(),
    threads=st.integers(1, 16),
)
def test_any_shape_and_number_of_threads(
    n, radix, cardinality, width, h, w, last, training, threads
):
    training = training and n > 2  # two images normalise to +-1, and all gradients vanish
    x = torch.randn(n, radix * cardinality * width, h, w, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    with on_threads(threads):
        check_cpu(x, radix, cardinality, training)
        check_folded(x, radix, cardinality)


def check_folded(x, radix, cardinality):
    """A batch norm and ReLU in front, folded into both reads of x."""
    learned, running = params(radix, cardinality, x.shape[1] // radix)
    given = {k: v.to(x.dtype) if x.dtype is torch.float64 else v for k, v in learned.items()}
    given |= {k: v.to(given["fc1_weight"]) for k, v in running.items()}
    options = folded(x.shape[1], given["fc1_weight"].dtype)
    options |= {"radix": radix, "cardinality": cardinality, "training": False}
    got = split_attention(x, **given, **options, backend="cpu")
    wide = {k: v.double() for k, v in given.items()}
    wide |= {k: options[k].double() for k in ("scale", "shift")}
    truth = split_reference(
        x.double(), **wide, radix=radix, cardinality=cardinality, training=False
    )
    plain = split_reference(x, **given, **options)
    allowed = 2 * float((plain.double() - truth).abs().max()) + 2e-6 * float(truth.abs().max())
    assert float((got.double() - truth).abs().max()) <= allowed


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("dtype", (torch.float64, *DTYPES), ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_batch_norm_and_relu_in_front_are_folded(case, dtype):
    radix, cardinality, shape = case
    for x in layouts(shape, dtype):
        check_folded(x, radix, cardinality)


@pytest.mark.usefixtures("needs_cpu")
@pytest.mark.parametrize("training", (True, False))
def test_folded_front_has_gradients(training):
    x = torch.randn(3, 12, 5, 6, dtype=torch.float64, requires_grad=True)
    learned, running = params(2, 1, 6, dtype=torch.float64)
    front = {k: v.requires_grad_() for k, v in folded(12, torch.float64).items()}
    leaves = [x, *front.values()]
    found = []
    for fn in (split_attention, split_reference):
        fresh = {k: v.clone() for k, v in running.items()}
        out = fn(x, **learned, **fresh, **front, training=training)
        found.append(torch.autograd.grad(out.square().sum(), leaves))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.usefixtures("needs_cpu")
@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
@pytest.mark.parametrize("images", (3, 4, 5))
def test_threads_share_images_without_changing_the_result(images, memory_format):
    """Large enough that the launcher really takes several threads."""
    x = torch.randn(images, 24, 96, 96).contiguous(memory_format=memory_format)
    check_cpu(x, 2, 1, training=True)
    check_cpu(x, 2, 1, training=False)


@pytest.mark.usefixtures("needs_cpu")
def test_gradient_of_the_first_bias_vanishes_in_training():
    """Batch norm takes any constant off again."""
    learned, running = params(2, 1, 8)
    bias = learned["fc1_bias"].requires_grad_()
    out = split_attention(torch.randn(6, 16, 9, 9), **learned, **running, training=True)
    assert torch.autograd.grad(out.square().sum(), bias)[0].abs().max() < 1e-3


@pytest.mark.usefixtures("needs_cpu")
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
def test_empty_batch(training):
    learned, running = params(2, 1, 3)
    x = torch.randn(0, 6, 4, 5, requires_grad=True)
    before = [t.clone() for t in running.values()]
    learned["fc2_weight"].requires_grad_()
    out = split_attention(x, **learned, **running, training=training, backend="cpu")
    out.sum().backward()
    assert out.shape == (0, 3, 4, 5)
    assert x.grad is not None and x.grad.shape == x.shape
    assert not learned["fc2_weight"].grad.any()
    assert all(torch.equal(a, b) for a, b in zip(before, running.values(), strict=True))


@pytest.mark.usefixtures("needs_cpu")
def test_running_statistics_move_as_batch_norm_moves_them():
    learned, running = params(2, 1, 5)
    x = torch.randn(3, 10, 12, 9)
    twin = {k: v.clone() for k, v in running.items()}
    for _ in range(3):
        split_attention(x, **learned, **running, training=True, momentum=0.2, backend="cpu")
        split_reference(x, **learned, **twin, training=True, momentum=0.2)
    torch.testing.assert_close(running, twin, rtol=2e-6, atol=2e-6)
    assert not torch.equal(running["running_mean"], params(2, 1, 5)[1]["running_mean"])


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize("radix", (1, 2))
@pytest.mark.parametrize("front", (False, True), ids=("plain", "folded"))
@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
def test_special_values_spread_as_in_the_reference(value, radix, front, memory_format):
    learned, running = params(radix, 1, 6)
    x = torch.randn(2, 6 * radix, 20, 37)
    x[1, 2, 3, 4] = value
    x = x.contiguous(memory_format=memory_format)
    options: Named = {"radix": radix, "training": False}
    options |= folded(6 * radix) if front else {}
    got = split_attention(x, **learned, **running, **options, backend="cpu")
    want = split_reference(x, **learned, **running, **options)
    torch.testing.assert_close(got, want, equal_nan=True)
    assert not got[0].isnan().any()


@pytest.mark.usefixtures("every_isa")
def test_huge_gates_do_not_overflow():
    """The softmax takes the maximum off; one split then gets everything."""
    learned, running = params(3, 1, 4)
    learned["fc2_bias"] = torch.tensor((1e4, -1e4, 300.0) * 4)
    x = torch.randn(2, 12, 5, 7)
    got = split_attention(x, **learned, **running, radix=3, training=False, backend="cpu")
    want = split_reference(x, **learned, **running, radix=3, training=False)
    torch.testing.assert_close(got, want)
    assert got.isfinite().all()


@pytest.mark.usefixtures("needs_cpu")
@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last), ids=str)
def test_second_run_gives_the_same_bits(memory_format):
    x = torch.randn(3, 24, 64, 64).contiguous(memory_format=memory_format).requires_grad_()
    learned, running = params(2, 1, 12)
    leaves = [x, *(t.requires_grad_() for t in learned.values())]
    runs = []
    for _ in range(2):
        fresh = {k: v.clone() for k, v in running.items()}
        out = split_attention(x, **learned, **fresh, training=True, backend="cpu")
        runs.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.usefixtures("needs_cpu")
def test_what_is_kept_for_backward_is_small():
    """Under 0.1 % of x at the size of the paper's first stage: vectors, and no map."""
    x = torch.randn(2, 64, 128, 128, requires_grad=True)
    learned, running = params(2, 1, 32, inner=32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        split_attention(x, **learned, **running, training=True, backend="cpu")
    own = {t.data_ptr() for t in (x, *learned.values())}
    assert sum(t.nbytes for t in kept if t.data_ptr() not in own) < 0.001 * x.nbytes


@pytest.mark.usefixtures("needs_cpu")
@pytest.mark.parametrize("cardinality", (1, 2))
def test_module_of_the_paper_agrees(cardinality):
    """rSoftMax and 1x1 convolutions, as the paper's own code arranges them."""
    channels, inner, radix = 8, 12, 2
    fc1 = nn.Conv2d(channels, inner, 1, groups=cardinality)
    norm: Any = nn.BatchNorm2d(inner).eval()
    fc2 = nn.Conv2d(inner, channels * radix, 1, groups=cardinality)
    x = torch.randn(2, channels * radix, 10, 9)
    splits = x.split(channels, 1)
    z = fc2(norm(fc1((splits[0] + splits[1]).mean((2, 3), keepdim=True))).relu())
    a = z.view(2, cardinality, radix, -1).transpose(1, 2).softmax(1).reshape(2, -1, 1, 1)
    first, second = a.split(channels, 1)
    out = split_attention(
        x, fc1.weight.flatten(1), fc1.bias, norm.weight, norm.bias, norm.running_mean,
        norm.running_var, fc2.weight.flatten(1), fc2.bias, cardinality=cardinality,
        training=False, backend="cpu",
    )  # fmt: skip
    torch.testing.assert_close(out, first * splits[0] + second * splits[1])
