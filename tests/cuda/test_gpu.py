"""The CUDA kernels on a real GPU: the same comparisons, graphs, streams, launches, huge maps."""

import functools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from medseg.kernels import eca_attention
from medseg.kernels._backend import why_not
from medseg.kernels.eca.reference import eca_reference
from medseg.kernels.triplet.reference import triplet_reference
from tests.cuda.test_emulated import (
    TRIPLET_SHAPES,
    eca_params,
    everything,
    fused_eca,
    fused_pooled_eca,
    fused_triplet,
    triplet,
    triplet_params,
    with_gradients,
)
from tests.cuda.test_emulated_split import CASES
from tests.kernels.eca_cases import POOLED, check_pool
from tests.kernels.gate_cases import check as check_gate
from tests.kernels.gate_cases import triples
from tests.kernels.mde_cases import KINDS, mde_gains, mde_pair
from tests.kernels.split_cases import split_pair, split_params
from tests.kernels.test_parts import check_split as check_split_parts
from tests.kernels.test_parts import check_triplet as check_triplet_parts
from tests.kernels.truth import DTYPES, SHAPES, check, layouts

REASON = why_not("cuda", "eca", "cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


@pytest.fixture(autouse=True)
def no_tf32():
    """The plain reference must not round its convolutions to TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, deterministic=True):
        yield


def on_gpu(params):
    return [p.cuda() for p in params]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", (*SHAPES, (4, 64, 256, 256), (2, 512, 33, 31)))
def test_eca(shape, dtype):
    for taps, bias in ((3, True), (5, False)):
        for x in layouts(shape, dtype, "cuda"):
            check(fused_eca, eca_reference, x, on_gpu(eca_params(taps, dtype, bias)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", (*POOLED, (4, 64, 256, 256), (2, 512, 33, 31)))
def test_eca_adds_and_pools(shape, dtype):
    for x in layouts(shape, dtype, "cuda"):
        check_pool(eca_attention, x, eca_params(3, dtype), backend="cuda")


@pytest.mark.parametrize("training", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", (*TRIPLET_SHAPES, (2, 64, 128, 128), (2, 512, 32, 32)))
def test_triplet(shape, dtype, training):
    reference = triplet(triplet_reference, training, 3)
    for x in layouts(shape, dtype, "cuda"):
        check(fused_triplet(training, 3), reference, x, on_gpu(triplet_params(3, 7, dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", (*SHAPES[:2], (2, 64, 128, 128), (2, 512, 33, 31)))
def test_pooling_and_application(shape, dtype):
    n, c, h, w = shape
    for x in layouts(shape, dtype, "cuda"):
        check_triplet_parts(x, c != 7, "cuda")
    for x in layouts((n, 2 * c, h, w), dtype, "cuda"):
        check_split_parts(x, 2, "cuda")


@pytest.mark.parametrize("k", (1, 3, 5, 25))
@pytest.mark.parametrize("gates", (2, 3))
def test_triplet_kernel_sizes(k, gates):
    reference = triplet(triplet_reference, True, gates)
    for x in layouts((2, 5, 33, 12), torch.float32, "cuda"):
        params = on_gpu(triplet_params(gates, k, torch.float32))
        check(fused_triplet(True, gates), reference, x, params)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    (*CASES, ((4, 64, 256, 256), 2, 1, 32, True), ((8, 512, 16, 17), 4, 2, 256, True)),
    ids=lambda case: str(case[:2]),
)
def test_split(case, dtype):
    shape, radix, cardinality, inner, bias = case
    n, c, h, w = shape
    params = on_gpu([p.to(dtype) for p in split_params(c, inner, radix, cardinality, bias)])
    for training in (False, True) if n > 2 else (False,):
        for backend in ("cuda", "triton"):
            fused, reference = split_pair(radix, cardinality, training, backend)
            for x in layouts((n, radix * c, h, w), dtype, "cuda"):
                check(fused, reference, x, params, shape=shape)


@pytest.mark.parametrize("backend", ("cuda", "triton"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_mde(kind, dtype, backend):
    for shape in ((2, 7, 17, 19), (4, 64, 128, 128), (2, 136, 33, 40)):
        for x in layouts(shape, dtype, "cuda"):
            gains = mde_gains(shape[1], kind[0], kind[3]).cuda()
            check(*mde_pair(backend, *kind[:3]), x, [gains])


@pytest.mark.parametrize("dtype", DTYPES)
def test_mde_of_both_backends_repeats_and_is_captured(dtype):
    for x in layouts((4, 64, 65, 64), dtype, "cuda"):
        for backend in ("cuda", "triton"):
            leaves = [x.clone().requires_grad_(), mde_gains(64).cuda().requires_grad_()]

            def step(backend=backend, leaves=leaves):
                out = mde_pair(backend)[0](*leaves)
                return [out, *torch.autograd.grad(out, leaves, torch.ones_like(out) / 3)]

            first, side = step(), torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = step()
            for _ in range(3):
                graph.replay()
                assert all(torch.equal(a, b) for a, b in zip(first, step(), strict=True))
                assert all(torch.equal(a, b) for a, b in zip(first, captured, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_again(dtype):
    params = on_gpu(split_params(32, 32, 2))
    for x in layouts((4, 64, 65, 64), dtype, "cuda"):

        def run(x=x):
            pairs = (split_pair(2, 1, True, backend)[0] for backend in ("cuda", "triton"))
            return [*everything(x), *(t for fn in pairs for t in with_gradients(fn, x, params))]

        first = run()
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def steps(x):
    """Named calls of the ops on ``x``: what graphs, streams and launch counts are tried on."""
    eca = on_gpu(eca_params(3, x.dtype))
    tri = on_gpu(triplet_params(3, 7, x.dtype))
    yield "eca", 2, 2, functools.partial(fused_eca, x, *eca)
    yield "pooled eca", 2, 2, functools.partial(fused_pooled_eca, x, x.detach().flip(0), *eca)
    yield "triplet inference", 3, 4, functools.partial(fused_triplet(False, 3), x, *tri)
    yield "triplet training", 4, 4, functools.partial(fused_triplet(True, 3), x, *tri)
    split = on_gpu(split_params(x.shape[1] // 2, 32, 2))
    gains = mde_gains(x.shape[1]).cuda()
    yield "mde", 1, 1, functools.partial(mde_pair("cuda")[0], x, gains)
    yield "split", 4, 5, functools.partial(split_pair(2, 1, True, "cuda")[0], x, *split)


def test_graph_capture():
    for x in layouts((2, 16, 40, 48), torch.float32, "cuda"):
        x = x.clone(memory_format=torch.preserve_format)
        split = on_gpu(split_params(8, 32, 2))
        by_triton = functools.partial(split_pair(2, 1, True, "triton")[0], x, *split)
        for name, _, _, step in (*steps(x), ("split by triton", 4, 5, by_triton)):
            want = step()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = step()
            out.zero_()
            graph.replay()
            assert torch.equal(out, want), name


def test_other_stream():
    x = torch.randn(2, 16, 64, 64, device="cuda")
    for name, _, _, step in steps(x):
        want = step()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            got = step()
        side.synchronize()
        assert torch.equal(got, want), name


def kernels_of(fn):
    """(what fn returns, names of the medseg kernels it launched)."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        out = fn()
        torch.cuda.synchronize()
    names = [e.name for e in recorded.events() or () if e.device_type.name == "CUDA"]
    return out, [name for name in names if "medseg" in name]


@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
def test_launches(layout):
    x = torch.randn(2, 64, 32, 32, device="cuda").contiguous(memory_format=layout)
    for name, forward, backward, step in steps(x.requires_grad_()):
        step()  # the first call may load modules
        out, launched = kernels_of(step)
        assert len(launched) == forward, (name, launched)
        grad = torch.ones_like(out)
        _, launched = kernels_of(lambda o=out, g=grad: o.backward(g))
        assert len(launched) == backward, (name, launched)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", (*SHAPES, (2, 64, 128, 128)))
def test_gate(shape, dtype):
    for maps in triples(shape, dtype):
        check_gate([t.cuda() for t in maps], "cuda")


def test_more_than_two_to_the_31_elements():
    free, _ = torch.cuda.mem_get_info()
    shape = (3, 64, 4096, 2752)  # 2.16e9 elements
    if free < 24 << 30:
        pytest.skip(f"needs 24 GiB of free GPU memory, has {free >> 30}")
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_()
    tail = x[-1:].clone()
    params = on_gpu(eca_params(3, x.dtype))
    got = fused_eca(x, *params)[-1:]
    assert torch.allclose(got, fused_eca(tail, *params), rtol=1e-2)
    params, split = on_gpu(split_params(32, 32, 2)), split_pair(2, 1, False, "cuda")[0]
    assert torch.allclose(split(x, *params)[-1:], split(tail, *params), rtol=1e-2)
    for backend in ("cuda", "triton"):
        fused, gains = mde_pair(backend)[0], mde_gains(x.shape[1]).cuda()
        assert torch.equal(fused(x, gains)[-1:], fused(tail, gains))
    params = on_gpu(triplet_params(3, 3, x.dtype))
    got = fused_triplet(False, 3)(x, *params)[-1:]
    assert torch.allclose(got, fused_triplet(False, 3)(tail, *params), rtol=1e-2)


def test_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = torch.randn(2, 8, 16, 16, device="cuda:1")
    weight = torch.randn(3, device="cuda:1")
    got = eca_attention(x, weight, backend="cuda")
    assert torch.allclose(got, eca_reference(x, weight), atol=1e-6)
    assert torch.cuda.current_device() == 0
