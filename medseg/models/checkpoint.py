"""Reading weight files of any origin into plain dicts of tensors, without running what is in them.

A .pth file is a pickle, and a pickle may name any function to be called. Here PyTorch's restricted
reader does the work, and each class it does not know is read as an inert record: the settings and
logs that training programs store beside the weights do no harm and need no package of theirs.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg.errors import UserError

from .names import shown, told
from .pickles import Unfit, check_size, foreign_names

TORCH = (".pth", ".pt", ".ckpt")
KERAS = (".h5", ".hdf5")
_SUFFIXES = (".safetensors", *TORCH, *KERAS)
_HOLDERS = ("state_dict", "model_state_dict", "model")  # keys that training programs store it under
_NESTED = 4  # of them in each other
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")
_MODULES = 1 << 14  # in a whole pickled model; one that stands in two places counts twice
_NUMBERS = {
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
}
_OLD_MODULE = "Only persistent_load of storage is allowed"  # what PyTorch says to one


class _Record:
    """What stands for an object of a class that is not PyTorch's own; it keeps its state."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_state(path: Path, unsafe: bool = False) -> dict[str, Tensor]:
    """The state dict that a file holds: alone, under "state_dict" or another such key, in a model.

    Args:
        path: .safetensors, .pth, .pt, .ckpt, or .h5 as Keras writes it, in any case.
        unsafe: take the weights out of a whole pickled model too.

    Raises:
        UserError: the file is missing, damaged, of another kind, holds what is no plain tensor of
            real numbers, or a whole model and ``unsafe`` was not given.
    """
    if not path.is_file():
        raise UserError(f"weights {path}: there is no such file")
    if path.suffix.lower() not in _SUFFIXES:
        names = f"{', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}"
        raise UserError(f"weights {path}: the name must end in {names}, got {path.suffix!r}")
    try:
        return _unwrap(_read(path), path, unsafe)
    except UserError:
        raise
    except Unfit as error:
        raise UserError(f"weights {path}: {error}") from error
    except ImportError as error:
        raise UserError(f"weights {path}: reading it needs a package ({told(error)})") from error
    except Exception as error:  # a damaged file can raise nearly anything
        raise UserError(f"weights {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    words = told(error)
    if words.startswith(_OLD_MODULE):
        return (
            "holds a whole model as PyTorch before 1.6 pickled it, which is not read: load it "
            "where its classes are and save its state_dict()"
        )
    return f"the file is damaged or hostile ({words})"


def _read(path: Path) -> Any:
    if path.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix.lower() in KERAS:
        from .keras import read_h5

        return read_h5(path)
    check_size(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        records: list[Any] = [(_Record, name) for name in foreign_names(path)]
    with torch.serialization.safe_globals(records):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrap(found: Any, path: Path, unsafe: bool) -> dict[str, Tensor]:
    """The state dict in what a file held, without the prefixes that wrappers add."""
    for _ in range(_NESTED):
        inner = [found.get(key) for key in _HOLDERS] if isinstance(found, dict) else []
        found = next((held for held in inner if isinstance(held, (dict, _Record))), found)
    if isinstance(found, _Record):
        if not unsafe:
            raise UserError(
                f"weights {path}: holds a whole pickled model, which can carry code, though "
                "none is run here: save a plain state_dict(), or, if you trust who made the file, "
                "pass unsafe=True (--unsafe true) to take the weights alone"
            )
        found = _entries(found, path)
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())
    ):
        raise UserError(f"weights {path}: holds no state dict of tensors")
    for key, value in found.items():
        fault = _fault(value)
        if fault:
            raise UserError(f"weights {path}: {shown(key)} {fault}")
    return _without_wrappers(found)


def _fault(value: Tensor) -> str:
    """Why a tensor can be no weight, or nothing; some kinds have not even a shape to ask for."""
    dense = type(value) in (Tensor, torch.nn.Parameter) and not value.is_nested
    if not dense or value.layout is not torch.strided or value.is_quantized:
        return "is no plain tensor of numbers"
    if value.device.type != "cpu":
        return f"is on the device {value.device.type}, without numbers; save it from a CPU"
    if value.dtype not in _NUMBERS:
        return f"is {value.dtype}; save it as real numbers of 8 bits or more, such as float32"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "is said to be larger than what the file holds; save its contiguous() copy"
    return ""


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPERS * 2:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def _entries(module: _Record, path: Path) -> dict[str, Tensor]:
    """What state_dict() of the module that a record stands for would have returned."""
    found: dict[str, Tensor] = {}
    for count, (prefix, state) in enumerate(_modules(module, "")):
        if count == _MODULES:
            raise UserError(
                f"weights {path}: holds a model of more than {_MODULES} modules; save its "
                "state_dict()"
            )
        hidden = state.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers"):
            for name, value in (state.get(kind) or {}).items():
                if isinstance(value, Tensor) and name not in hidden:
                    found[f"{prefix}{name}"] = value
    return found


def _modules(module: _Record, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A module and all below it, by the beginning of their entries' names."""
    state = module.state if isinstance(module.state, dict) else {}
    yield prefix, state
    for name, child in (state.get("_modules") or {}).items():
        if isinstance(child, _Record):
            yield from _modules(child, f"{prefix}{name}.")
