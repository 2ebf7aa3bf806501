"""The C++ of the CPU kernels under AddressSanitizer and UBSan, called without Python."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medseg.kernels._backend import compiled

ROOT = Path(__file__).resolve().parents[2]
ISAS = {"baseline": [], "avx2": ["-mavx2", "-mfma", "-mf16c"]}
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# -O0: the driver runs for seconds, an optimised build with sanitizers compiles for a minute.
FLAGS = ["-std=c++17", "-O0", "-g1", "-fopenmp", *SANITIZE]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    found = shutil.which("c++") or shutil.which("g++")
    if not found:
        pytest.skip("no C++ compiler was found (Debian: apt-get install g++)")
    folder = tmp_path_factory.mktemp("sanitizer")
    (folder / "main.cpp").write_text("int main() { return 0; }")
    command = [found, *FLAGS, "main.cpp", "-o", "main"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the compiler has no sanitizer runtime: {done.stderr.strip()[:200]}")
    return found


@pytest.mark.slow
def test_no_access_out_of_bounds(compiler, tmp_path):
    module, _ = compiled("_cpu")
    isa = "avx2" if module is not None and "avx2" in module.isas() else "baseline"
    flags = [*FLAGS, *ISAS[isa], f"-DMEDSEG_ISA={isa}", f"-I{ROOT / 'csrc' / 'cpu'}"]

    def build(source):
        target = tmp_path / f"{source.stem}.o"
        subprocess.run([compiler, *flags, "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    sources = [*(ROOT / "csrc" / "cpu").glob("*.cpp"), ROOT / "tests" / "native" / "driver.cpp"]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(build, sources))
    driver = tmp_path / "driver"
    subprocess.run([compiler, *flags, *objects, "-o", str(driver)], check=True)
    # More threads than cores: waiting ones have to sleep.
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([str(driver)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert f"{isa}: " in done.stdout and " 0 failures" in done.stdout
