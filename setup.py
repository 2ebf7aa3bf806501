"""Builds the compiled kernels where a compiler is found; without one the install still succeeds.

csrc/ knows nothing of PyTorch, so this runs inside pip's isolated build, in seconds, and one build
serves every PyTorch release. What could not be built, and why, goes to ``kernels/_build.json``.

Environment:
    CXX                 the C++ compiler (default: c++, g++ or clang++, the first found)
    MEDSEG_BUILD_CPU    0 skips medseg.kernels._cpu
    MEDSEG_BUILD_CUDA   0 skips medseg.kernels._cuda
    MEDSEG_CUDA_ARCHS   compute capabilities, default "80;90"; PTX of the first is added
    MEDSEG_CXXFLAGS     added to every C++ compilation (sanitizers, warnings)
"""

import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
KERNELS = [f"medseg.kernels.{p.parent.name}" for p in sorted((ROOT / "kernels").glob("*/op.py"))]
PACKAGES = [*KERNELS, *find_packages(str(ROOT), include=["medseg*"], exclude=["medseg.kernels*"])]
# Where the baseline is what a processor falls back to, -O2 will do.
ISAS = {
    "baseline": "-O2",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c "
    "-mprefer-vector-width=512",
}
# Written in vectors throughout: -O3 gains them nothing that a replay of the benches could see, and
# takes twice as long. ECA's windows and triplet attention do lose without it, 4 to 20 percent.
LEAN = ("gate", "mde", "split_backward", "split_forward", "split_parts", "table")
SLOWEST = ("eca", "mde_gains", "split_pixels", "split_planes", "mde")  # to compile: they go first
CUDA_FLAGS = (
    "-std=c++17 --expt-relaxed-constexpr -lineinfo -cudart static -Xfatbin -compress-all "
    "-Xcompiler -fPIC,-fvisibility=hidden"
)
FINGERPRINT = runpy.run_path(str(ROOT / "kernels" / "_sources.py"))["fingerprint"]
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


def binding_flags() -> str:
    """Where the headers of pybind11, Python and csrc/ are; only the bindings need the first two."""
    try:
        import pybind11  # pyright: ignore[reportMissingImports]  (a requirement of the build)
    except ModuleNotFoundError as error:
        raise BuildError(f"{error}; pip install -e . brings it, or pip install pybind11") from None
    paths = [pybind11.get_include(), sysconfig.get_path("include"), str(ROOT / "csrc")]
    return " ".join(f"-I{_escaped(p)}" for p in paths)


