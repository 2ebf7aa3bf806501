"""The settings that every command has which shows images to a trained network."""

from dataclasses import dataclass

from ..flags import check_choice, flag, require, require_least, require_text
from .forward import PRECISIONS
from .load import Trained
from .predictor import Predictor


@dataclass
class PredictorConfig:
    """Which network, and how it looks at images; a command's own settings come after."""

    weights: str | None = flag(None, "a run folder, or its best.safetensors")
    flips: bool = flag(False, "average over the mirror images of each image")
    overlap: float = flag(0.25, "of neighbouring windows, in images larger than the network sees")
    window: int | None = flag(None, "side of such a window; none: as in training")
    precision: str = flag("fp32", "fp32, bf16 or fp16")
    device: str = flag("auto", "auto, cpu, cuda or cuda:1")

    def __post_init__(self) -> None:
        """Refuses values that no prediction can have."""
        require_text(self)
        require_least(self, 1, "window")
        require(0 <= self.overlap < 1, "overlap", self.overlap, "must lie in 0..1, 1 left out")
        check_choice("precision", self.precision, PRECISIONS)

    def predictor(self, trained: Trained, batch: int) -> Predictor:
        """The network as these settings have it look."""
        return Predictor(trained, batch, self.flips, self.overlap, self.precision, self.window)
