"""What predictions are worth: figures of images, classes and data sets, and of what differs."""

from .intervals import Difference, Mean, differences, intervals
from .measures import DEFINITION, MEASURES, Measures, measure, surface_distances
from .scores import (
    ImageScore,
    Values,
    class_columns,
    compare,
    read_table,
    summarise_all,
    table_rows,
    values_of,
)
from .styles import STYLES, StyledScores

__all__ = [
    "DEFINITION",
    "MEASURES",
    "STYLES",
    "Difference",
    "ImageScore",
    "Mean",
    "Measures",
    "StyledScores",
    "Values",
    "class_columns",
    "compare",
    "differences",
    "intervals",
    "measure",
    "read_table",
    "summarise_all",
    "surface_distances",
    "table_rows",
    "values_of",
]
