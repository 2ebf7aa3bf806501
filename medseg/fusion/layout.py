"""Maps in channels_last on a CPU, by a hook that brings a model's inputs to that layout."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


def turn(model: nn.Module) -> None:
    """From now on images (N, C, H, W) enter the model in channels_last, and its maps follow."""
    if not is_turned(model):
        model.register_forward_pre_hook(_channels_last, with_kwargs=True)


def turn_back(model: nn.Module) -> None:
    """Takes the hook away, wherever in the model it is."""
    for module in model.modules():
        # By the function: handles do not come along when a model is copied or pickled.
        for key in [k for k, hook in module._forward_pre_hooks.items() if hook is _channels_last]:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def is_turned(model: nn.Module) -> bool:
    """Whether the model has the hook."""
    return any(hook is _channels_last for hook in model._forward_pre_hooks.values())


def _channels_last(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return tree_map(_turned, (args, kwargs))


def _turned(t: Any) -> Any:
    image = isinstance(t, Tensor) and t.dim() == 4 and t.is_floating_point()
    if not image or t.device.type != "cpu" or t.stride(1) == 1:
        return t
    return t.clone(memory_format=torch.channels_last)  # `to` would leave a grey image alone
