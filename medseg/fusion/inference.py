"""`optimize`: a copy of a model for inference, as fast as exact and cheap means make it."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from medseg.models.fold import fuse_conv_bn

from .cost import milliseconds
from .report import OptimizeReport, Report, Step
from .results import HALF_TOLERANCE, TOLERANCE, distance, floats
from .verify import device_of
from .walk import fuse

HALVES = (torch.bfloat16, torch.float16)
_LOOSE = 1e-4  # of outputs, relative to the largest, where convolutions add up in another order
BUDGET = 6.0  # seconds for the timing of a step


class Optimized(NamedTuple):
    """What `optimize` returns: the model for inference, and the report of how it was made."""

    model: "Inference"
    report: OptimizeReport


class Inference(nn.Module):
    """A model that runs without gradients, in its own dtype and layout, and takes and returns
    tensors in those of the caller.

    Args:
        model: in eval mode.
        dtype: of its weights, which floating-point inputs are brought to; None leaves them.
        channels_last: whether maps are brought to that layout.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype | None = None, channels_last: bool = False
    ) -> None:
        super().__init__()
        self.model, self.dtype, self.channels_last = model, dtype, channels_last

    def forward(self, *inputs: Any) -> Any:
        """What the model returns, floating-point tensors in the dtype of the first input."""
        given = [t.dtype for t in floats(inputs)]
        with torch.no_grad():
            outputs = self.model(*tree_map(self._brought, inputs))
        if self.dtype is None or not given:
            return outputs
        return tree_map(lambda t: t.to(given[0]) if _is_float(t) else t, outputs)

    def _brought(self, t: Any) -> Any:
        if not _is_float(t):
            return t
        t = t if self.dtype is None else t.to(self.dtype)
        maps = self.channels_last and t.dim() == 4
        return t.contiguous(memory_format=torch.channels_last) if maps else t

    def extra_repr(self) -> str:
        return f"dtype={self.dtype}, channels_last={self.channels_last}"


def optimize(model: nn.Module, example: Any, dtype: torch.dtype | None = None) -> Optimized:
    """A faster copy of a model for inference.

    Tried one after another, each on top of what is kept so far: fused attention (`fuse`), batch
    norms taken into convolutions (`fuse_conv_bn`), weights and maps in ``dtype``, and in
    channels_last. A step stays if the outputs for the example stay close to those of the model as
    it came (1e-5 of the largest for fused attention in float32, 1e-4 for another order of
    convolutions, 2e-2 for half precision) and a run gets faster; else it is undone.

    Args:
        model: any module in eval mode; it is not changed.
        example: an input as it will come, or a tuple of them; times hold for its size.
        dtype: torch.bfloat16 or torch.float16 to allow it; None keeps the model's own.

    Returns:
        ``model``, an `Inference` that takes and returns what the model did, and ``report``.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``model`` is in training mode, or ``dtype`` is no half precision.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(module.training for module in model.modules()):
        raise ValueError("model must be in eval mode, since it is made for inference")
    if dtype not in (None, *HALVES):
        raise ValueError(f"dtype must be torch.bfloat16, torch.float16 or None, got {dtype}")
    inputs = example if isinstance(example, tuple) else (example,)
    return _Search(model, inputs).run(dtype)


class _Search:
    """The best model so far, and what was tried."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.best = self.first = Inference(model)
        self.inputs = inputs
        self.truth = floats(self.first(*inputs))
        self.device = device_of(model, inputs)
        half = any(t.dtype in HALVES for t in (*self.truth, *model.parameters()))
        self.least = HALF_TOLERANCE if half else 0.0
        self.steps: list[Step] = []
        self.fusion = Report()

    def run(self, dtype: torch.dtype | None) -> Optimized:
        exact = TOLERANCE[torch.float32]
        self._try("fused attention", self._fused, exact)
        self._try("batch norms in convolutions", self._folded, _LOOSE)
        if dtype is not None:
            self._try(str(dtype).removeprefix("torch."), lambda: self._cast(dtype), HALF_TOLERANCE)
        loose = HALF_TOLERANCE if self.best.dtype is not None else _LOOSE
        self._try("channels_last", self._turned, loose)
        if self.best is self.first:
            self.best = Inference(copy.deepcopy(self.first.model))
        before, after = self._times(self.first, self.best)
        return Optimized(self.best, OptimizeReport(before, after, self.steps, self.fusion))

    def _times(self, *models: Inference) -> list[float]:
        calls = [lambda model=model: model(*self.inputs) for model in models]
        return milliseconds(calls, self.device, BUDGET)

    def _try(self, name: str, make: Callable[[], "Inference | str"], tolerance: float) -> None:
        """Keeps what a step makes of the best model if it is close and faster."""
        try:
            made = make()
            if isinstance(made, str):
                self.steps.append(Step(name, None, None, made))
                return
            error = self._error(made)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as problem:
            words = str(problem).split("\n", 1)[0]
            self.steps.append(Step(name, None, None, f"it does not run ({words})"))
            return
        allowed = max(tolerance, self.least)
        if error > allowed:
            self.steps.append(Step(name, None, error, f"outputs may be off by {allowed:.0e}"))
            return
        now, then = self._times(made, self.best)
        undone = None if now <= then else f"without it {then:.1f}"
        self.steps.append(Step(name, now, error, undone))
        if undone is None:
            self.best = made

    def _error(self, model: Inference) -> float:
        """The largest difference of the outputs, relative to the largest number in each."""
        pairs = zip(floats(model(*self.inputs)), self.truth, strict=True)
        return max((distance(truth, found) for found, truth in pairs), default=0.0)

    def _fused(self) -> "Inference | str":
        model = copy.deepcopy(self.best.model)
        self.fusion = fuse(model)
        return Inference(model) if self.fusion.fused else "there is nothing to fuse"

    def _folded(self) -> Inference:
        return Inference(fuse_conv_bn(self.best.model, self.inputs))

    def _cast(self, dtype: torch.dtype) -> Inference:
        return Inference(copy.deepcopy(self.best.model).to(dtype), dtype)

    def _turned(self) -> Inference:
        model: Any = copy.deepcopy(self.best.model)
        return Inference(model.to(memory_format=torch.channels_last), self.best.dtype, True)


def _is_float(t: Any) -> bool:
    return isinstance(t, Tensor) and t.is_floating_point()
