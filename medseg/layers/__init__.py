"""Attention blocks as modules: parameters and initialisation around the fused functions."""

from .eca import ECA
from .mde import MDEFilter
from .triplet import TripletAttention

__all__ = ["ECA", "MDEFilter", "TripletAttention"]
