"""The page at the end of a run: one file that opens anywhere, with no request to anybody."""

from .figures import curves_file
from .outlines import Picture, best_and_worst, outlined
from .page import Report, Speed, render
from .scores import ScoreLine, score_lines

__all__ = [
    "Picture",
    "Report",
    "ScoreLine",
    "Speed",
    "best_and_worst",
    "curves_file",
    "outlined",
    "render",
    "score_lines",
]
