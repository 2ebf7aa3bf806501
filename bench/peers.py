"""The same maths by others, beside us where it can be imported."""

import importlib
import sys
from collections.abc import Callable
from contextlib import contextmanager
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.cases import Case
from medseg.kernels import mde_reference

# (call, its tensors, those that get a gradient)
Peer = tuple[Callable[..., Any], list[Tensor], list[Tensor]]


class AbsentError(Exception):
    """Why a peer cannot run, in one sentence."""


def timm_layer(module: str, name: str) -> type[nn.Module]:
    """A class of `timm.layers.MODULE`, without the rest of timm, which imports torchvision."""
    home = PathFinder.find_spec("timm")
    if home is None or not home.submodule_search_locations:
        raise AbsentError("timm is not installed")
    root = home.submodule_search_locations[0]
    with _bare("timm", root), _bare("timm.layers", f"{root}/layers"):
        try:
            return getattr(importlib.import_module(f"timm.layers.{module}"), name)
        except (ImportError, AttributeError) as error:
            raise AbsentError(f"timm.layers.{module} cannot be imported: {error}") from error


@contextmanager
def _bare(name: str, folder: str):
    """A package with nothing but its folder, in the place of the real one for a while."""
    before = sys.modules.get(name)
    sys.modules[name] = package = ModuleType(name)
    package.__path__ = [folder]
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


def _timm_eca(case: Case, inputs: list[Tensor]) -> Peer:
    """timm.layers.EcaModule with our taps."""
    x, weight = inputs
    module: Any = timm_layer("eca", "EcaModule")(kernel_size=weight.shape[0])
    module = _like(module, case, x)
    with torch.no_grad():
        module.conv.weight.copy_(weight.view(1, 1, -1))
    return module, [x], [x, module.conv.weight]


def _timm_split(case: Case, inputs: list[Tensor]) -> Peer:
    """timm.layers.SplitAttn without the convolution, batch norm and ReLU in front."""
    x, *ours = inputs
    options = dict(case.options)
    radix, groups = options.get("radix", 2), options.get("cardinality", 1)
    channels, hidden = x.shape[1] // radix, ours[0].shape[0]
    module: Any = timm_layer("split_attn", "SplitAttn")(
        x.shape[1], channels, radix=radix, groups=groups, rd_channels=hidden // radix,
        norm_layer=nn.BatchNorm2d,
    )  # fmt: skip
    module.conv, module.bn0, module.act0 = nn.Identity(), nn.Identity(), nn.Identity()
    module = _like(module, case, x)
    theirs = [module.fc1.weight, module.fc1.bias, module.bn1.weight, module.bn1.bias]
    theirs += [module.fc2.weight, module.fc2.bias]
    with torch.no_grad():
        for weight, value in zip(theirs, ours, strict=True):
            weight.copy_(value.view(weight.shape))
    return module, [x], [x, *theirs]


def _like(module: nn.Module, case: Case, x: Tensor) -> nn.Module:
    """On the device and in the dtype of x: timm's modules do not mix dtypes."""
    return module.to(x.device, x.dtype).train(case.training)


def _conv2d(case: Case, inputs: list[Tensor]) -> Peer:
    """The folded stencil as PyTorch's own depthwise convolution, and a concatenation behind it.

    Not for learned gains: the gradient of such weights takes it seconds at the large map.
    """
    x, *up, gains = inputs
    weight = folded(gains, x)

    def call(x: Tensor, *up: Tensor) -> Tensor:
        y = F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1])
        return torch.cat((*up, y), 1) if up else y

    return call, [x, *up], [t for t in inputs if t.requires_grad]


def folded(gains: Tensor, x: Tensor) -> Tensor:
    """The stencil (C, 1, 7, 7) in the dtype of x: what an impulse becomes."""
    impulse = torch.zeros(1, x.shape[1], 7, 7, device=x.device)
    impulse[..., 3, 3] = 1
    return mde_reference(impulse, gains).transpose(0, 1).to(x.dtype)


def _sdpa(case: Case, inputs: list[Tensor]) -> Peer:
    """PyTorch's own choice among its attention kernels."""
    return F.scaled_dot_product_attention, inputs, [t for t in inputs if t.requires_grad]


PEERS: dict[str, dict[str, Callable[[Case, list[Tensor]], Peer]]] = {
    "eca": {"timm": _timm_eca},
    "split": {"timm": _timm_split},
    "mde": {"conv2d": _conv2d},
    "mde_concat": {"conv2d": _conv2d},
    "position": {"sdpa": _sdpa},
}
