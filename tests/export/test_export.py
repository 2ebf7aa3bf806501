"""`medseg export`: files that strangers can use, or a sentence and no file."""

import copy
import dataclasses
import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._inductor.exc import InductorError

from medseg.data.normalize import normalize
from medseg.export import formats, main
from medseg.export.verify import parse_sizes, sizes_of
from medseg.inference import Predictor

DOC = Path(__file__).resolve().parents[2] / "docs" / "export.md"


def blocks():
    """The Python of the page: with onnxruntime, with PyTorch."""
    return re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)


def python(code, folder):
    """Runs code in a fresh process that must not load medseg."""
    code = f"import sys\n{code}\nassert 'medseg' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """Where the page's files are."""
    return tmp_path_factory.mktemp("files")


def test_onnx_by_the_page(run, trained, folder):
    """Its first example, word for word, gives the mask that predict gives."""
    pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
    pytest.importorskip("onnxscript", reason="the extra [export] is not installed")
    assert not main(["--weights", str(run), "--out", str(folder / "cells.onnx")])
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.save(folder / "cell.npy", pixels)
    said = python(f"{blocks()[0]}\nassert 'torch' not in sys.modules", folder)
    assert said.count("of the image") == 3
    labels = Predictor(trained).labels(pixels)
    assert np.array_equal(np.load(folder / "mask.npy"), np.array(trained.values)[labels])


def test_torch_file_in_a_fresh_process(run, trained, folder, capsys):
    """The page's second example, and the numbers of an odd size."""
    out = folder / "cells.pt2"
    assert not main(["--weights", str(run), "--format", "torch", "--out", str(out), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["bytes"] == out.stat().st_size and len(document["checks"]) == 3
    image = torch.rand(2, 3, 45, 67)
    torch.save(image, folder / "image.pt")
    code = "image = torch.load('image.pt')\ntorch.save(network(image), 'logits.pt')"
    python(f"{blocks()[1]}\nassert labels.shape == (1, 201, 133)\n{code}\nprint(facts)", folder)
    with torch.inference_mode():
        wanted = trained.network(normalize(image, "imagenet"))
    assert float((torch.load(folder / "logits.pt") - wanted).abs().max()) <= 1e-4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs g++, which is not here")
def test_aoti_package_is_compiled_and_run(run, tmp_path, capsys):
    out = tmp_path / "cells.pt2"
    assert not main(["--weights", str(run), "--format", "aoti", "--out", str(out), "--json"])
    assert len(json.loads(capsys.readouterr().out)["checks"]) == 3
    known = torch._inductor.aoti_load_package(str(out)).get_metadata()
    assert json.loads(known["class_names"]) == ["background", "cytoplasm", "nucleus"]


def spoiled(program, path, facts):
    """Writes a graph whose last weights are a little other."""
    other = copy.deepcopy(program)
    with torch.no_grad():
        other.state_dict["network.head.bias"].add_(0.01)
    formats._write_torch(other, path, facts)


def cut(program, path, facts):
    """Writes half a file."""
    formats._write_torch(program, path, facts)
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("write", "words"), [(spoiled, "off the network"), (cut, "cannot be opened")]
)
def test_file_that_fails_is_not_kept(run, tmp_path, monkeypatch, capsys, write, words):
    kind = dataclasses.replace(formats.FORMATS["torch"], write=write)
    monkeypatch.setitem(formats.FORMATS, "torch", kind)
    out = tmp_path / "n.pt2"
    out.write_text("earlier")
    flags = ["--weights", str(run), "--format", "torch", "--out", str(out), "--overwrite"]
    assert main(flags) == 3
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["n.pt2"]
    assert out.read_text() == "earlier"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--weights: name a run"),
        (["--weights", "RUN", "--format", "onx"], "did you mean onnx?"),
        (["--weights", "RUN", "--format", "torch", "--out", "nowhere/n.pt2"], "no folder nowhere"),
        (["--weights", "RUN", "--format", "torch", "--out", "."], "is a folder"),
        (["--weights", "RUN", "--format", "torch", "--out", "n.onnx"], "must end in .pt2"),
        (["--weights", "RUN", "--format", "torch", "--out", "there.pt2"], "--overwrite"),
        (["--weights", "RUN", "--sizes", "12x"], "--sizes 12x: must be HEIGHTxWIDTH"),
        (["--weights", "RUN", "--sizes", "0x4"], "--sizes 0x4"),
        (["--weights", "RUN", "--device", "cuda"], "leave the flag out"),
        (["--weights", "RUN", "--format", "torch", "--device", "cuda:99"], "--device cuda:99"),
        (["--weights", "nothing"], "is not there"),
        (["--weights", "text.safetensors"], "is damaged"),
        (["RUN"], "--weights"),
    ],
)
def test_refusals(run, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    Path("there.pt2").write_text("earlier")
    Path("text.safetensors").write_text("no weights")
    assert main([str(run) if word == "RUN" else word for word in flags]) in (2, 3)
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.safetensors", "there.pt2"]


def test_missing_packages_are_named(run, monkeypatch, capsys):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert main(["--weights", str(run)]) == 2
    assert "needs onnxscript: pip install 'medseg[export]'" in capsys.readouterr().err


def test_missing_compiler_is_named(run, capsys):
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("no-such-compiler",)}):  # monkeypatch would leave it broken
        assert main(["--weights", str(run), "--format", "aoti"]) == 2
    assert "apt-get install -y g++" in capsys.readouterr().err


