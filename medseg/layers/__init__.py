"""Attention blocks as modules: parameters and initialisation around the fused functions."""

from .eca import ECA
from .mde import MDEFilter
from .split import SplitAttention
from .triplet import TripletAttention

__all__ = ["ECA", "MDEFilter", "SplitAttention", "TripletAttention"]
