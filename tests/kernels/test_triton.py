"""The Triton kernels against the float64 reference: interpreted on a CPU, or on a GPU.

TRITON_INTERPRET=1 pytest tests/kernels/test_triton.py, or pytest -m gpu where there is a GPU.
"""

# pyright: reportOptionalMemberAccess=false
import pytest
import torch

from medseg.kernels import eca_attention, eca_reference, triplet_attention, triplet_reference
from tests.kernels.eca_cases import POOLED, check_pool, first_of_equals
from tests.kernels.truth import check, layouts

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
FORMATS = pytest.mark.parametrize(
    "memory_format", (torch.contiguous_format, torch.channels_last), ids=("nchw", "channels_last")
)
SPECIAL = pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
# Images so far apart that only 64-bit indices reach them; most of it is never touched.
FAR = 2**31 + 48


def eca(x, weight, bias=None):
    return eca_attention(x, weight, bias, backend="triton")


def eca_params(taps, device, bias=True):
    generator = torch.Generator().manual_seed(taps)
    found = [torch.randn(taps, generator=generator), torch.randn(1, generator=generator)]
    return [t.to(device) for t in found[: 1 + bias]]


def triplet_params(gates, k, device):
    """Taps, batch-norm weight and bias; running mean and variance."""
    generator = torch.Generator().manual_seed(k)
    conv = torch.randn((gates, 2, k, k), generator=generator) / k
    rest = [torch.rand(gates, generator=generator) + 0.5 for _ in range(4)]
    return [t.to(device) for t in (conv, *rest[:2])], rest[2:]


def triplet_pair(running, training):
    """(fused, reference) of x and the learned parameters, running statistics fresh in each call."""

    def with_running(fn, **extra):
        return lambda x, *learned: fn(
            x, *learned, *(t.to(learned[0], copy=True) for t in running), training=training, **extra
        )

    return with_running(triplet_attention, backend="triton"), with_running(triplet_reference)


def check_triplet(x, gates=3, k=7, training=True):
    learned, running = triplet_params(gates, k, x.device)
    check(*triplet_pair(running, training), x, learned)


def far_apart(shape, device, dtype=HALF):
    """A map whose images lie FAR elements apart."""
    room = FAR * (shape[0] - 1) + shape[1] * shape[2] * shape[3]
    try:
        storage = torch.empty(room, dtype=dtype, device=device)
    except (RuntimeError, MemoryError) as error:
        pytest.skip(f"no room for {room} elements: {error}")
    h, w = shape[2:]
    x = storage.as_strided(shape, (FAR, h * w, w, 1))
    return x.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("dtype", (SINGLE, HALF, BRAIN), ids=str)
@pytest.mark.parametrize("shape", ((4, 8, 16, 16), (2, 7, 17, 19), (1, 3, 2, 2)), ids=str)
def test_eca_holds_the_rule(shape, dtype, device):
    for x in layouts(shape, dtype, device):
        check(eca, eca_reference, x, eca_params(3, device))


@pytest.mark.parametrize("taps", (1, 5, 9))
@pytest.mark.parametrize(
    "shape", ((3, 16, 33, 1), (1, 5, 1, 9), (2, 70, 1, 1), (2, 1, 5, 5)), ids=str
)
def test_eca_on_narrow_maps_with_any_taps(shape, taps, device):
    for x in layouts(shape, SINGLE, device):
        check(eca, eca_reference, x, eca_params(taps, device, bias=False))


@FORMATS
def test_eca_adds_partial_sums_of_large_planes(memory_format, device):
    x = torch.randn(1, 3, 130, 70).to(device, memory_format=memory_format)
    check(eca, eca_reference, x, eca_params(3, device))


@FORMATS
def test_eca_sums_the_taps_of_many_channels_in_two_stages(memory_format, device):
    x = torch.randn(20, 2000, 1, 2).to(device, memory_format=memory_format)
    check(eca, eca_reference, x, eca_params(3, device))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    (*((shape, SINGLE) for shape in POOLED[1:5]), (POOLED[3], HALF), (POOLED[4], BRAIN)),
    ids=str,
)
def test_eca_adds_and_pools(shape, dtype, device):
    for x in layouts(shape, dtype, device):
        check_pool(eca_attention, x, eca_params(3, device), backend="triton")


@FORMATS
def test_eca_adds_partial_sums_of_large_planes_of_windows(memory_format, device):
    x = torch.randn(1, 3, 131, 70).to(device, memory_format=memory_format)
    check_pool(eca_attention, x, eca_params(5, device, bias=False), backend="triton")


@FORMATS
def test_first_of_equal_maxima_behind_eca_gets_the_gradient(memory_format, device):
    x = torch.randint(-1, 2, (1, 5, 7, 20), generator=torch.Generator().manual_seed(0))
    x = x.float().to(device, memory_format=memory_format).requires_grad_()
    got = first_of_equals(eca_attention, x, backend="triton")
    assert torch.equal(got, first_of_equals(eca_reference, x))


@pytest.mark.parametrize("dtype", (HALF, BRAIN), ids=str)
def test_eca_takes_half_parameters(dtype, device):
    x = torch.randn(2, 6, 9, 11).to(device, dtype)
    weight, bias = (t.to(dtype).requires_grad_() for t in eca_params(3, device))
    out = eca(x, weight, bias)
    wide = [t.detach().double() for t in (x, weight, bias)]
    torch.testing.assert_close(out.double(), eca_reference(*wide), rtol=0.02, atol=0.02)
    out.sum().backward()
    assert weight.grad.dtype is dtype and bias.grad.dtype is dtype


