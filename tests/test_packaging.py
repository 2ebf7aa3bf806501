"""What setup.py installs, and what it says where it cannot compile."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", reason="setuptools runs setup.py; pip install setuptools")

ROOT = Path(__file__).resolve().parents[1]
NEVER = ("torchvision", "timm", "albumentations", "opencv-python-headless", "opencv-contrib-python")


@pytest.fixture(scope="module")
def setup():
    """What setup.py defines, its call of setuptools.setup kept under "given"."""
    import setuptools

    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **words: given.update(words))
        return runpy.run_path(str(ROOT / "setup.py"), run_name="setup") | {"given": given}


@pytest.fixture
def project():
    return pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]


def python(*words, cwd, **environment):
    """A fresh interpreter with nothing but itself on PATH, so that no compiler is found."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MEDSEG", "CUDA", "CXX"))}
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=300,
        env=kept | {"PATH": str(Path(sys.executable).parent)} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def copy(tmp_path):
    """The tree as a checkout has it, with a module of an earlier build in kernels/."""
    for name in ("kernels", "medseg", "csrc"):
        ignored = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "kernels" / "_cpu.cpython-311-x86_64-linux-gnu.so").write_text("stale")
    return tmp_path


def test_every_package_is_installed_and_none_beside_medseg(setup):
    packages = setup["given"]["packages"]
    folders = [f.parent for top in ("medseg", "kernels") for f in (ROOT / top).rglob("__init__.py")]
    names = {".".join(f.relative_to(ROOT).parts) for f in folders}
    names = {re.sub(r"^(medseg\.)?kernels", "medseg.kernels", name) for name in names}
    assert sorted(packages) == sorted(names)
    assert setup["given"]["package_dir"] == {"medseg.kernels": "kernels"}


def test_link_to_the_kernels_is_relative():
    assert os.readlink(ROOT / "medseg" / "kernels") == os.path.join("..", "kernels")


def test_no_requirement_brings_another_torch_or_opencv(project):
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    for name in (re.split(r"[^\w.-]", entry)[0] for entries in lists for entry in entries):
        assert name.lower() not in NEVER


def test_without_a_compiler_the_build_succeeds_and_says_why(copy):
    python("setup.py", "-q", "build_ext", "--inplace", cwd=copy)
    notes = json.loads((copy / "kernels" / "_build.json").read_text())
    assert notes["_cpu"].startswith("no C++ compiler was found")
    assert notes["_cuda"].startswith("nvcc was not found")
    assert not list((copy / "kernels").glob("*.so")), "a stale module stayed"
    code = (
        "import torch; from medseg.kernels import backend_report, eca_attention as f;"
        "print(backend_report('cpu')['eca']['cpu']); print(f(torch.ones(1, 3, 2, 2),"
        "torch.zeros(3)).sum().item())"
    )
    said, total = python("-c", code, cwd=copy).splitlines()
    assert said == f"_cpu was not built: {notes['_cpu']}"
    assert float(total) == 6


def test_a_wheel_starts_from_an_empty_folder(copy):
    for name in ("medseg/removed.py", "medseg/kernels/_cpu.cpython-311-x86_64-linux-gnu.so"):
        (copy / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / "lib" / name).write_text("of an earlier build")
    python("setup.py", "-q", "build", "--build-lib", "lib", cwd=copy)
    built = {str(f.relative_to(copy / "lib")) for f in (copy / "lib").rglob("*") if f.is_file()}
    assert {f for f in built if f.endswith((".so", "removed.py"))} == set()
    assert "medseg/kernels/_build.json" in built
    assert {Path(f).parts[0] for f in built} == {"medseg"}
    for folder in ("medseg", "kernels"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".j2", ".css", ".js") and "__pycache__" not in file.parts:
                name = "/".join(file.relative_to(ROOT).parts)
                assert re.sub(r"^(medseg/)?kernels", "medseg/kernels", name) in built
    stale = copy / "kernels" / "_cpu.cpython-311-x86_64-linux-gnu.so"
    assert stale.exists(), "building a wheel took the checkout's module away"


