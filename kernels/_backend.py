"""Which backend runs an op, and why not the others; one sentence for error, skip and report."""

import contextlib
import functools
import importlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ._sources import fingerprint

BACKENDS = ("cpu", "cuda", "triton", "reference")
LAUNCHERS = {"cpu": "native", "cuda": "cuda", "triton": "kernel"}  # module in an op's folder

# Automatic order per op and device type, fastest first; the rows of bench/results earned it, and
# where no GPU has been measured yet Triton leads, as the backend whose numbers are proved widest.
ORDER = {
    "eca": {"cpu": ("cpu",), "cuda": ("triton", "cuda")},
    "triplet": {"cpu": ("cpu",), "cuda": ("triton", "cuda")},
    "mde": {"cpu": ("cpu",), "cuda": ("triton", "cuda")},
    "split": {"cpu": ("cpu",), "cuda": ("triton", "cuda")},
    "gate": {"cpu": ("cpu",), "cuda": ("triton", "cuda")},
    "position": {"cpu": ("cpu",), "cuda": ("cuda", "triton")},
}

# Ops whose fast path is PyTorch's own: it answers to every backend of the tensor's device, compiled
# or not. A network may so name one backend for all its ops.
THROUGH_PYTORCH = ("position",)

# Process-wide and plain, so that torch.compile can read and guard it.
_forced: str | None = os.environ.get("MEDSEG_BACKEND") or None


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Makes every op inside the block use backend ``name``; ``None`` or "auto" chooses per op.

    An op's own ``backend=`` argument still wins; ``MEDSEG_BACKEND`` is the default outside any
    block. The setting belongs to the process, not to the thread.

    Raises:
        ValueError: ``name`` is no backend.
    """
    global _forced
    _known(name)
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def wanted_backend() -> str | None:
    """What `use_backend` or MEDSEG_BACKEND asks for; None and "auto" leave the choice."""
    return _forced


def choose(op: str, x: Tensor, backend: str | None, limit: str | None = None) -> str:
    """The backend that will run ``op`` on ``x``; a named one that cannot raises RuntimeError.

    ``limit``: why no backend but the reference can take these arguments, in one sentence.
    """
    return _choose(op, backend or _forced, x.device.type, x.dtype, limit)


def _known(name: str | None) -> None:
    if name not in (None, "auto", *BACKENDS):
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)} or auto, got {name!r}")


def _choose(op: str, wanted: str | None, device: str, dtype: torch.dtype, limit: str | None) -> str:
    return _resolve(op, wanted, device, dtype, limit)


# What torch.compiler.assume_constant_result does, without its import of torch._dynamo (a second).
_choose._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@functools.cache
def _resolve(
    op: str, wanted: str | None, device: str, dtype: torch.dtype, limit: str | None = None
) -> str:
    _known(wanted)
    if wanted in (None, "auto"):
        for name in ORDER[op].get(device, ()):
            if limit is None and why_not(name, op, device, dtype) is None:
                return name
        return "reference"
    reason = why_not(wanted, op, device, dtype) or (limit if wanted != "reference" else None)
    if reason is not None:
        raise RuntimeError(f"backend {wanted!r} cannot run {op}: {reason}")
    return wanted


def why_not(
    backend: str, op: str, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> str | None:
    """Why ``backend`` cannot run ``op`` on such a tensor, in one sentence; None if it can."""
    if backend == "reference":
        return None
    if op in THROUGH_PYTORCH:
        here = "cpu" if backend == "cpu" else "cuda"
        named = {"cpu": "CPU", "cuda": "CUDA"}[here]
        return None if device == here else f"{backend} needs a {named} tensor, got {device}"
    if dtype is torch.float64 and backend != "cpu":
        return f"{backend} computes in float32, so float64 goes through the reference"
    return {"cpu": _why_not_cpu, "cuda": _why_not_cuda, "triton": _why_not_triton}[backend](device)


def backend_report(device: str | None = None) -> dict[str, dict[str, str | None]]:
    """For every op, each backend and why it cannot run here (None: it can).

    Args:
        device: "cpu" or "cuda"; None takes "cuda" where PyTorch finds a GPU, else "cpu".

    Returns:
        ``{"eca": {"cpu": None, "triton": "triton needs a CUDA tensor, got cpu", ...}, ...}``.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return {op: {name: why_not(name, op, device) for name in BACKENDS} for op in ORDER}


def _why_not_cpu(device: str) -> str | None:
    if device != "cpu":
        return f"cpu needs a CPU tensor, got {device}"
    return compiled("_cpu")[1]


def _why_not_cuda(device: str) -> str | None:
    if device != "cuda":
        return f"cuda needs a CUDA tensor, got {device}"
    if torch.version.hip:
        return "cuda needs an NVIDIA GPU, this PyTorch drives AMD ones"
    if not torch.cuda.is_available():
        return "cuda needs an NVIDIA GPU and its driver, PyTorch finds none"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"cuda needs compute capability 8.0, got {torch.cuda.get_device_capability()}"
    return compiled("_cuda")[1]