def _escaped(path: str | Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _rule(name: str, command: str) -> list[str]:
    depfile = [] if name == "link" else ["  depfile = $out.d"]
    return [f"rule {name}", f"  command = {command}", *depfile]


def _sources(pattern: str) -> list[Path]:
    """In the order to compile them in: a long compilation begun last leaves a core idle."""
    found = sorted((ROOT / "csrc").glob(pattern))
    return sorted(found, key=lambda source: source.stem not in SLOWEST)


def cpu_ninja(objects: Path, target: Path) -> str:
    """build.ninja of `_cpu`: every source once per instruction set, plus the bindings."""
    isas = ISAS if platform.machine() in ("x86_64", "AMD64") else {"baseline": ""}
    extra = os.environ.get("MEDSEG_CXXFLAGS", "")
    undefined = "-undefined dynamic_lookup" if sys.platform == "darwin" else ""
    tool = f"{compiler()} -std=c++17 -O3 {OPENMP} -fPIC -fvisibility=hidden {extra}"
    files = "-MMD -MF $out.d -c $in -o $out"
    lines = [
        *_rule("bind", f"{tool} -O1 {binding_flags()} {files}"),
        *_rule("compile", f"{tool} -ffp-contract=fast -fno-exceptions $isa {files}"),
        *_rule("link", f"{compiler()} -shared {undefined} {OPENMP} {extra} $in -o $out"),
    ]
    built = [_escaped(objects / "cpu_bindings.o")]
    lines += [f"build {built[0]}: bind {_escaped(ROOT / 'csrc' / 'cpu_bindings.cpp')}"]
    for isa, options in isas.items():
        for source in _sources("cpu/*.cpp"):
            lean = "-O2" if source.stem in LEAN else ""
            built.append(_escaped(objects / f"{source.stem}.{isa}.o"))
            lines += [f"build {built[-1]}: compile {_escaped(source)}"]
            lines += [f"  isa = -DMEDSEG_ISA={isa} {lean} {options}"]
    return "\n".join([*lines, f"build {_escaped(target)}: link {' '.join(built)}", ""])


def cuda_ninja(objects: Path, target: Path) -> str:
    """build.ninja of `_cuda`: static CUDA runtime, so that it imports without a driver."""
    archs = re.findall(r"\d+[a-z]?", os.environ.get("MEDSEG_CUDA_ARCHS") or "80;90")
    # One PTX for all: nothing in csrc/cuda asks for a newer one, and making it is half the work.
    first = min(archs, key=lambda arch: int(re.sub(r"\D", "", arch)))
    real = ",".join(f"sm_{arch}" for arch in archs)
    codes = f"-gencode 'arch=compute_{first},code=[{real},compute_{first}]'"
    tool = _escaped(nvcc()) + (f" -ccbin {compiler()}" if os.environ.get("CXX") else "")
    defined = f"'-DMEDSEG_CUDA_ARCHS=\"{' '.join(archs)} {first}+PTX\"'"
    files = "-MMD -MF $out.d -c $in -o $out"
    lines = [
        *_rule("bind", f"{tool} {CUDA_FLAGS} -O1 {defined} {binding_flags()} {files}"),
        *_rule("compile", f"{tool} {CUDA_FLAGS} -O3 {codes} {files}"),
        *_rule("link", f"{tool} -shared -cudart static -Xlinker --exclude-libs,ALL $in -o $out"),
    ]
    built = [_escaped(objects / "cuda_bindings.o")]
    lines += [f"build {built[0]}: bind {_escaped(ROOT / 'csrc' / 'cuda_bindings.cpp')}"]
    for source in _sources("cuda/*.cu"):
        built.append(_escaped(objects / f"{source.stem}.o"))
        lines += [f"build {built[-1]}: compile {_escaped(source)}"]
    return "\n".join([*lines, f"build {_escaped(target)}: link {' '.join(built)}", ""])


def run_ninja(script: str, folder: Path) -> None:
    """Runs one build.ninja in ``folder``; its first error becomes the reason."""
    (folder / "build.ninja").write_text(script)
    command = [sys.executable, "-m", "ninja"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        output = done.stdout + done.stderr
        sys.stderr.write(output)
        raise BuildError(f"the compiler failed: {first_error(output)}")


def first_error(output: str) -> str:
    """The line of a compiler's or linker's output that says most about why it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern in (r"(?<!collect2: )\berror\b.*:", r"\bld: ", r"[Ee]rror|not found|No module"):
        for line in lines:
            if re.search(pattern, line) and not line.startswith("ninja: build stopped"):
                return line
    return lines[-1] if lines else "it printed nothing"


class BuildPython(build_py):
    """Copies the Python files into an empty folder: a wheel holds nothing of earlier builds."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "medseg", ignore_errors=True)
        super().run()


class BuildKernels(build_ext):
    """Builds what can be built and writes down, beside the modules, what could not and why."""

    def run(self) -> None:
        self.notes: dict[str, str | None] = {}
        self.sources: dict[str, str] = {}  # what was built, of what
        in_place = self.inplace or self.editable_mode
        self.folder = ROOT / "kernels" if in_place else Path(self.build_lib) / "medseg" / "kernels"
        self.folder.mkdir(parents=True, exist_ok=True)
        super().run()
        notes = {**self.notes, "sources": self.sources}
        (self.folder / "_build.json").write_text(json.dumps(notes, indent=1) + "\n")

    def build_extension(self, ext: Extension) -> None:
        name = ext.name.rpartition(".")[2]
        started = time.perf_counter()
        for old in self.folder.glob(f"{name}.*"):
            old.unlink()  # a stale module would load as if it were this build's
        try:
            if os.environ.get(f"MEDSEG_BUILD{name.upper()}") == "0":
                raise BuildError(f"MEDSEG_BUILD{name.upper()}=0 skipped it")
            made_of = FINGERPRINT(name)
            self._compile(name, Path(self.get_ext_fullpath(ext.name)).resolve())
            self.notes[name], self.sources[name] = None, made_of
            print(f"medseg: {ext.name} was built in {time.perf_counter() - started:.1f} s")
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
    cmdclass={"build_ext": BuildKernels, "build_py": BuildPython},
)
