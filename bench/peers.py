"""The same maths by others, beside us where it can be imported."""

import importlib
import sys
from collections.abc import Callable
from contextlib import contextmanager
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases import Case

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


def _like(module: nn.Module, case: Case, x: Tensor) -> nn.Module:
    """On the device and in the dtype of x: timm's modules do not mix dtypes."""
    return module.to(x.device, x.dtype).train(case.training)


PEERS: dict[str, dict[str, Callable[[Case, list[Tensor]], Peer]]] = {"eca": {"timm": _timm_eca}}
