"""Any model, faster: attention blocks that are swapped for fused ones, and back."""

from .inference import Inference, Optimized, optimize
from .report import OptimizeReport, Report
from .walk import fuse, unfuse

__all__ = ["Inference", "OptimizeReport", "Optimized", "Report", "fuse", "optimize", "unfuse"]