def test_full_disk_is_a_sentence(run, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    out = tmp_path / "n.pt2"
    assert main(["--weights", str(run), "--format", "torch", "--out", str(out)]) == 3
    assert "(No space left on device): make room there" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrapped", [False, True])
def test_failing_compiler_is_named(run, tmp_path, monkeypatch, capsys, wrapped):
    from torch._inductor import exc

    def fail(*_, **__):
        error = exc.CppCompileError(["g++", "-c", "x.cpp"], "\nfatal error: no cc1plus.\nmore")
        raise exc.InductorError(error, None) if wrapped else error

    kind = dataclasses.replace(formats.FORMATS["aoti"], check=lambda: None)
    monkeypatch.setitem(formats.FORMATS, "aoti", kind)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    out = tmp_path / "n.pt2"
    assert main(["--weights", str(run), "--format", "aoti", "--out", str(out)]) == 3
    said = capsys.readouterr().err
    assert "--format aoti: the C++ compiler failed (fatal error: no cc1plus): mend it" in said
    assert "Traceback" not in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "where", "error", "words"),
    [
        ("torch", "torch.export.save", RuntimeError("\n\n"), "(RuntimeError: RuntimeError)"),
        ("torch", "torch.export.save", MemoryError(), "needs more memory than this machine has"),
        ("onnx", "torch.onnx.export", ValueError("\x1b[96mno\x1b[0m op.\nmore"), "or: no op): try"),
        (
            "aoti",
            "torch._inductor.aoti_compile_and_package",
            ValueError("long" * 60),
            "longlong ...)",
        ),
        (
            "aoti",
            "torch._inductor.aoti_compile_and_package",
            InductorError(TypeError("no lowering"), None),
            "(InductorError: TypeError: no lowering): try another --format",
        ),
    ],
)
def test_failing_exporter_is_a_sentence(
    run, tmp_path, monkeypatch, capsys, kind, where, error, words
):
    def fail(*_, package_path=None, **__):
        if package_path is not None:
            Path(package_path).write_text("half")
        raise error

    made = dataclasses.replace(formats.FORMATS[kind], check=lambda: None)
    monkeypatch.setitem(formats.FORMATS, kind, made)
    monkeypatch.setattr(where, fail)
    suffix = ".onnx" if kind == "onnx" else ".pt2"
    out = tmp_path / f"n{suffix}"
    out.write_text("earlier")
    flags = ["--weights", str(run), "--format", kind, "--out", str(out), "--overwrite", "--json"]
    assert main(flags) == 3
    said = capsys.readouterr()
    assert f"error: --format {kind}: " in said.err and words in said.err
    assert "Traceback" not in said.err and not said.out
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_text() == "earlier"


def test_network_without_a_graph_is_a_sentence(run, tmp_path, monkeypatch, capsys):
    from torch._dynamo.exc import UserError, UserErrorType

    def fail(trained):
        raise UserError(UserErrorType.DYNAMIC_CONTROL_FLOW, "if")

    monkeypatch.setattr("medseg.export.run.capture", fail)
    out = tmp_path / "n.pt2"
    assert main(["--weights", str(run), "--format", "torch", "--out", str(out)]) == 3
    assert "--format torch: PyTorch's exporter failed (UserError: if" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", ["DefaultCPUAllocator: can't", "Failed to allocate memory for"])
def test_images_beyond_memory_name_their_flag(run, tmp_path, monkeypatch, capsys, words):
    def read(path, device):
        def fail(image):
            raise RuntimeError(words)

        return fail

    kind = dataclasses.replace(formats.FORMATS["torch"], read=read)
    monkeypatch.setitem(formats.FORMATS, "torch", kind)
    flags = ["--weights", str(run), "--format", "torch", "--out", str(tmp_path / "n.pt2")]
    assert main([*flags, "--sizes", "9x8"]) == 3
    assert "--sizes 9x8: the memory that this takes is more than" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_sizes(trained):
    assert parse_sizes(["3x70"]) == [(3, 70)]
    sizes = sizes_of(trained, [])
    assert len(sizes) == 3 and any(height % 2 and width % 2 for _, height, width in sizes)
