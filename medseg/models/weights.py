"""Loading weights from files: all of them or none."""

from pathlib import Path

import torch
from torch import Tensor

from medseg.errors import UserError

from .checkpoint import read_state
from .names import shown
from .network import Network

_COUNTER = ".num_batches_tracked"
_NAMED = 4  # keys that an error names before it counts the rest


def load_weights(
    model: Network, path: str | Path, *, unsafe: bool = False, reset_head: bool = False
) -> list[str]:
    """Loads a file into a network; changes nothing unless every entry fits.

    Args:
        model: made by ``create_model``.
        path: .safetensors; .pth, .pt or .ckpt with a state dict, alone or under "state_dict",
            "model_state_dict" or "model"; or .h5 as Keras writes it. Names of the original
            authors are translated.
        unsafe: also read a file that holds a whole pickled model. Such a file can carry code; none
            is run here, but give only files whose maker you trust.
        reset_head: where the file is of another number of classes, load all but the entries whose
            size depends on it; where it is of a backbone alone, all but what that lacks. The rest
            is left as it is.

    Returns:
        The entries that were left as they are: none, or with ``reset_head`` those of the head.

    Raises:
        UserError: the file is missing, damaged, holds code, or is of another network or number
            of classes; the message says which.
    """
    path, own = Path(path), model.state_dict()
    raw = read_state(path, unsafe)
    try:
        state = model.translate(raw)
    except UserError as error:
        raise UserError(f"weights {path}: {error}") from error
    _check_network(model, raw, state, path)
    _check_options(model, state, path, reset_head)
    anew = _anew(model, state) if reset_head else []
    state |= {key: own[key] for key in anew}
    for key in own:  # counters, which files of old PyTorch and of Keras do not have
        if key.endswith(_COUNTER):
            state.setdefault(key, torch.zeros_like(own[key]))
    _check_names(model, state, path)
    _check_values(own, state, path)
    model.load_state_dict(state)
    return anew


def _anew(model: Network, state: dict[str, Tensor]) -> list[str]:
    """Entries that ``reset_head`` leaves: the head's, or those that a file of a backbone lacks."""
    own = list(model.state_dict())
    head = [key for key in own if key.startswith(model.per_class)]
    if not any(key in state for key in head if not key.endswith(_COUNTER)):
        beyond = (*model.per_class, *model.beyond_backbone)
        return [key for key in own if key.startswith(beyond) and key not in state]
    return head if model.made_with(state).get("classes", model.classes) != model.classes else []


def _check_network(
    model: Network, raw: dict[str, Tensor], state: dict[str, Tensor], path: Path
) -> None:
    """Refuses what is not of this network; ``raw`` is the file's, ``state`` has our names."""
    from .registry import registered_classes  # it reads this file

    if model.made_with(state):
        return
    for name, cls in registered_classes().items():
        if not isinstance(model, cls) and (cls.made_with(raw) or cls.of_authors(raw)):
            raise UserError(f"weights {path}: is of another network, its entries are of {name}")
    own = model.state_dict()
    if not any(key in state for key in own if not key.endswith(_COUNTER)):
        raise UserError(
            f"weights {path}: is of another network, it shares no entry with the model "
            f"(it has {some(sorted(state))})"
        )


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


def _check_names(model: Network, state: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    unknown = sorted(key for key in state if key not in own)
    if not missing and not unknown:
        return
    parts = [f"lacks {some(missing)}"] if missing else []
    parts += [f"has {some(unknown)}, which the model does not"] if unknown else []
    helps = missing and not unknown and set(missing) <= set(_anew(model, state))
    offer = "; reset_head=True (--reset_head true) starts these anew" if helps else ""
    raise UserError(f"weights {path}: {' and '.join(parts)}{offer}")


def _check_values(own: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> None:
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise UserError(
                f"weights {path}: {key} is {tuple(value.shape)}, "
                f"the model wants {tuple(own[key].shape)}"
            )
        if value.is_floating_point() != own[key].is_floating_point():
            raise UserError(f"weights {path}: {key} is {value.dtype}, the model's {own[key].dtype}")


def some(keys: list[str]) -> str:
    """The first of many names, and how many there are besides."""
    names = ", ".join(map(shown, keys[:_NAMED]))
    return names if len(keys) <= _NAMED else f"{names} and {len(keys) - _NAMED} more"
