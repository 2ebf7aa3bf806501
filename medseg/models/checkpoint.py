"""Reading weight files of any origin into plain dicts of tensors, without running what is in them.

A .pth file is a pickle, and a pickle may name any function to be called. Here PyTorch's restricted
reader does the work, and each class it does not know is read as an inert record: the settings and
logs that training programs store beside the weights do no harm and need no package of theirs.
"""

import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg.errors import UserError

TORCH = (".pth", ".pt", ".ckpt")
KERAS = (".h5", ".hdf5")
_SUFFIXES = (".safetensors", *TORCH, *KERAS)
_PICKLES = 5  # a file older than PyTorch 1.6 is this many pickles in a row, then numbers
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")


class _Record:
    """What stands for an object of a class that is not PyTorch's own; it keeps its state."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_state(path: Path, unsafe: bool = False) -> dict[str, Tensor]:
    """The state dict that a file holds, alone, under "state_dict" or "model", or in a model.

    Args:
        path: .safetensors, .pth, .pt, .ckpt, or .h5 as Keras writes it.
        unsafe: take the weights out of a whole pickled model too.

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds a whole model and
            ``unsafe`` was not given.
    """
    if not path.is_file():
        raise UserError(f"weights {path}: there is no such file")
    if path.suffix not in _SUFFIXES:
        names = f"{', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}"
        raise UserError(f"weights {path}: the name must end in {names}, got {path.suffix!r}")
    try:
        return _unwrap(_read(path), path, unsafe)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"weights {path}: reading it needs a package ({error})") from error
    except Exception as error:  # a damaged file can raise nearly anything
        told = str(error).rpartition("WeightsUnpickler error:")[2].strip()
        reason = told.split("\n")[0][:120] or type(error).__name__
        raise UserError(f"weights {path}: the file is damaged or hostile ({reason})") from error


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix in KERAS:
        from .keras import read_h5

        return read_h5(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        records: list[Any] = [(_Record, name) for name in _foreign_names(path)]
    with torch.serialization.safe_globals(records):
        return torch.load(path, map_location="cpu", weights_only=True)


def _foreign_names(path: Path) -> set[str]:
    """Names in a file that PyTorch's restricted reader refuses; the file is listed, not run."""
    if zipfile.is_zipfile(path):
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    names = set()
    with path.open("rb") as file:
        for _ in range(_PICKLES):
            found = [str(arg) for op, arg, _ in pickletools.genops(file) if op.name == "GLOBAL"]
            names |= {re.sub("^__builtin__ ", "builtins ", n).replace(" ", ".") for n in found}
    return names


def _unwrap(found: Any, path: Path, unsafe: bool) -> dict[str, Tensor]:
    """The state dict in what a file held, without the prefixes that wrappers add."""
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), (dict, _Record)):
            found = found[key]
    if isinstance(found, _Record):
        if not unsafe:
            raise UserError(
                f"weights {path}: holds a whole pickled model, which can carry code that harms "
                "this machine when it is read: save a plain state_dict(), or, if you trust who "
                "made the file, pass unsafe=True (--unsafe true)"
            )
        found = dict(_entries(found, ""))
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())
    ):
        raise UserError(f"weights {path}: holds no state dict of tensors")
    return _without_wrappers(found)


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPERS * 2:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def _entries(module: _Record, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """What state_dict() of the module that a record stands for would have returned."""
    state = module.state if isinstance(module.state, dict) else {}
    hidden = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, value in (state.get(kind) or {}).items():
            if isinstance(value, Tensor) and name not in hidden:
                yield prefix + name, value.detach()
    for name, child in (state.get("_modules") or {}).items():
        if isinstance(child, _Record):
            yield from _entries(child, f"{prefix}{name}.")
