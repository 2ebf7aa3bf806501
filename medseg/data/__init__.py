"""Images and masks in a folder: found, checked, read, augmented; and a synthetic set."""

from .augment import build_augmentation
from .dataset import SegmentationSet
from .files import read_image, read_mask
from .geometry import IGNORE, to_original
from .load import load_table
from .patches import FOREGROUND, PatchSet, patches_to_cover
from .smear import write_blood_smear
from .table import Sample, Table

__all__ = [
    "FOREGROUND",
    "IGNORE",
    "PatchSet",
    "Sample",
    "SegmentationSet",
    "Table",
    "build_augmentation",
    "load_table",
    "patches_to_cover",
    "read_image",
    "read_mask",
    "to_original",
    "write_blood_smear",
]
