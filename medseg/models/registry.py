"""Names of networks, and what each is built from."""

import difflib
import fnmatch
import inspect
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from medseg.errors import UserError

from .network import Network, check_count, check_flag
from .weights import load_weights

_Class = TypeVar("_Class", bound=type[Network])
_REGISTRY: dict[str, tuple[type[Network], dict[str, Any]]] = {}


def register(name: str, **preset: Any) -> Callable[[_Class], _Class]:
    """Class decorator: makes ``create_model(name)`` build the class, with ``preset`` as options.

    One class may have several names, each with its own preset.
    """

    def enter(cls: _Class) -> _Class:
        if name in _REGISTRY:
            raise ValueError(f"a network named {name!r} is registered already")
        _REGISTRY[name] = (cls, preset)
        return cls

    return enter


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names that match a shell-style ``pattern``, sorted."""
    return sorted(fnmatch.filter(_REGISTRY, pattern))


def registered_classes() -> dict[str, type[Network]]:
    """Returns each registered class once, by the shortest of its names."""
    names = {cls: name for name, (cls, _) in sorted(_REGISTRY.items(), key=lambda e: -len(e[0]))}
    return {name: cls for cls, name in names.items()}


def create_model(
    name: str,
    in_channels: int = 3,
    classes: int = 1,
    weights: str | Path | None = None,
    *,
    unsafe: bool = False,
    reset_head: bool = False,
    **options: Any,
) -> Network:
    """Builds a network by name.

    Args:
        name: one of ``list_models()``.
        in_channels: channels of the image, at least 1.
        classes: channels of the logits, background included, at least 1.
        weights: None, or a .safetensors, .pth or .h5 file for the same network, classes and
            channels; names of the original authors' files are translated.
        unsafe, reset_head: read a whole pickled model, which can carry code; load all but the head
            of a file of another number of classes, with a warning. `load_weights` says more.
        **options: of the network; its class documents them.

    Returns:
        The network in training mode; (N, in_channels, H, W) to logits (N, classes, H, W).

    Raises:
        UserError: name, option, number or weights do not fit, or the weights carry other numbers
            than an option asks for; the message says what would.
    """
    cls, preset = _registered(name)
    _check_arguments(name, cls, in_channels, classes, options)
    model = cls(in_channels=in_channels, classes=classes, **{**preset, **options})
    if weights is not None:
        asked = {key: value.clone() for key, value in model.named_buffers()}
        anew = load_weights(model, weights, unsafe=unsafe, reset_head=reset_head)
        if anew:
            warnings.warn(f"weights {weights}: {', '.join(anew)} start anew", stacklevel=2)
        _refuse_overruled(model, asked, options, weights)
    return model


def _registered(name: str) -> tuple[type[Network], dict[str, Any]]:
    if not isinstance(name, str) or name not in _REGISTRY:
        known = list_models()
        hint = _did_you_mean(name, known)
        raise UserError(f"model {name!r} is unknown{hint}; known: {', '.join(known)}")
    return _REGISTRY[name]


def _check_arguments(
    name: str, cls: type[Network], in_channels: int, classes: int, options: dict[str, Any]
) -> None:
    parameters = inspect.signature(cls).parameters
    known = [p for p in parameters if p not in ("in_channels", "classes")]
    for option, value in options.items():
        if option not in known:
            hint = _did_you_mean(option, known)
            raise UserError(f"{name} has no option {option!r}{hint}; it has {', '.join(known)}")
        if isinstance(parameters[option].default, bool):
            check_flag(option, value)
    for key, count in (("in_channels", in_channels), ("classes", classes)):
        check_count(key, count)


def _refuse_overruled(
    model: Network, asked: dict[str, Tensor], options: dict[str, Any], weights: str | Path
) -> None:
    """Refuses an option whose numbers ``asked`` the file has replaced by others of its own."""
    for option in set(options) & set(model.filled_by):
        for key, value in model.named_buffers():
            other = key.endswith(model.filled_by[option]) and options[option] is not None
            # a file of half precision has the same numbers, rounded
            if other and not torch.allclose(value.float(), asked[key].float(), rtol=1e-2):
                there, here = _numbers(value), _numbers(asked[key])
                raise UserError(
                    f"weights {weights}: {key} is {there} there, and {here} by {option}="
                    f"{options[option]!r}: leave the option out, or give that of the file"
                )


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:g}" for value in values.flatten().tolist())


def _did_you_mean(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(str(word).lower(), list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
