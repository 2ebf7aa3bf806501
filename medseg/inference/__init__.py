"""A trained network at work: opened, shown images of any size, its answer written to files."""

from .forward import PRECISIONS, Forward
from .load import Trained, load_trained, pick_device
from .memory import full_memory, naming_flags
from .predictor import Pixels, Predictor
from .settings import PredictorConfig
from .sources import FileImage, RowImage, find_files, open_images, stem
from .tiles import Slab, View, slabs

__all__ = [
    "PRECISIONS",
    "FileImage",
    "Forward",
    "Pixels",
    "Predictor",
    "PredictorConfig",
    "RowImage",
    "Slab",
    "Trained",
    "View",
    "find_files",
    "full_memory",
    "load_trained",
    "naming_flags",
    "open_images",
    "pick_device",
    "slabs",
    "stem",
]
