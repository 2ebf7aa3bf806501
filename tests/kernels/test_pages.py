"""Results of the CPU kernels are made of pages that earlier ones have left."""

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.kernels import eca_attention, keep_pages
from medseg.kernels._cpu_launch import KEEP_MB, LARGE, empty_map
from medseg.kernels.eca.reference import eca_reference

pytestmark = [
    pytest.mark.usefixtures("needs_cpu"),
    pytest.mark.skipif(sys.platform != "linux", reason="pages are kept on Linux only"),
]
SHAPE = (2, 16, 128, 128)  # 2 MB of float32
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(autouse=True)
def kept(needs_cpu):
    """Bytes kept and in no use, as a function; every test starts with none."""
    from medseg.kernels import _cpu  # pyright: ignore[reportAttributeAccessIssue]

    gc.collect()
    keep_pages(0)
    assert keep_pages(KEEP_MB) == 0
    yield _cpu.kept_pages
    keep_pages(None)


def test_freed_pages_serve_the_next_result(kept):
    x = torch.zeros(SHAPE)
    first = empty_map(x)
    address = first.data_ptr()
    assert kept() == 0
    del first
    assert kept() == x.nbytes
    second = empty_map(x)
    assert second.data_ptr() == address and kept() == 0
    assert empty_map(x).data_ptr() != address


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_is_what_like_input_makes(dtype, layout):
    x = torch.zeros(SHAPE, dtype=dtype).contiguous(memory_format=layout)
    for shape, sizes in ((None, x.shape), ((2, 32, 128, 128), (2, 32, 128, 128))):
        found = empty_map(x, shape)
        assert found.shape == sizes and found.dtype is dtype
        assert found.is_contiguous(memory_format=layout)
        assert not found.requires_grad and not found._is_view()
        assert found.untyped_storage().nbytes() == found.nbytes
        assert found.data_ptr() % 64 == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_do_not_depend_on_what_the_pages_held(layout):
    x = torch.randn(SHAPE).contiguous(memory_format=layout)
    weight = torch.randn(3)
    want = eca_attention(x, weight, backend="cpu")
    empty_map(x).fill_(torch.nan)  # freed at once
    assert torch.equal(eca_attention(x, weight, backend="cpu"), want)
    torch.testing.assert_close(want, eca_reference(x, weight))


def test_a_result_in_use_is_never_handed_out_again():
    x, weight = torch.randn(SHAPE), torch.randn(3)
    results = [eca_attention(x * i, weight, backend="cpu") for i in range(1, 6)]
    views = [r[0] for r in results]  # they keep the storage
    want = [v.clone() for v in views]
    del results
    for i in range(5):
        eca_attention(x + i, weight, backend="cpu")
    assert all(torch.equal(a, b) for a, b in zip(views, want, strict=True))


def test_training_gives_the_same_gradients_with_and_without(kept):
    def step(megabytes):
        keep_pages(megabytes)
        x = torch.linspace(-1, 1, 2 * 16 * 128 * 128).view(SHAPE).requires_grad_()
        weight = torch.tensor([0.5, -0.25, 1.0], requires_grad=True)
        for _ in range(3):
            eca_attention(eca_attention(x, weight), weight).square().sum().backward()
        return x.grad, weight.grad

    for a, b in zip(step(0), step(KEEP_MB), strict=True):
        assert a is not None and b is not None and torch.equal(a, b)


def test_no_more_than_the_limit_is_kept(kept):
    x = torch.zeros(SHAPE)
    keep_pages(5)
    held = [empty_map(x) for _ in range(4)]
    newest = held[-1].data_ptr()
    while held:
        del held[0]
        assert kept() <= 5 << 20
    assert kept() == 2 * x.nbytes
    assert empty_map(x).data_ptr() == newest  # the oldest went first, the newest comes first
    keep_pages(3)
    assert kept() == x.nbytes
    keep_pages(0)
    assert kept() == 0


def test_a_much_smaller_result_does_not_take_a_large_block(kept):
    del_me = empty_map(torch.zeros(4, 64, 128, 128))
    large = del_me.nbytes
    del del_me
    small = empty_map(torch.zeros(SHAPE))
    assert kept() == large
    del small
    assert kept() == large + 2 * 16 * 128 * 128 * 4


