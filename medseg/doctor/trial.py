"""Runs ops on their backends and holds the numbers to the reference in float64.

`python -m medseg.doctor.trial '[["eca", "cpu", "cpu"]]'` prints a line of JSON before and after
each [op, backend, device], so that whoever reads along knows which one ended the process.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels import (
    attention_gate,
    eca_attention,
    mde_filter,
    position_attention,
    split_attention,
    triplet_attention,
)

# An error may be twice that of plain PyTorch in float32, a gradient's three times, and a few
# roundings besides where plain PyTorch happens to be exact. The tests hold every op to the same.
_FLOOR = 1e-6
_TURNS = 5
Case = Callable[..., Tensor]


def _eca(x: Tensor, taps: Tensor, backend: str) -> Tensor:
    return eca_attention(x, taps, backend=backend)


def _triplet(x: Tensor, conv: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
    running = torch.zeros_like(weight).detach(), torch.ones_like(weight).detach()
    return triplet_attention(x, conv, weight, bias, *running, training=False, backend=backend)


def _split(x: Tensor, first: Tensor, weight: Tensor, bias: Tensor, second: Tensor, backend: str):
    norm = weight, bias, torch.zeros_like(weight).detach(), torch.ones_like(weight).detach()
    return split_attention(x, first, None, *norm, second, None, training=False, backend=backend)


def _mde(x: Tensor, gains: Tensor, backend: str) -> Tensor:
    return mde_filter(x, gains, backend=backend)


def _gate(x: Tensor, b: Tensor, c: Tensor, backend: str) -> Tensor:
    total, product = attention_gate(x, b, c, backend=backend)
    return total + 2 * product


def _position(x: Tensor, key: Tensor, value: Tensor, backend: str) -> Tensor:
    return position_attention(x, key, value, backend=backend)


MAP = (2, 16, 31, 33)
TOKENS = (2, 576, 16)  # more scores than the plain formula is kept for
CASES: dict[str, tuple[Case, tuple[tuple[int, ...], ...]]] = {  # the op, shapes of x and the rest
    "eca": (_eca, (MAP, (3,))),
    "triplet": (_triplet, (MAP, (3, 2, 7, 7), (3,), (3,))),
    "split": (_split, (MAP, (8, 8), (8,), (8,), (16, 8))),
    "mde": (_mde, (MAP, (16, 4))),
    "gate": (_gate, (MAP, MAP, MAP)),
    "position": (_position, (TOKENS, TOKENS, TOKENS)),
}


def trial(op: str, backend: str, device: str) -> dict[str, Any]:
    """Runs an op forward and backward, on a map of two odd images in float32.

    Args:
        op: key of `CASES`.
        backend: that must run it.
        device: "cpu" or "cuda".

    Returns:
        op, backend, device; `error`, the largest deviation of output or gradient from float64,
        relative to the largest value; `plain`, that of plain PyTorch in float32; `fine`, whether
        the rule holds; `ms` and `plain_ms` of a forward and backward, medians.
    """
    call, shapes = CASES[op]
    draw = torch.Generator().manual_seed(0)
    wide = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes]
    narrow = [t.to(device, torch.float32) for t in wide]
    truth = _gradients(call, wide, "reference")
    plain = _gradients(call, narrow, "reference")
    got = _gradients(call, narrow, backend)
    errors = [_error(g, t) for g, t in zip(got, truth, strict=True)]
    theirs = [_error(p, t) for p, t in zip(plain, truth, strict=True)]
    allowed = [
        (3 if place else 2) * e + (10 if place > 1 else 1) * _FLOOR
        for place, e in enumerate(theirs)
    ]
    return {
        "op": op,
        "backend": backend,
        "device": device,
        "fine": all(e <= a for e, a in zip(errors, allowed, strict=True)),
        "error": _finite(max(errors, key=_rank)),
        "plain": _finite(max(theirs, key=_rank)),
        "ms": _milliseconds(call, narrow, backend),
        "plain_ms": _milliseconds(call, narrow, "reference"),
    }


def _gradients(call: Case, tensors: list[Tensor], backend: str) -> list[Tensor]:
    """The output and the gradient of every tensor."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = call(*leaves, backend=backend)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device)
    return [out, *torch.autograd.grad(out, leaves, weights.view(out.shape))]


def _error(got: Tensor, truth: Tensor) -> float:
    """NaN where a number is none: it passes no comparison."""
    gap = (got.detach().double().cpu() - truth.detach()).abs().max()
    return float(gap / truth.detach().abs().max().clamp(min=1e-30))


def _rank(error: float) -> float:
    return error if math.isfinite(error) else math.inf


def _finite(error: float) -> float | None:
    """None where it is no number: JSON has none such."""
    return error if math.isfinite(error) else None


def _milliseconds(call: Case, tensors: list[Tensor], backend: str) -> float:
    seconds = []
    for _ in range(_TURNS):
        start = time.perf_counter()
        _gradients(call, tensors, backend)
        if tensors[0].is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return round(1e3 * sorted(seconds)[_TURNS // 2], 3)


def main(asked: list[list[str]]) -> None:
    """Prints a line before and after each [op, backend, device]."""
    for each in asked:
        print(json.dumps({"begins": each}), flush=True)
        try:
            result = trial(*each)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            about = dict(zip(("op", "backend", "device"), each, strict=True))
            result = about | {"fine": False, "raised": f"{type(error).__name__}: {first}"}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
