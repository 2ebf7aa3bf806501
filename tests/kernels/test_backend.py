"""Choosing a backend: the three ways, their order, and one sentence for why not."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medseg.kernels import (
    _backend,
    _sources,
    backend_report,
    eca_attention,
    triplet_attention,
    use_backend,
)

X, TAPS = torch.ones(1, 2, 3, 4), torch.ones(3)


def used(call):
    """Whether the fused operator ran."""
    with torch.profiler.profile() as profile:
        call()
    return any(e.key.startswith("medseg::") for e in profile.key_averages())


@pytest.mark.usefixtures("needs_cpu")
def test_automatic_choice_is_the_compiled_kernel():
    assert used(lambda: eca_attention(X, TAPS))


@pytest.mark.usefixtures("needs_cpu")
def test_argument_beats_block_beats_default():
    with use_backend("reference"):
        assert not used(lambda: eca_attention(X, TAPS))
        assert used(lambda: eca_attention(X, TAPS, backend="cpu"))
        with use_backend("auto"):
            assert used(lambda: eca_attention(X, TAPS))
        assert not used(lambda: eca_attention(X, TAPS))
    assert used(lambda: eca_attention(X, TAPS))


def run(code, **environment):
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    return done.stdout.strip() or done.stderr


def test_environment_is_the_default():
    code = (
        "import torch; from medseg.kernels import _backend\n"
        "print(_backend.choose('eca', torch.ones(1, 1, 1, 1), None))"
    )
    assert run(code, MEDSEG_BACKEND="reference") == "reference"
    assert "backend must be one of" in run(code, MEDSEG_BACKEND="fast")


def test_unknown_backend_names_the_known():
    with pytest.raises(ValueError, match="backend must be one of cpu, cuda, triton, reference"):
        eca_attention(X, TAPS, backend="gpu")
    with pytest.raises(ValueError, match="got 'gpu'"), use_backend("gpu"):
        pass


@pytest.mark.parametrize("backend", ("cuda", "triton"))
def test_a_named_backend_runs_or_says_why(backend, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = _backend.why_not(backend, "eca", "cpu")
    assert reason is not None and reason.startswith(f"{backend} needs a CUDA tensor")
    for call in (eca_attention, triplet_attention):
        op = call.__name__.removesuffix("_attention")
        with pytest.raises(RuntimeError, match=f"backend '{backend}' cannot run {op}: {backend}"):
            _backend._resolve.__wrapped__(op, backend, "cpu", torch.float32)


def test_float64_off_the_cpu_goes_through_the_reference():
    reason = _backend.why_not("triton", "eca", "cuda", torch.float64)
    assert reason == "triton computes in float32, so float64 goes through the reference"


def test_report_says_the_same_sentences():
    report = backend_report("cpu")
    folder = Path(_backend.__file__).parent
    assert set(report) == {path.parent.name for path in folder.glob("*/op.py")}
    for op, backends in report.items():
        assert list(backends) == list(_backend.BACKENDS)
        assert backends["reference"] is None
        assert backends["cuda"] == _backend.why_not("cuda", op, "cpu")


def test_a_module_that_was_not_built_quotes_the_build(monkeypatch, tmp_path):
    note = "no C++ compiler was found; install one"
    (tmp_path / "_build.json").write_text(json.dumps({"_cpu": note}))
    monkeypatch.setattr(_backend, "__file__", str(tmp_path / "_backend.py"))

    def missing(name, package=None):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    _backend.compiled.cache_clear()
    try:
        assert _backend.compiled("_cpu") == (None, f"_cpu was not built: {note}")
    finally:
        monkeypatch.undo()
        _backend.compiled.cache_clear()


def test_a_module_that_does_not_load_is_reported(monkeypatch):
    def broken(name, package=None):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    _backend.compiled.cache_clear()
    try:
        assert "_cpu is built but does not load: libgomp.so.1" in str(_backend.compiled("_cpu")[1])
    finally:
        monkeypatch.undo()
        _backend.compiled.cache_clear()


@pytest.mark.parametrize(("now", "stale"), [("then", False), ("now", True), (None, False)])
def test_a_module_older_than_its_sources_is_not_used(monkeypatch, tmp_path, now, stale):
    (tmp_path / "_build.json").write_text(json.dumps({"_cpu": None, "sources": {"_cpu": "then"}}))
    monkeypatch.setattr(_backend, "__file__", str(tmp_path / "_backend.py"))
    monkeypatch.setattr(_backend, "fingerprint", lambda name: now)
    monkeypatch.setattr(importlib, "import_module", lambda name, package=None: sys)
    said = "_cpu is older than its sources in csrc/; pip install -e . builds it anew"
    assert _backend.compiled.__wrapped__("_cpu") == ((None, said) if stale else (sys, None))


def test_fingerprint_of_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(_sources, "__file__", str(tmp_path / "kernels" / "_sources.py"))
    assert _sources.fingerprint("_cpu") is None
    names = ("cpu_bindings.cpp", "cuda_bindings.cpp", "pages.h", "cpu/eca.cpp", "cuda/eca.cu")
    for name in names:
        (tmp_path / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "csrc" / name).write_text("int one;")

    def both():
        return _sources.fingerprint("_cpu"), _sources.fingerprint("_cuda")

    changes = {}
    for name in (*names, "cpu/.eca.cpp.swp"):
        before = both()
        (tmp_path / "csrc" / name).write_text("int two;")
        changes[name] = [a != b for a, b in zip(before, both(), strict=True)]
    assert changes == {
        "cpu_bindings.cpp": [True, False],
        "cuda_bindings.cpp": [False, True],
        "pages.h": [True, True],
        "cpu/eca.cpp": [True, False],
        "cuda/eca.cu": [False, True],
        "cpu/.eca.cpp.swp": [False, False],
    }


@pytest.mark.parametrize("first", ("kernels", "medseg.kernels"))
def test_the_folder_imported_by_its_short_name_is_the_same_package(first):
    second = "medseg.kernels" if first == "kernels" else "kernels"
    code = (
        f"from {first} import eca_attention as a; from {second} import eca_attention as b\n"
        "from kernels.eca.op import eca_attention as c; print(a is b is c)"
    )
    assert run(code) == "True"
