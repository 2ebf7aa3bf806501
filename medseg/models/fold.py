"""Batch norms taken into the convolutions in front of them, for inference."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .one_pass import PackedConv2d, scaled

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_DECONVS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def fuse_conv_bn(model: nn.Module, example: Tensor | tuple[Any, ...] | None = None) -> nn.Module:
    """A copy of a model for inference, in which batch norms are part of the convolutions before.

    One run tells which convolution feeds which batch norm: a pair is fused where each is called
    once and nothing but the norm sees what the convolution returns. The outputs are then the same
    up to rounding. Norms that a fused op applies on its way, as split attention's, cost nothing
    and stay; so do those in front of a convolution, which cannot be moved past its padding. On a
    CPU the convolutions keep their weights in oneDNN's order too (`PackedConv2d`).

    Args:
        model: in eval mode; it is not changed. The copy has other entries in its state dict and
            can no longer be trained.
        example: an input to run with, or a tuple of them; None takes a small image for the
            ``Network``s of medseg.

    Raises:
        ValueError: the model is in training mode, or no example is given to a model that is not
            medseg's.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("model must be in eval mode, since training norms each batch by itself")
    model = copy.deepcopy(model)
    if example is None:
        example = _small_image(model)
    kept = _kept(model)
    pairs = _pairs(model, example if isinstance(example, tuple) else (example,))
    pairs = [pair for pair in pairs if not kept.intersection(pair)]
    for conv, norm in pairs:
        _fold(conv, norm)
    folded = {norm for _, norm in pairs}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in folded:
                setattr(parent, name, nn.Identity().eval())
    for module in model.modules():
        if type(module) is nn.Conv2d and module not in kept:
            module.__class__ = PackedConv2d
    return model


def _kept(model: nn.Module) -> set[nn.Module]:
    """The parts of blocks that `medseg.fuse` has fused: with others, they would run unfused."""
    blocks = [m for m in model.modules() if getattr(type(m), "keeps_parts", False)]
    return {part for block in blocks for part in block.modules()}


def _small_image(model: nn.Module) -> Tensor:
    channels, legal = getattr(model, "in_channels", None), getattr(model, "legal_size", None)
    if channels is None or legal is None:
        raise ValueError("example must be given, since model is not one of medseg's networks")
    like = next(model.parameters())
    return torch.rand(1, channels, legal(40), legal(56)).to(like)


class _Uses(TorchDispatchMode):
    """Counts the ops that read or write the storage of each convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, Tensor] = {}  # held, so that no other tensor gets the address
        self.counts: dict[int, int] = {}

    def add(self, out: Tensor) -> int:
        place = out.untyped_storage().data_ptr()
        self.outputs[place] = out
        self.counts[place] = 0
        return place

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        for place in {t.untyped_storage().data_ptr() for t in tensors}:
            if place in self.counts:
                self.counts[place] += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _pairs(model: nn.Module, example: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """The (convolution, norm) pairs that one run shows to be alone with each other."""
    uses, calls = _Uses(), {}
    made: dict[int, nn.Module] = {}  # where the output of a convolution lies
    fed: list[tuple[int, nn.Module]] = []

    def after(module: nn.Module, args: Any, out: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, _CONVS + _DECONVS):
            made[uses.add(out)] = module

    def before(module: nn.Module, args: Any) -> None:
        place = args[0].untyped_storage().data_ptr()
        if place in made:  # now: an address that is free later may become a convolution's
            fed.append((place, module))

    handles = []
    for module in model.modules():
        if _can_fold(module):
            handles.append(module.register_forward_hook(after))
            if isinstance(module, _NORMS):
                handles.append(module.register_forward_pre_hook(before))
    try:
        with uses:
            model(*example)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (made[place], norm)
        for place, norm in fed
        if uses.counts[place] == 1 and calls[made[place]] == calls[norm] == 1
    ]


def _can_fold(module: Any) -> bool:
    if type(module) in _DECONVS:
        return module.groups == 1
    if isinstance(module, _NORMS):
        plain = any(type(module).forward is norm.forward for norm in _NORMS)
        return plain and module.running_mean is not None
    return type(module) in _CONVS


@torch.no_grad()
def _fold(conv: Any, norm: Any) -> None:
    """Scales the channels of the convolution and shifts its bias, worked out in float64."""
    weight, bias = scaled(conv, norm, torch.float64)
    conv.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    conv.bias = nn.Parameter(bias, requires_grad=conv.weight.requires_grad)
