"""medseg: attention blocks of segmentation networks at the speed of memory, and their networks."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import kernels, layers, models
    from .fusion import fuse, optimize, unfuse
    from .inference import Predictor, load_trained
    from .models import create_model, fuse_conv_bn, list_models

__version__ = "0.1.0"

__all__ = [
    "Predictor",
    "create_model",
    "fuse",
    "fuse_conv_bn",
    "kernels",
    "layers",
    "list_models",
    "load_trained",
    "models",
    "optimize",
    "unfuse",
]
_HOMES = {  # of the rest it is .models
    **dict.fromkeys(("fuse", "optimize", "unfuse"), ".fusion"),
    **dict.fromkeys(("Predictor", "load_trained"), ".inference"),
}


def __getattr__(name: str) -> Any:
    """Imports a part, and PyTorch with it, when it is asked for: the commands settle the process
    beforehand (startup.py)."""
    if name in ("kernels", "layers", "models"):
        return importlib.import_module(f".{name}", __name__)
    if name in __all__:
        return getattr(importlib.import_module(_HOMES.get(name, ".models"), __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
