"""Published segmentation networks, built by name."""

from .dra_net import DRANet
from .registry import create_model, list_models, register
from .weights import load_weights

__all__ = ["DRANet", "create_model", "list_models", "load_weights", "register"]