def test_zero_leaves_allocations_to_pytorch(kept):
    keep_pages(0)
    with torch.profiler.profile(profile_memory=True) as profile:
        out = empty_map(torch.empty(SHAPE))
    events: Any = profile.profiler.kineto_results.events()  # pyright: ignore
    sizes = [e.nbytes() for e in events if e.name() == "[memory]"]
    assert sizes.count(out.nbytes) == 2
    assert kept() == 0


def test_small_results_are_pytorchs(kept):
    x = torch.zeros(1, 1, 1, LARGE // 4 - 1)
    found = empty_map(x)
    found.resize_(10)  # foreign memory cannot be resized
    assert kept() == 0


def test_threads_share_the_pages(kept):
    x, weight = torch.randn(SHAPE), torch.randn(3)
    want = eca_attention(x, weight)

    def run(_):
        return all(torch.equal(eca_attention(x, weight), want) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))
    assert 0 < kept() <= KEEP_MB << 20


def test_results_live_like_other_tensors():
    out = eca_attention(torch.randn(SHAPE), torch.randn(3), backend="cpu")
    assert torch.equal(pickle.loads(pickle.dumps(out)), out)
    assert torch.equal(copy.deepcopy(out), out)
    assert torch.equal(torch.from_numpy(out.numpy()), out)
    want = out.clone()
    out.share_memory_()
    assert out.is_shared() and torch.equal(out, want)
    out.mul_(2)
    assert torch.equal(out, want * 2)


def test_a_result_outlives_the_interpreter():
    """The pages come back when everything else is gone."""
    code = (
        "import torch; from medseg.kernels import eca_attention\n"
        f"kept = eca_attention(torch.ones({SHAPE}), torch.ones(3)); torch.kept = kept\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_live_results_take_no_more_than_their_size():
    """Whole huge pages behind each would double what small ones cost."""
    x = torch.zeros(1, 64, 91, 91)
    before = resident()
    held = [empty_map(x).fill_(1) for _ in range(40)]
    assert resident() - before <= 1.15 * len(held) * x.nbytes + (8 << 20)


def test_what_no_machine_has_is_refused_as_by_pytorch():
    x = torch.zeros(1, 1, 1, 1).expand(1 << 12, 1 << 12, 1 << 11, 1 << 11)  # 256 TB
    with pytest.raises(RuntimeError, match="allocate"):
        empty_map(x)
    with pytest.raises(RuntimeError, match=r"overflow|invalid|too|big|allocate"):
        empty_map(torch.zeros(1, 1, 1, 1).expand(1 << 20, 1 << 20, 1 << 11, 1 << 11))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_a_working_pool(kept):
    """Also while other threads of the parent are at it."""
    x = torch.zeros(SHAPE)
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            keep_pages(5)
            held = [empty_map(x) for _ in range(4)]
            del held

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                keep_pages(8)
                address = empty_map(x).data_ptr()
                os._exit(0 if empty_map(x).data_ptr() == address else 1)
            assert waited(child) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def waited(child, seconds=20):
    """The exit code of a child; one that hangs is killed and gives -1."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def test_an_argument_is_stronger_than_the_environment(monkeypatch):
    keep_pages(None)
    monkeypatch.setenv("MEDSEG_KEEP_MB", "many")
    assert keep_pages(0) is None
    empty_map(torch.zeros(SHAPE))
    assert keep_pages(None) == 0
    with pytest.raises(ValueError, match="MEDSEG_KEEP_MB must be a whole number of megabytes"):
        empty_map(torch.zeros(SHAPE))


@pytest.mark.parametrize("given", ["-1", "many", "1.5", "9" * 20])
def test_refuses_a_strange_limit(given):
    code = (
        "import torch; from medseg.kernels import eca_attention\n"
        f"eca_attention(torch.ones({SHAPE}), torch.ones(3))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MEDSEG_KEEP_MB": given, "MEDSEG_BACKEND": "cpu"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "MEDSEG_KEEP_MB must be a whole number of megabytes" in done.stderr
    assert f"got '{given}'" in done.stderr


@pytest.mark.parametrize("given", [-1, 1.5, "8", True, (1 << 40) + 1])
def test_refuses_a_strange_argument(given):
    before = keep_pages(7)
    with pytest.raises(
        ValueError, match=r"megabytes must be None or a whole number from 0 to 2\^40"
    ):
        keep_pages(given)
    assert keep_pages(before) == 7
