"""Maps in channels_last on a CPU, by a hook that brings a model's inputs to that layout."""

from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore
from torch.utils._pytree import tree_map

_KEY = "medseg.channels_last"  # no number, which a hook of another process could get too


def turn(model: nn.Module) -> None:
    """From now on images (N, C, H, W) enter the model in channels_last, and its maps follow."""
    hooks: tuple[Any, Any] = model._forward_pre_hooks, model._forward_pre_hooks_with_kwargs
    hooks[0][_KEY], hooks[1][_KEY] = _channels_last, True


def turn_back(model: nn.Module) -> None:
    """Takes the hook away."""
    hooks: tuple[Any, Any] = model._forward_pre_hooks, model._forward_pre_hooks_with_kwargs
    for each in hooks:
        each.pop(_KEY, None)


def is_turned(model: nn.Module) -> bool:
    """Whether the model has the hook."""
    return _KEY in model._forward_pre_hooks


def _channels_last(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return tree_map(_turned, (args, kwargs))


def _turned(t: Any) -> Any:
    if not isinstance(t, Tensor) or t.layout is not torch.strided or t.is_nested:
        return t
    if t.dim() != 4 or not t.is_floating_point() or t.device.type != "cpu" or t.stride(1) == 1:
        return t
    if not torch.compiler.is_compiling() and peek_interpreter_stack():
        return t  # under vmap a tensor has no layout of its own
    return t.clone(memory_format=torch.channels_last)  # `to` would leave a grey image alone
