"""medseg: attention blocks of segmentation networks at the speed of memory, and their networks."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import kernels, layers, models
    from .fusion import fuse, optimize, unfuse
    from .models import create_model, fuse_conv_bn, list_models

__version__ = "0.1.0"

__all__ = [
    "create_model",
    "fuse",
    "fuse_conv_bn",
    "kernels",
    "layers",
    "list_models",
    "models",
    "optimize",
    "unfuse",
]
_FUSION = ("fuse", "optimize", "unfuse")


def __getattr__(name: str) -> Any:
    """Imports a part, and PyTorch with it, when it is asked for: the commands settle the process
    beforehand (startup.py)."""
    if name in ("kernels", "layers", "models"):
        return importlib.import_module(f".{name}", __name__)
    if name in __all__:
        part = ".fusion" if name in _FUSION else ".models"
        return getattr(importlib.import_module(part, __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
