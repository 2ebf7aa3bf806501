"""Attention blocks as modules: parameters and initialisation around the fused functions."""

from .eca import ECA
from .gate import AttentionGate, MinPool
from .mde import MDEFilter
from .position import PositionAttention
from .split import SplitAttention
from .triplet import TripletAttention

__all__ = [
    "ECA",
    "AttentionGate",
    "MDEFilter",
    "MinPool",
    "PositionAttention",
    "SplitAttention",
    "TripletAttention",
]