def test_source_archive_has_what_a_build_reads(copy):
    python("setup.py", "-q", "sdist", "--formats=gztar", cwd=copy)
    (archive,) = (copy / "dist").iterdir()
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for pattern in ("csrc/**/*", "kernels/**/*.py", "setup.py", "LICENSE"):
        for file in copy.glob(pattern):
            assert str(file.relative_to(copy)) in names
    assert not [n for n in names if n.endswith(".so") or n.startswith("medseg/kernels")]


@pytest.mark.parametrize("name", ["CPU", "CUDA"])
def test_a_module_can_be_left_out(copy, name):
    python("setup.py", "-q", "build_ext", "--inplace", cwd=copy, **{f"MEDSEG_BUILD_{name}": "0"})
    notes = json.loads((copy / "kernels" / "_build.json").read_text())
    assert notes[f"_{name.lower()}"] == f"MEDSEG_BUILD_{name}=0 skipped it"


def test_a_build_remembers_what_it_was_made_of(setup, monkeypatch, tmp_path):
    from setuptools import Distribution

    def compile_nothing(self, name, target):
        if name == "_cuda":
            raise setup["BuildError"]("nvcc was not found")

    monkeypatch.setattr(setup["BuildKernels"], "_compile", compile_nothing)
    build = setup["BuildKernels"](Distribution({"ext_modules": setup["given"]["ext_modules"]}))
    build.build_lib, build.build_temp = str(tmp_path / "lib"), str(tmp_path / "objects")
    build.ensure_finalized()
    build.run()
    notes = json.loads((tmp_path / "lib" / "medseg" / "kernels" / "_build.json").read_text())
    made_of = {"_cpu": setup["FINGERPRINT"]("_cpu")}
    assert made_of["_cpu"] is not None
    assert notes == {"_cpu": None, "_cuda": "nvcc was not found", "sources": made_of}


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("FAILED: a.o\nc++ -Werror -c a.cpp\na.cpp:3:1: error: no type\nb: error: x", "a.cpp:3:1:"),
        ("a.cpp:1:10: fatal error: Python.h: No such file\ncompilation terminated.", "a.cpp:1:10:"),
        ("a.cu(12): error: identifier x is undefined\n1 error detected", "a.cu(12): error"),
        ("/usr/bin/ld: cannot find -lgomp\ncollect2: error: ld returned 1", "/usr/bin/ld: cannot"),
        ("/usr/bin/python: No module named ninja", "/usr/bin/python: No module named ninja"),
        ("killed\nninja: build stopped: subcommand failed.", "ninja: build stopped"),
        ("", "it printed nothing"),
    ],
)
def test_the_first_error_becomes_the_reason(setup, output, reason):
    assert setup["first_error"](output).startswith(reason)


def test_each_cpu_source_is_compiled_once_per_instruction_set(setup, monkeypatch, tmp_path):
    monkeypatch.setitem(setup["cpu_ninja"].__globals__, "compiler", lambda: "c++")
    monkeypatch.setitem(setup["cpu_ninja"].__globals__, "binding_flags", lambda: "-Ipybind")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    text = setup["cpu_ninja"](tmp_path, tmp_path / "_cpu.so")
    for source in (ROOT / "csrc" / "cpu").glob("*.cpp"):
        for isa in ("baseline", "avx2", "avx512"):
            assert f"{source.stem}.{isa}.o: compile" in text
    assert "-march=native" not in text and "-ffast-math" not in text
    assert text.count("-fno-exceptions") == 1
    stems = {p.stem for p in (ROOT / "csrc").glob("*/*.c*")}
    assert stems.issuperset((*setup["LEAN"], *setup["SLOWEST"]))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "avx" not in setup["cpu_ninja"](tmp_path, tmp_path / "_cpu.so")
