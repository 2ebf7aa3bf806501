"""Builds the compiled kernels where a compiler is found; without one the install still succeeds.

csrc/ knows nothing of PyTorch, so this runs inside pip's isolated build, in seconds, and one build
serves every PyTorch release. What could not be built, and why, goes to ``kernels/_build.json``.

Environment:
    CXX                 the C++ compiler (default: c++, g++ or clang++, the first found)
    MEDSEG_BUILD_CPU    0 skips medseg.kernels._cpu
    MEDSEG_BUILD_CUDA   0 skips medseg.kernels._cuda
    MEDSEG_CUDA_ARCHS   compute capabilities, default "80;90"; PTX of the last one is added
    MEDSEG_CXXFLAGS     added to every C++ compilation (sanitizers, warnings)
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
KERNELS = [f"medseg.kernels.{p.parent.name}" for p in sorted((ROOT / "kernels").glob("*/op.py"))]
PACKAGES = [*KERNELS, *find_packages(str(ROOT), include=["medseg*"], exclude=["medseg.kernels*"])]
ISAS = {
    "baseline": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c "
    "-mprefer-vector-width=512",
}
CUDA_FLAGS = "-std=c++17 -O3 --expt-relaxed-constexpr -lineinfo -cudart static"
OPENMP = "" if sys.platform == "darwin" else "-fopenmp"  # Apple's compiler has none: one thread


class BuildError(Exception):
    """Why a module was not built, in one sentence."""


def compiler() -> str:
    named = os.environ.get("CXX")
    for name in [named] if named else ["c++", "g++", "clang++"]:
        if shutil.which(name.split()[0]):
            return name
    raise BuildError(
        f"no C++ compiler was found ({named or 'c++, g++ or clang++'}); install one (Debian: "
        "apt-get install g++) and run pip install -e . again"
    )


def nvcc() -> str:
    for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if root and (Path(root) / "bin" / "nvcc").exists():
            return str(Path(root) / "bin" / "nvcc")
    found = shutil.which("nvcc")
    if not found:
        raise BuildError("nvcc was not found; set CUDA_HOME or PATH and run pip install -e . again")
    return found


def include_flags() -> str:
    import pybind11

    paths = [pybind11.get_include(), sysconfig.get_path("include"), str(ROOT / "csrc")]
    return " ".join(f"-I{_escaped(p)}" for p in paths)


def _escaped(path: str | Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def cpu_ninja(objects: Path, target: Path) -> str:
    """build.ninja of `_cpu`: every source once per instruction set, plus the bindings."""
    isas = ISAS if platform.machine() in ("x86_64", "AMD64") else {"baseline": ""}
    extra = os.environ.get("MEDSEG_CXXFLAGS", "")
    undefined = "-undefined dynamic_lookup" if sys.platform == "darwin" else ""
    lines = [
        "rule compile",
        f"  command = {compiler()} -std=c++17 -O3 -ffp-contract=fast {OPENMP} -fPIC "
        f"-fvisibility=hidden {include_flags()} {extra} $isa -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "rule link",
        f"  command = {compiler()} -shared {undefined} {OPENMP} {extra} $in -o $out",
        "",
    ]
    built = [_escaped(objects / "cpu_bindings.o")]
    lines += [f"build {built[0]}: compile {_escaped(ROOT / 'csrc' / 'cpu_bindings.cpp')}"]
    for isa, options in isas.items():
        for source in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
            built.append(_escaped(objects / f"{source.stem}.{isa}.o"))
            lines += [f"build {built[-1]}: compile {_escaped(source)}"]
            lines += [f"  isa = -DMEDSEG_ISA={isa} {options}"]
    return "\n".join([*lines, f"build {_escaped(target)}: link {' '.join(built)}", ""])


def cuda_ninja(objects: Path, target: Path) -> str:
    """build.ninja of `_cuda`: static CUDA runtime, so that it imports without a driver."""
    archs = os.environ.get("MEDSEG_CUDA_ARCHS", "80;90").replace(",", ";").split(";")
    codes = [f"-gencode arch=compute_{a},code=sm_{a}" for a in archs]
    codes.append(f"-gencode arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    tool = _escaped(nvcc()) + (f" -ccbin {compiler()}" if os.environ.get("CXX") else "")
    host = "-Xcompiler -fPIC,-fvisibility=hidden"
    lines = [
        "rule compile",
        f"  command = {tool} {CUDA_FLAGS} {' '.join(codes)} {host} {include_flags()} "
        "-MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "rule link",
        f"  command = {tool} -shared -cudart static -Xlinker --exclude-libs,ALL $in -o $out",
        "",
    ]
    built = []
    sources = [*(ROOT / "csrc" / "cuda").glob("*.cu"), ROOT / "csrc" / "cuda_bindings.cpp"]
    for source in sorted(sources):
        built.append(_escaped(objects / f"{source.name}.o"))
        lines += [f"build {built[-1]}: compile {_escaped(source)}"]
    return "\n".join([*lines, f"build {_escaped(target)}: link {' '.join(built)}", ""])


def run_ninja(script: str, folder: Path) -> None:
    """Runs one build.ninja in ``folder``; its first error becomes the reason."""
    (folder / "build.ninja").write_text(script)
    command = [sys.executable, "-m", "ninja"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        output = done.stdout + done.stderr
        errors = [line for line in output.splitlines() if "error" in line.lower()]
        sys.stderr.write(output)
        raise BuildError(f"the compiler failed: {(errors or output.splitlines() or ['?'])[0]}")


class BuildKernels(build_ext):
    """Builds what can be built and writes down, beside the modules, what could not and why."""

    def run(self) -> None:
        self.notes: dict[str, str | None] = {}
        super().run()
        in_place = self.inplace or self.editable_mode
        folder = ROOT / "kernels" if in_place else Path(self.build_lib) / "medseg" / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_build.json").write_text(json.dumps(self.notes, indent=1) + "\n")

    def build_extension(self, ext: Extension) -> None:
        name = ext.name.rpartition(".")[2]
        for old in (ROOT / "kernels").glob(f"{name}.*.so"):
            old.unlink()  # a stale module would load as if it were this build's
        try:
            if os.environ.get(f"MEDSEG_BUILD{name.upper()}") == "0":
                raise BuildError(f"MEDSEG_BUILD{name.upper()}=0 skipped it")
            self._compile(name, Path(self.get_ext_fullpath(ext.name)).resolve())
            self.notes[name] = None
        except BuildError as error:
            self.notes[name] = str(error)
            print(f"medseg: {ext.name} was not built: {error}", file=sys.stderr)

    def _compile(self, name: str, target: Path) -> None:
        objects = Path(self.build_temp).resolve() / name
        objects.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        run_ninja({"_cpu": cpu_ninja, "_cuda": cuda_ninja}[name](objects, target), objects)


setup(
    packages=["medseg.kernels", *PACKAGES],
    package_dir={"medseg.kernels": "kernels"},
    ext_modules=[Extension(f"medseg.kernels.{n}", [], optional=True) for n in ("_cpu", "_cuda")],
    cmdclass={"build_ext": BuildKernels},
)
