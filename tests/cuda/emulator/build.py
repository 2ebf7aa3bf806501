"""Builds csrc/cuda and its bindings for the CPU, against the headers beside this file."""

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-function"]


def compiler() -> str | None:
    """The C++ compiler that setup.py would take."""
    named = os.environ.get("CXX")
    return next(filter(shutil.which, [named] if named else ["c++", "g++", "clang++"]), None)


def compile_all(folder: Path, sources: list[Path], flags: list[str]) -> list[Path]:
    """Objects of the sources and the emulator, two compilations at a time."""
    includes = [HERE, ROOT / "csrc", ROOT / "csrc" / "cuda"]
    command = [str(compiler()), "-std=c++17", "-fPIC", "-fvisibility=hidden", *WARNINGS, *flags]
    command += [f"-I{path}" for path in includes]

    def run(source: Path) -> Path:
        target = folder / f"{source.name}.o"
        language = ["-x", "c++"] if source.suffix == ".cu" else []
        done = subprocess.run(
            [*command, *language, "-c", str(source), "-o", str(target)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, [*sources, HERE / "emulator.cpp"]))


def link(objects: list[Path], target: Path, flags: list[str]) -> Path:
    """One program or shared object of the objects."""
    names = [str(path) for path in objects]
    done = subprocess.run(
        [str(compiler()), *flags, *names, "-o", str(target)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target


def build_module(folder: Path) -> ModuleType:
    """`_cuda` as setup.py would build it, except that its kernels run on the CPU."""
    # PyTorch ships pybind11's headers; as system headers, so that their warnings stay theirs.
    headers = [Path(torch.__file__).parent / "include", Path(sysconfig.get_path("include"))]
    system = [flag for path in headers for flag in ("-isystem", str(path))]
    sources = [*KERNELS, ROOT / "csrc" / "cuda_bindings.cpp"]
    objects = compile_all(folder, sources, ["-O2", *system])
    target = link(objects, folder / "_cuda.so", ["-shared"])
    spec = importlib.util.spec_from_file_location("_cuda", target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
