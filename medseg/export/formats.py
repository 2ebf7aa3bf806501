"""The kinds of files: how each is written, and how it is read and run again."""

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError

Facts = Mapping[str, Any]
Run = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> logits (N, K, H, W)

FACTS = "medseg.json"  # in a torch.export file
INPUT, OUTPUT = "image", "logits"
_AXES = ("batch", "height", "width")


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Args:
        suffix: of its name.
        check: raises what is missing here to write it.
        write: writes a captured network and what is to be known of it.
        read: opens such a file on a device, to be run.
        about: what it is, in a few words.
    """

    suffix: str
    check: Callable[[], None]
    write: Callable[[torch.export.ExportedProgram, Path, Facts], None]
    read: Callable[[Path, torch.device], Run]
    about: str


def as_text(facts: Facts) -> dict[str, str]:
    """The facts as strings: text as it is, anything else as JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}


def _check_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx: needs {', '.join(missing)}: pip install 'medseg[export]', or take "
            "--format torch."
        )


def _write_onnx(program: torch.export.ExportedProgram, path: Path, facts: Facts) -> None:
    with _quiet():
        made = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
        )
    assert made is not None
    graph = made.model.graph
    for value in (graph.inputs[0], graph.outputs[0]):
        shape = value.shape
        assert shape is not None
        for axis, name in zip((0, 2, 3), _AXES, strict=True):
            shape[axis] = name  # pyright: ignore[reportArgumentType]
    made.model.metadata_props.update(as_text(facts))
    made.save(path)


def _read_onnx(path: Path, device: torch.device) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    return lambda image: torch.from_numpy(session.run([OUTPUT], {INPUT: image.numpy()})[0])


def _check_torch() -> None:
    """PyTorch alone writes it."""


def _write_torch(program: torch.export.ExportedProgram, path: Path, facts: Facts) -> None:
    with _quiet():
        extra = {FACTS: json.dumps(dict(facts), ensure_ascii=False)}
        packed = io.BytesIO()  # PyTorch's own writer ends the process where the disk is full
        torch.export.save(program, packed, extra_files=extra)
    path.write_bytes(packed.getbuffer())


def _read_torch(path: Path, device: torch.device) -> Run:
    with _quiet():
        return torch.export.load(path).module()


def _check_aoti() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(
            "--format aoti: needs a C++ compiler, and none is here: apt-get install -y g++, or "
            "take --format onnx or torch."
        ) from None


def _write_aoti(program: torch.export.ExportedProgram, path: Path, facts: Facts) -> None:
    from torch._inductor.exc import CppCompileError, InductorError
    from torch.fx.experimental import _config

    known = {"aot_inductor.metadata": as_text(facts)}
    oblivious = _config.patch(backed_size_oblivious=True)  # pyright: ignore
    try:
        with _quiet(), torch.no_grad(), oblivious:
            torch._inductor.aoti_compile_and_package(
                program, package_path=os.fspath(path), inductor_configs=known
            )
    except (CppCompileError, InductorError) as error:
        cause = getattr(error, "inner_exception", error)
        if not isinstance(cause, CppCompileError):
            raise
        said = (line.strip() for line in cause.output.splitlines())
        first = next(filter(None, said), type(cause).__name__).rstrip(".")
        raise UserError(
            f"--format aoti: the C++ compiler failed ({first}): mend it (medseg doctor names it), "
            "or take --format onnx or torch.",
            code=3,
        ) from error


def _read_aoti(path: Path, device: torch.device) -> Run:
    return torch._inductor.aoti_load_package(os.fspath(path))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what exporters tell of their own insides off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(nowhere):
                yield
    finally:
        logging.disable(before)


FORMATS = {
    "onnx": Format(".onnx", _check_onnx, _write_onnx, _read_onnx, "ONNX"),
    "torch": Format(".pt2", _check_torch, _write_torch, _read_torch, "torch.export"),
    "aoti": Format(".aoti.pt2", _check_aoti, _write_aoti, _read_aoti, "AOTInductor"),
}
