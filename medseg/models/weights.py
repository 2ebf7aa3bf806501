"""Loading weights from files: all of them or none."""

from pathlib import Path

import torch
from torch import Tensor

from medseg.errors import UserError

from .checkpoint import read_state
from .network import Network

_NAMED = 4  # keys that an error names before it counts the rest


def load_weights(
    model: Network, path: str | Path, *, unsafe: bool = False, reset_head: bool = False
) -> list[str]:
    """Loads a file into a network; changes nothing unless every entry fits.

    Args:
        model: made by ``create_model``.
        path: .safetensors; .pth, .pt or .ckpt with a state dict, alone or under "state_dict" or
            "model"; or .h5 as Keras writes it. Names of the original authors are translated.
        unsafe: also read a file that holds a whole pickled model. Such a file can carry code; none
            is run here, but give only files whose maker you trust.
        reset_head: where the file is of another number of classes, load all but the entries whose
            size depends on it, and leave those as they are.

    Returns:
        The entries that were left as they are: none, or with ``reset_head`` those of the head.

    Raises:
        UserError: the file is missing, damaged, holds code, or is of another network or number
            of classes; the message says which.
    """
    path, own = Path(path), model.state_dict()
    state = model.translate(read_state(path, unsafe))
    head = _head(model, state) if reset_head else []
    _check_options(model, state, path, reset_head)
    state = {key: own[key] if key in head else value for key, value in state.items()}
    for key in own:  # counters, which files of old PyTorch and of Keras do not have
        if key.endswith(".num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(own[key]))
    _check_entries(own, state, path)
    model.load_state_dict(state)
    return head


def _head(model: Network, state: dict[str, Tensor]) -> list[str]:
    """Entries whose shapes differ from the model's by the ratio of the numbers of classes."""
    own, found = model.state_dict(), model.made_with(state)
    theirs = found.get("classes", model.classes)
    return [
        key
        for key, mine in own.items()
        if key in state
        and state[key].shape != mine.shape
        and state[key].dim() == mine.dim()
        and all(
            a == b or a * model.classes == b * theirs
            for a, b in zip(state[key].shape, mine.shape, strict=True)
        )
    ]


def _check_options(model: Network, state: dict[str, Tensor], path: Path, reset_head: bool) -> None:
    file, own = model.made_with(state), model.made_with(model.state_dict())
    other = {key: value for key, value in file.items() if own.get(key) != value}
    if not other or (reset_head and list(other) == ["classes"]):
        return
    have = ", ".join(f"{key}={value}" for key, value in other.items())
    want = ", ".join(f"{key}={own.get(key)}" for key in other)
    only = list(other) == ["classes"]
    offer = "; reset_head=True (--reset_head true) loads all but the head" if only else ""
    raise UserError(f"weights {path}: was made with {have}, the model with {want}{offer}")


def _check_entries(own: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> None:
    missing = [key for key in own if key not in state]
    unknown = sorted(key for key in state if key not in own)
    counters = sum(key.endswith(".num_batches_tracked") for key in own)
    if len(missing) == len(own) - counters:
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
        if value.is_floating_point() != own[key].is_floating_point() or value.is_complex():
            raise UserError(f"weights {path}: {key} is {value.dtype}, the model's {own[key].dtype}")
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise UserError(f"weights {path}: {key} is no plain tensor of numbers")


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:_NAMED])
    return shown if len(keys) <= _NAMED else f"{shown} and {len(keys) - _NAMED} more"
