"""For each op its tensors and a call for every backend."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.cases import DTYPES, LAYOUTS, Case
from medseg.kernels import eca_attention, triplet_attention

Call = Callable[..., Any]


@dataclass
class Recipe:
    """An op on a case.

    Attributes:
        kernel: the op's key in medseg.kernels.
        inputs: its tensors, the map first; the first `learned` of them get gradients.
        forward: from the name of a backend to the call.
    """

    kernel: str
    inputs: list[Tensor]
    learned: int
    forward: Callable[[str], Call]


def device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def tensors(found: Any) -> tuple[Tensor, ...]:
    """The outputs of a call as a tuple."""
    return (found,) if isinstance(found, Tensor) else tuple(found)


def feature_map(case: Case) -> Tensor:
    """Numbers in the shape, dtype and layout of the case."""
    x = torch.randn(case.shape).to(device(), DTYPES[case.dtype])
    return x.contiguous(memory_format=LAYOUTS[case.layout])


def numbers(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Float32 parameters."""
    return (torch.randn(shape) * scale + shift).to(device())


def _eca(case: Case) -> Recipe:
    def forward(backend: str) -> Call:
        return lambda x, weight: eca_attention(x, weight, backend=backend)

    return Recipe("eca", [feature_map(case), numbers(3)], 2, forward)


def _triplet(case: Case) -> Recipe:
    running = numbers(3, scale=0.0), numbers(3, scale=0.0, shift=1.0)

    def forward(backend: str) -> Call:
        return lambda x, *learned: triplet_attention(
            x, *learned, *running, training=case.training, backend=backend
        )

    weights = [numbers(3, 2, 7, 7, scale=1 / 7), numbers(3, scale=0.1, shift=1.0), numbers(3)]
    return Recipe("triplet", [feature_map(case), *weights], 4, forward)


RECIPES: dict[str, Callable[[Case], Recipe]] = {"eca": _eca, "triplet": _triplet}