@pytest.mark.parametrize("dtype", (SINGLE, HALF, BRAIN), ids=str)
@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
def test_triplet_holds_the_rule(dtype, training, device):
    for x in layouts((2, 4, 8, 8) if training else (1, 7, 17, 19), dtype, device):
        check_triplet(x, k=3, training=training)


@pytest.mark.parametrize("gates", (2, 3))
@FORMATS
def test_triplet_with_the_kernel_of_the_paper(gates, memory_format, device):
    x = torch.randn(1, 5, 27, 30).to(device, memory_format=memory_format)
    check_triplet(x, gates, training=True)


@pytest.mark.parametrize("k", (1, 5, 11))
def test_triplet_with_any_kernel(k, device):
    check_triplet(torch.randn(1, 3, 12, 9, device=device), k=k)


@pytest.mark.parametrize("shape", ((1, 3, 2, 2), (2, 5, 9, 1), (1, 5, 1, 9), (2, 9, 1, 1)), ids=str)
def test_triplet_on_narrow_maps(shape, device):
    for x in layouts(shape, SINGLE, device):
        check_triplet(x, k=3, training=False)


@pytest.mark.parametrize(
    ("shape", "memory_format"),
    (((1, 5, 34, 66), torch.contiguous_format), ((1, 66, 5, 34), torch.channels_last)),
    ids=("nchw", "channels_last"),
)
def test_triplet_adds_partial_planes_of_large_maps(shape, memory_format, device):
    """Two shares along each axis of memory, and several tiles of the planes."""
    x = torch.randn(shape).to(device, memory_format=memory_format)
    check_triplet(x, k=3)


def test_triplet_refuses_a_kernel_beyond_its_tiles(device):
    learned, running = triplet_params(3, 51, device)
    with pytest.raises(ValueError, match="k odd and at most 49, got"):
        triplet_pair(running, False)[0](torch.randn(1, 2, 4, 4, device=device), *learned)


@pytest.mark.parametrize("dtype", (SINGLE, HALF, BRAIN), ids=str)
@FORMATS
def test_the_first_of_equal_maxima_gets_the_gradient(dtype, memory_format, device):
    x = torch.randint(-1, 2, (1, 4, 7, 9), generator=torch.Generator().manual_seed(0))
    x = x.to(device, dtype, memory_format=memory_format) * -1  # with zeros of either sign
    check_triplet(x, k=3, training=False)
    check_triplet(torch.zeros_like(x), k=3, training=False)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@SPECIAL
@FORMATS
@pytest.mark.parametrize("dtype", (SINGLE, BRAIN), ids=str)
def test_special_values_spread_as_in_the_reference(value, memory_format, dtype, device):
    x = torch.randn(1, 6, 8, 9, generator=torch.Generator().manual_seed(0)).to(device)
    x[0, 2, 3, 4] = value
    x = x.to(dtype, memory_format=memory_format)
    learned, running = triplet_params(3, 3, device)
    ways = (
        (eca, eca_reference, eca_params(3, device)),
        (*triplet_pair(running, training=False), learned),
    )
    for fused, reference, params in ways:
        leaf, twin = x.clone().requires_grad_(), x.clone().requires_grad_()
        got, want = fused(leaf, *params), reference(twin, *params)
        assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())
        got.sum().backward()
        want.sum().backward()
        assert torch.equal(leaf.grad.isnan(), twin.grad.isnan())
    assert want.isnan().any() and not want.isnan().all()
    got = eca_attention(x, *ways[0][2], pool=2, backend="triton")
    want = eca_reference(x, *ways[0][2], pool=2)
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())


@pytest.mark.parametrize("training", (True, False), ids=("train", "eval"))
def test_empty_batch(training, device):
    x = torch.randn(0, 4, 6, 5, device=device, requires_grad=True)
    learned, running = triplet_params(3, 7, device)
    params = [t.requires_grad_() for t in (*learned, *eca_params(3, device))]
    out = triplet_pair(running, training)[0](x, *params[:3]) + eca(x, *params[3:])
    out.sum().backward()
    assert out.shape == x.shape
    assert all(not t.grad.any() for t in params)


def test_images_beyond_32_bit_indices(device):
    x = far_apart((2, 3, 4, 5), device)
    check(eca, eca_reference, x, eca_params(3, device))
    check_triplet(x, k=3, training=False)


@FORMATS
def test_second_run_gives_the_same_bits(memory_format, device):
    x = torch.randn(1, 2, 34, 40).to(device, memory_format=memory_format)
    learned, running = triplet_params(3, 3, device)
    ways = ((eca, eca_params(3, device)), (triplet_pair(running, True)[0], learned))
    for fused, params in ways:
        runs = []
        for _ in range(2):
            leaves = [t.detach().clone().requires_grad_() for t in (x, *params)]
            out = fused(*leaves)
            runs.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_gradients_of_another_layout_and_broadcast_ones(device):
    """What arrives after a cat, a sum or a layer in the other layout."""
    learned, running = triplet_params(3, 3, device)
    ways = (
        (eca, eca_reference, eca_params(3, device)),
        (*triplet_pair(running, training=True), learned),
    )
    for fused, reference, params in ways:
        x = torch.randn(2, 4, 6, 10, device=device)
        turned = torch.randn_like(x).to(memory_format=torch.channels_last)
        wide = torch.randn(2, 9, 6, 10, device=device)[:, 3:7]
        for grad in (turned, wide, torch.ones((), device=device).expand_as(x)):
            leaf, twin = x.clone().requires_grad_(), x.double().requires_grad_()
            fused(leaf, *params).backward(grad)
            reference(twin, *(t.double() for t in params)).backward(grad.double())
            torch.testing.assert_close(leaf.grad.double(), twin.grad, rtol=1e-4, atol=1e-5)
