"""The C++ of the CPU kernels under sanitizers, called without Python by driver.cpp."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medseg.kernels._backend import compiled

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tests" / "native"
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
ISAS = {"baseline": [], "avx2": AVX2, "avx512": [*AVX512, *AVX2]}
# -O0: the driver runs for seconds, an optimised build with sanitizers compiles for a minute.
FLAGS = ["-std=c++17", "-O0", "-g1", "-fopenmp", f"-I{ROOT / 'csrc' / 'cpu'}"]
MEMORY = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THREADS = ["-fsanitize=thread"]
TABLE = (ROOT / "csrc" / "cpu" / "kernels.h").read_text()
OPS = re.findall(r"\(\*(\w+?)(?:_forward)?\)\(int dtype, const \w+(?:Forward|Call)&\)", TABLE)

# How many barriers a thread meets at most in one call; each is left out once, and has to be missed.
BARRIERS = {"eca": 2, "gate": 0, "mde": 0, "triplet": 6, "split": 2}


def supported():
    """The instruction sets of this processor."""
    module, _ = compiled("_cpu")
    return module.isas() if module is not None else ["baseline"]


def build(folder, sanitize, sources, link):
    """The driver with the kernels of every instruction set; skips without the sanitizer."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if not compiler:
        pytest.skip("no C++ compiler was found (Debian: apt-get install g++)")
    command = [compiler, *FLAGS, *sanitize]
    (folder / "main.cpp").write_text("int main() { return 0; }")
    probe = [*command, str(folder / "main.cpp"), "-o", str(folder / "main")]
    done = subprocess.run(probe, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the compiler has no sanitizer runtime: {done.stderr.strip()[:200]}")

    def compile_one(job):
        source, isa = job
        target = str(folder / f"{source.stem}.{isa}.o")
        flags = [*ISAS[isa], f"-DMEDSEG_ISA={isa}"] if isa in ISAS else []
        subprocess.run([*command, *flags, "-c", str(source), "-o", target], check=True)
        return target

    jobs = [(s, isa) for s in (ROOT / "csrc" / "cpu").glob("*.cpp") for isa in ISAS]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [*jobs, *((s, "driver") for s in sources)]))
    driver = folder / "driver"
    subprocess.run([compiler, *sanitize, *link, *objects, "-o", str(driver)], check=True)
    return driver


def run(driver, *arguments, **environment):
    done = subprocess.run(
        [str(driver), *arguments], env=os.environ | environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def passed(output, isa):
    return f"{isa}: " in output and output.rstrip().endswith(" 0 failures")


@pytest.fixture(scope="module")
def memory_driver(tmp_path_factory):
    sources = [s for s in NATIVE.glob("*.cpp") if s.name != "openmp.cpp"]
    return build(tmp_path_factory.mktemp("memory"), MEMORY, sources, ["-fopenmp"])


@pytest.fixture(scope="module")
def race_driver(tmp_path_factory):
    """Linked without libgomp, whose barriers ThreadSanitizer cannot see: openmp.cpp serves."""
    driver = build(tmp_path_factory.mktemp("races"), THREADS, NATIVE.glob("*.cpp"), ["-pthread"])
    code, output = run(driver, "baseline", "eca")
    if code and "FATAL: ThreadSanitizer" in output:
        pytest.skip(f"ThreadSanitizer cannot run here: {output.strip()[:200]}")
    return driver


@pytest.mark.parametrize("op", OPS)
def test_every_op_is_driven(op):
    assert f'{{"{op}", {op}_cases}}' in (NATIVE / "driver.cpp").read_text()
    assert op in BARRIERS


@pytest.mark.slow
@pytest.mark.parametrize("isa", supported())
def test_no_access_out_of_bounds(memory_driver, isa):
    # More threads than cores: waiting ones have to sleep.
    code, output = run(memory_driver, isa, OMP_WAIT_POLICY="passive")
    assert code == 0 and passed(output, isa), output[-4000:]


@pytest.mark.slow
def test_no_race(race_driver):
    # One instruction set: all three share the source of what runs in parallel.
    isa = supported()[0]
    code, output = run(race_driver, isa, TSAN_OPTIONS="halt_on_error=1")
    assert code == 0 and passed(output, isa), output[:4000]


@pytest.mark.slow
@pytest.mark.parametrize("op, barrier", [(op, i) for op, n in BARRIERS.items() for i in range(n)])
def test_a_race_is_found(race_driver, op, barrier):
    code, output = run(
        race_driver, supported()[0], op, OPENMP_DROP=str(barrier), TSAN_OPTIONS="halt_on_error=1"
    )
    found = "ThreadSanitizer: data race" in output or ", expected " in output
    assert code and found, f"nobody needs barrier {barrier}: {output[:4000]}"


@pytest.mark.slow
@pytest.mark.parametrize("sanitize", [MEMORY, THREADS], ids=["memory", "threads"])
def test_pages_are_in_one_hand_at_a_time(tmp_path, sanitize):
    compiler = shutil.which("c++") or shutil.which("g++")
    if not compiler:
        pytest.skip("no C++ compiler was found (Debian: apt-get install g++)")
    source, driver = NATIVE / "pages" / "driver.cpp", tmp_path / "driver"
    flags = ["-std=c++17", "-O1", "-g1", "-pthread", f"-I{ROOT / 'csrc'}"]
    command = [compiler, *flags, *sanitize, str(source), "-o", str(driver)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in done.stderr:
        pytest.skip(f"the compiler has no sanitizer runtime: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr
    code, output = run(driver)
    if "FATAL: ThreadSanitizer" in output:
        pytest.skip(f"ThreadSanitizer cannot run here: {output.strip()[:200]}")
    assert code == 0 and output == "0 failures\n", output[:4000]
