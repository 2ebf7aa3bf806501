"""Loading weights from files: all of them or none."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg.errors import UserError

from .network import Network

_NAMED = 4  # keys that an error names before it counts the rest


def load_weights(model: Network, path: str | Path) -> None:
    """Loads a file into a network; changes nothing unless every entry fits.

    Args:
        model: made by ``create_model``.
        path: .safetensors; or .pth or .pt with a state dict, alone or under "state_dict" or
            "model". Code in a file is refused, never run.

    Raises:
        UserError: the file is missing, damaged, or of another network or number of classes.
    """
    path = Path(path)
    state = model.translate(_unwrap(_read(path), path))
    _check_options(model, state, path)
    _check_entries(model.state_dict(), state, path)
    model.load_state_dict(state)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"weights {path}: there is no such file")
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(
            f"weights {path}: the name must end in .safetensors, .pth or .pt, got {path.suffix!r}"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise UserError(f"weights {path}: reading it needs safetensors ({error})") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"weights {path}: holds more than tensors, or is damaged; save a plain state_dict()"
        ) from error
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
        raise UserError(f"weights {path}: the file is damaged ({reason})") from error


def _unwrap(found: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file held, without the prefix of a data-parallel wrapper."""
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())
    ):
        raise UserError(f"weights {path}: holds no state dict of tensors")
    if all(key.startswith("module.") for key in found):
        found = {key.removeprefix("module."): value for key, value in found.items()}
    return dict(found)


def _check_options(model: Network, state: dict[str, Tensor], path: Path) -> None:
    file, own = model.made_with(state), model.made_with(model.state_dict())
    other = {key: value for key, value in file.items() if own.get(key) != value}
    if other:
        have = ", ".join(f"{key}={value}" for key, value in other.items())
        want = ", ".join(f"{key}={own.get(key)}" for key in other)
        raise UserError(f"weights {path}: was made with {have}, the model with {want}")


def _check_entries(own: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> None:
    missing = [key for key in own if key not in state]
    unknown = sorted(key for key in state if key not in own)
    if len(missing) == len(own):
        raise UserError(
            f"weights {path}: is of another network, it shares no entry with the model "
            f"(it has {_some(unknown)})"
        )
    if missing or unknown:
        parts = [f"lacks {_some(missing)}"] if missing else []
        parts += [f"has {_some(unknown)}, which the model does not"] if unknown else []
        raise UserError(f"weights {path}: {' and '.join(parts)}")
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise UserError(
                f"weights {path}: {key} is {tuple(value.shape)}, "
                f"the model wants {tuple(own[key].shape)}"
            )
        if value.is_floating_point() != own[key].is_floating_point():
            raise UserError(f"weights {path}: {key} is {value.dtype}, the model's {own[key].dtype}")


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:_NAMED])
    return shown if len(keys) <= _NAMED else f"{shown} and {len(keys) - _NAMED} more"
