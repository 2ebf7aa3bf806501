"""The emulator catches what it is there to catch, and the kernels are clean under sanitizers."""

import ctypes
import os
import subprocess

import pytest
import torch

from tests.cuda.emulator import build

CORRECT, NO_BARRIER, PARTIAL_BARRIER, PARTIAL_SHUFFLE, UNWRITTEN, MISALIGNED = range(6)
pytestmark = pytest.mark.skipif(
    build.compiler() is None, reason="no C++ compiler was found to build the CUDA kernels for CPU"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(mistake, shuffled) -> (whether the emulator threw, the kernel's 64 results)."""
    folder = tmp_path_factory.mktemp("selftest")
    objects = build.compile_all(folder, [build.HERE / "selftest.cpp"], ["-O1"])
    library = ctypes.CDLL(str(build.link(objects, folder / "selftest.so", ["-shared"])))

    def call(mistake, shuffled=False):
        out = torch.full((64,), torch.nan)
        library.emulator_shuffle(int(shuffled))
        return library.run_mistake(mistake, ctypes.c_void_p(out.data_ptr())), out

    return call


def test_a_correct_kernel_gives_the_same_in_any_order(run):
    want = 63 - (torch.arange(64.0).view(-1, 2).flip(1).flatten())
    for shuffled in (False, True):
        threw, out = run(CORRECT, shuffled)
        assert not threw and torch.equal(out, want)


def test_a_missing_barrier_changes_the_result(run):
    results = [run(NO_BARRIER, shuffled)[1] for shuffled in (False, True)]
    assert not torch.equal(results[0], results[1])


def test_unwritten_shared_memory_is_nan(run):
    threw, out = run(UNWRITTEN)
    assert not threw and out.isnan().sum() == 1


@pytest.mark.parametrize("mistake", (PARTIAL_BARRIER, PARTIAL_SHUFFLE, MISALIGNED))
def test_what_would_hang_or_trap_throws(run, mistake):
    for shuffled in (False, True):
        assert run(mistake, shuffled)[0]


def test_kernels_are_clean_under_sanitizers(tmp_path):
    flags = ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}")
    command = [str(build.compiler()), *flags, str(probe), "-o", str(tmp_path / "probe")]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the C++ compiler has no address and undefined behaviour sanitizers here")
    objects = build.compile_all(tmp_path, [*build.KERNELS, build.HERE / "sanitize.cpp"], flags)
    program = build.link(objects, tmp_path / "sanitize", flags)
    # The fibers' own memory is never given back, which is no leak of the kernels.
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run(
        [str(program)], capture_output=True, text=True, env={**os.environ, **options}
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr[-4000:]
