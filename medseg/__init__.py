"""medseg: attention blocks of segmentation networks at the speed of memory, and their networks."""

from . import kernels, layers, models
from .models import create_model, list_models

__version__ = "0.1.0"

__all__ = ["create_model", "kernels", "layers", "list_models", "models"]
