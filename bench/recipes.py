"""For each op its tensors and a call for every backend."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.cases import DTYPES, LAYOUTS, Case
from medseg.kernels import (
    attention_gate,
    eca_attention,
    mde_concat,
    mde_filter,
    position_attention,
    split_apply,
    split_attention,
    split_pool,
    triplet_apply,
    triplet_attention,
    triplet_pool,
)

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


def _eca_pool(case: Case) -> Recipe:
    """With the sum in front and the max-pool behind, as at every level of DRA-Net."""

    def forward(backend: str) -> Call:
        return lambda x, residual, weight, bias: eca_attention(
            x, weight, bias, residual=residual, pool=2, backend=backend
        )

    inputs = [feature_map(case), feature_map(case), numbers(3), numbers(1)]
    return Recipe("eca", inputs, len(inputs), forward)


def _triplet(case: Case) -> Recipe:
    running = [numbers(3, scale=0.0), numbers(3, scale=0.0, shift=1.0)]

    def forward(backend: str) -> Call:
        return lambda x, *learned: triplet_attention(
            x, *learned, *running, training=case.training, backend=backend
        )

    weights = [numbers(3, 2, 7, 7, scale=1 / 7), numbers(3, scale=0.1, shift=1.0), numbers(3)]
    return Recipe("triplet", [feature_map(case), *weights], 4, forward)


def _split(case: Case) -> Recipe:
    """The block's core; `split_folded` with a batch norm and ReLU in front of it."""
    options = dict(case.options)
    radix, groups = options.get("radix", 2), options.get("cardinality", 1)
    channels = case.shape[1] // radix
    hidden = max(case.shape[1] // 4, 32)
    running = numbers(hidden, scale=0.0), numbers(hidden, scale=0.0, shift=1.0)
    fc1 = [numbers(hidden, channels // groups, scale=channels**-0.5), numbers(hidden)]
    norm = [numbers(hidden, scale=0.1, shift=1.0), numbers(hidden, scale=0.1)]
    fc2 = [numbers(radix * channels, hidden // groups, scale=hidden**-0.5)]
    learned = [feature_map(case), *fc1, *norm, *fc2, numbers(radix * channels)]
    folded = case.op == "split_folded"
    front = [numbers(case.shape[1], shift=1.0), numbers(case.shape[1])] if folded else []

    def forward(backend: str) -> Call:
        def call(x, w1, b1, gamma, beta, w2, b2, scale=None, shift=None):
            return split_attention(
                x, w1, b1, gamma, beta, *running, w2, b2, radix=radix, cardinality=groups,
                training=case.training, scale=scale, shift=shift, backend=backend,
            )  # fmt: skip

        return call

    return Recipe("split", learned + front, len(learned), forward)


def _split_parts(case: Case) -> Recipe:
    """Pooling and application, of gates that depend on what was pooled."""

    def forward(backend: str) -> Call:
        def call(x: Tensor, gates: Tensor) -> Tensor:
            pooled = split_pool(x, backend=backend)
            return split_apply(x, gates + pooled.repeat(1, 2), backend=backend)

        return call

    return Recipe("split", [feature_map(case), numbers(*case.shape[:2])], 2, forward)


def _triplet_parts(case: Case) -> Recipe:
    """Pooling and application, of gates that are maximum times mean and a number."""

    def forward(backend: str) -> Call:
        def call(x: Tensor, weight: Tensor) -> Tensor:
            planes = triplet_pool(x, backend=backend)
            gates = [weight + p[:, :1] * p[:, 1:] for p in planes]
            return triplet_apply(x, gates, backend=backend)

        return call

    return Recipe("triplet", [feature_map(case), numbers(1)], 2, forward)


def _mde(case: Case) -> Recipe:
    """Fixed gains, or with `mde_learned` gains that get gradients."""

    def forward(backend: str) -> Call:
        return lambda x, gains: mde_filter(x, gains, backend=backend)

    return Recipe("mde", [feature_map(case), _gains(case)], 1 + (case.op != "mde"), forward)


def _mde_concat(case: Case) -> Recipe:
    """As many channels from the decoder as from the encoder, whose map comes first here."""

    def forward(backend: str) -> Call:
        return lambda skip, up, gains: mde_concat(up, skip, gains, backend=backend)

    return Recipe("mde", [feature_map(case), feature_map(case), _gains(case)], 2, forward)


def _position(case: Case) -> Recipe:
    """Queries, keys and values of one head, as HPDDRNet has them."""
    n, channels, h, w = case.shape
    inputs = [numbers(n, h * w, channels).to(DTYPES[case.dtype]) for _ in range(3)]

    def forward(backend: str) -> Call:
        return lambda q, k, v: position_attention(q, k, v, backend=backend)

    return Recipe("position", inputs, 3, forward)


def _gate(case: Case) -> Recipe:
    """The elementwise middle: three branches, their sum and their product."""

    def forward(backend: str) -> Call:
        return lambda a, b, c: attention_gate(a, b, c, backend=backend)

    return Recipe("gate", [feature_map(case) for _ in range(3)], 3, forward)


def _gains(case: Case) -> Tensor:
    """The default preset, for every channel."""
    return torch.tensor([0.5, 2.0, 1.5, 1.0], device=device()).repeat(case.shape[1], 1)


RECIPES: dict[str, Callable[[Case], Recipe]] = {
    "eca": _eca,
    "eca_pool": _eca_pool,
    "triplet": _triplet,
    "split": _split,
    "split_folded": _split,
    "split_parts": _split_parts,
    "triplet_parts": _triplet_parts,
    "mde": _mde,
    "mde_learned": _mde,
    "mde_concat": _mde_concat,
    "position": _position,
    "gate": _gate,
}
