"""The compiled CPU module itself: instruction sets, symbols, threads."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from medseg.kernels import eca_attention, triplet_attention
from medseg.kernels._backend import compiled
from medseg.kernels._cpu_launch import threads_for

pytestmark = pytest.mark.usefixtures("needs_cpu")


@pytest.fixture
def module():
    found, _ = compiled("_cpu")
    assert found is not None
    return found


def test_fastest_instruction_set_is_the_default(module):
    assert module.isa() == module.isas()[0]
    assert module.isas()[-1] == "baseline"
    with pytest.raises(ValueError, match="cannot run the 'sse9' kernels"):
        module.set_isa("sse9")


def test_no_symbol_is_shared_between_instruction_sets(module):
    """A weak symbol may be compiled for AVX-512 in one object and called by the baseline."""
    if not shutil.which("nm"):
        pytest.skip("nm is not installed (Debian: apt-get install binutils)")
    out = subprocess.run(["nm", "-C", module.__file__], capture_output=True, text=True, check=True)
    names = [line.split(maxsplit=2) for line in out.stdout.splitlines()]
    kernels = [n[2] for n in names if len(n) == 3 and "medseg::" in n[2]]
    assert any("medseg::avx512::" in n for n in kernels) or len(module.isas()) == 1
    bindings = ("pybind11", "std::", "__gnu_cxx", "typeinfo", "vtable", "guard variable")
    weak = [n[2] for n in names if len(n) == 3 and n[1] in "WVu"]
    foreign = [
        n
        for n in weak
        if not n.startswith(("medseg::baseline::", "medseg::avx2::", "medseg::avx512::"))
        and not any(word in n for word in bindings)
    ]
    assert not foreign


def test_objects_of_the_kernels_hold_no_foreign_weak_symbol(tmp_path):
    """The same, object by object: there even std:: must not appear."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if not compiler or not shutil.which("nm"):
        pytest.skip("needs a C++ compiler and nm")
    root = Path(__file__).resolve().parents[2]
    for source in sorted((root / "csrc" / "cpu").glob("*.cpp")):
        target = tmp_path / f"{source.stem}.o"
        flags = ["-std=c++17", "-O0", "-fno-exceptions", "-fopenmp", "-DMEDSEG_ISA=baseline", "-c"]
        subprocess.run([compiler, *flags, str(source), "-o", str(target)], check=True)
        out = subprocess.run(["nm", "-C", str(target)], capture_output=True, text=True, check=True)
        weak = [line for line in out.stdout.splitlines() if f" {line[17:18]} " in (" W ", " V ")]
        assert all("medseg::baseline::" in line for line in weak), weak


def test_small_tensors_stay_on_one_thread():
    assert threads_for(torch.empty(1, 16, 8, 8)) == 1
    assert threads_for(torch.empty(4, 64, 256, 256)) == torch.get_num_threads()


def test_thread_count_of_torch_is_obeyed():
    """One thread must not change what is computed, and torch's count holds after our call."""
    x, weight = torch.randn(2, 16, 96, 96), torch.randn(3)
    many = eca_attention(x, weight, backend="cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = eca_attention(x, weight, backend="cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, many)


def test_calls_from_several_python_threads_do_not_disturb_each_other():
    inputs = [torch.randn(2, 8, 40, 40) for _ in range(4)]
    conv = torch.randn(3, 2, 7, 7) / 7

    def run(x):
        return triplet_attention(
            x, conv, torch.ones(3), torch.zeros(3), torch.zeros(3), torch.ones(3), training=False
        )

    want = [run(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            got = list(pool.map(run, inputs))
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
