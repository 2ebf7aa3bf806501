"""A trained network at work: opened, shown images of any size, its answer written to files."""

from .forward import Forward
from .load import Trained, load_trained, pick_device
from .predictor import Pixels, Predictor
from .tiles import Slab, View, slabs

__all__ = [
    "Forward",
    "Pixels",
    "Predictor",
    "Slab",
    "Trained",
    "View",
    "load_trained",
    "pick_device",
    "slabs",
]