def _why_not_triton(device: str) -> str | None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device != "cuda" and not (interpreted and device == "cpu"):
        return f"triton needs a CUDA tensor (or TRITON_INTERPRET=1 and a CPU tensor), got {device}"
    return _triton_missing()


@functools.cache
def _triton_missing() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton is not installed ({error}); pip install 'triton>=3.5,<3.8'"
    return None


@functools.cache
def compiled(name: str) -> tuple[ModuleType | None, str | None]:
    """The compiled module ``_cpu`` or ``_cuda``, or None and the reason in one sentence."""
    try:
        module = importlib.import_module(f".{name}", __package__)
    except ModuleNotFoundError:
        return None, f"{name} was not built: {_build_note(name)}"
    except ImportError as error:
        return None, f"{name} is built but does not load: {error}"
    built_of = (_build_notes().get("sources") or {}).get(name)
    if built_of is not None and fingerprint(name) not in (None, built_of):  # half a ms, once
        return None, f"{name} is older than its sources in csrc/; pip install -e . builds it anew"
    return module, None


def _build_note(name: str) -> str:
    notes = _build_notes()
    if not notes:
        return "no build has run here; pip install -e . builds it"
    return notes.get(name) or "the build left no reason; pip install -v -e . shows its output"


def _build_notes() -> dict[str, Any]:
    """What setup.py wrote about the build; nothing where none has run."""
    try:
        notes = json.loads((Path(__file__).parent / "_build.json").read_text())
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


@functools.cache
def launchers(package: str | None, backend: str) -> ModuleType:
    """The launchers of ``backend`` in an op's package, imported at their first use."""
    return importlib.import_module(f"{package}.{LAUNCHERS[backend]}")


def native(name: str) -> ModuleType:
    """The compiled module; callers have asked `choose` first, so that it is there."""
    module, reason = compiled(name)
    if module is None:
        raise RuntimeError(reason)
    return module


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Sums and gates of half and float32 data are float32, of float64 data float64."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def has_open_sizes(x: Tensor) -> bool:
    """Whether a graph is being made of ``x`` for several of its sizes.

    Then nothing may be asked of the sizes or of strides, which follow from them: the graph would
    hold for the sizes of the same answer alone. What takes every size costs little more.

    Dynamo (`torch.compile`, `torch.export.export(strict=True)`) shows sizes as plain integers here
    and guards on them: a graph for free sizes needs non-strict capture, as `medseg export` does it.
    """
    return any(isinstance(side, torch.SymInt) for side in x.shape)


def same_side(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    """Whether two sides are equal; of open ones, whether they are for every size of the graph."""
    if isinstance(a, torch.SymInt) or isinstance(b, torch.SymInt):
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(a == b)
    return a == b


def is_channels_last(x: Tensor) -> bool:
    """Dense with the channels innermost; a tensor that is dense both ways counts as NCHW."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def like_input(x: Tensor, shape: Sequence[int | torch.SymInt] | None = None) -> Tensor:
    """An uninitialised output: ``x``'s layout if that is dense NCHW or NHWC, else contiguous.

    ``shape`` (N, C, H, W) where it is not that of ``x``.
    """
    plain = x.is_contiguous()
    last = not plain and is_channels_last(x)
    if shape is None and (last or plain):
        return torch.empty_like(x)
    if plain and shape is not None:
        return x.new_empty(shape)
    layout = torch.channels_last if last else torch.contiguous_format
    sizes = x.shape if shape is None else shape
    return torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=layout)


def like_layout(x: Tensor, grad: Tensor) -> Tensor:
    """``grad`` dense in the layout that ``like_input(x)`` has; a copy only where it is not."""
    if is_channels_last(x):
        return grad.contiguous(memory_format=torch.channels_last)
    return grad.contiguous()


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Switches autocast off on the device of ``x`` where it is on: inside, dtypes are as written.

    It stays on inside a CPU or CUDA kernel, and would turn matrix products to its half type. Left
    as it is under strict export, which loses such blocks (PyTorch 2.13).
    """
    kind = x.device.type
    strict = torch.compiler.is_exporting() and torch.compiler.is_dynamo_compiling()
    if strict or kind == "meta" or not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def apart(*tensors: Any) -> list[Any]:
    """Aliases, so that gradients asked of them end there where one tensor was made of another."""
    return [None if t is None else t.view_as(t) for t in tensors]


def watched_by_forward_ad() -> bool:
    """Whether a forward-mode level is open; fast ops carry no tangents, the reference does."""
    return torch.autograd.forward_ad._current_level >= 0
