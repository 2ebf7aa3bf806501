"""Images and masks in a folder: found, checked, read, augmented; and a synthetic set."""

from .augment import Augmentation, build_augmentation
from .dataset import SegmentationSet
from .files import match_channels, read_image, read_mask
from .frequency import median_frequency_weights
from .geometry import IGNORE, fit_image, pad_image, to_labels, to_original, to_planes
from .load import load_table
from .patches import FOREGROUND, PatchSet, patches_to_cover
from .smear import write_blood_smear
from .table import Sample, Table

__all__ = [
    "FOREGROUND",
    "IGNORE",
    "Augmentation",
    "PatchSet",
    "Sample",
    "SegmentationSet",
    "Table",
    "build_augmentation",
    "fit_image",
    "load_table",
    "match_channels",
    "median_frequency_weights",
    "pad_image",
    "patches_to_cover",
    "read_image",
    "read_mask",
    "to_labels",
    "to_original",
    "to_planes",
    "write_blood_smear",
]
