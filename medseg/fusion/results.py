"""What a model returns for an input, gradients included, and how far two such results are apart."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # of outputs, relative to the largest
HALF_TOLERANCE = 2e-2
GRADIENTS = 10.0  # times as much for gradients, which are long sums
MARGIN = 8.0


class Difference(NamedTuple):
    """How far two results are apart and how far they may be, both relative to the largest."""

    found: float
    allowed: float

    @property
    def excess(self) -> float:
        return self.found / self.allowed if self.found else 0.0


@contextmanager
def as_found(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Leaves buffers and random numbers as they were."""
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in kept:
                    buffer.copy_(value)


class Results(NamedTuple):
    outputs: list[Tensor]
    gradients: list[Tensor]


def results(
    model: nn.Module, inputs: tuple[Any, ...], device: torch.device, hooks: dict[nn.Module, Any]
) -> Results:
    """Outputs with and without gradients, statistics of norms, and gradients, of a run.

    Gradients of inputs are apart, those of parameters together: some of them, as of a bias in
    front of a norm, are nothing but rounding.
    """
    with ExitStack() as stack, as_found(model, device):
        for block, hook in hooks.items():
            stack.callback(block.register_forward_hook(hook).remove)
        torch.manual_seed(0)
        inputs = tree_map(leaf, inputs)
        outputs = floats(model(*inputs))
        leaves, learned = floats(inputs), [p for p in model.parameters() if p.requires_grad]
        graded = [out for out in outputs if out.requires_grad]
        found: Any = [None] * (len(leaves) + len(learned))
        if graded:
            weights = [torch.linspace(-1, 1, o.numel(), device=o.device).cos() for o in graded]
            grads = [w.view(o.shape).to(o.dtype) for w, o in zip(weights, graded, strict=True)]
            found = torch.autograd.grad(graded, [*leaves, *learned], grads, allow_unused=True)
        with torch.no_grad():
            quiet = floats(model(*inputs))
        state = [b.detach().clone() for b in model.buffers() if b.is_floating_point()]
    kept = [t.detach() for t in (*outputs, *quiet)]
    together = [g.flatten() for g in found[len(leaves) :] if g is not None]
    apart = [g for g in found[: len(leaves)] if g is not None]
    return Results([*kept, *state], [*apart, *([torch.cat(together)] if together else [])])


def leaf(t: Any) -> Any:
    if not isinstance(t, Tensor) or not t.is_floating_point():
        return t
    return t.detach().clone().requires_grad_()


def floats(tree: Any) -> list[Tensor]:
    """The floating-point tensors of a tree of containers."""
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.is_floating_point()]


def difference(plain: Results, fused: Results, jittered: Results, times: float = 1.0) -> Difference:
    """The worst difference of outputs and gradients; they may be ``times`` `TOLERANCE` apart."""
    outputs = _worst(plain.outputs, fused.outputs, jittered.outputs, times)
    if len(plain.gradients) != len(fused.gradients):
        return Difference(math.inf, 1.0)
    gradients = _worst(plain.gradients, fused.gradients, jittered.gradients, times * GRADIENTS)
    return max(outputs, gradients, key=lambda d: d.excess)


def _worst(
    plain: list[Tensor], fused: list[Tensor], jittered: list[Tensor], times: float
) -> Difference:
    worst = Difference(0.0, 1.0)
    for a, b, noisy in zip(plain, fused, jittered, strict=True):
        if a.shape != b.shape or a.dtype is not b.dtype:
            return Difference(math.inf, 1.0)
        allowed = max(TOLERANCE.get(a.dtype, HALF_TOLERANCE) * times, MARGIN * distance(a, noisy))
        worst = max(worst, Difference(distance(a, b), allowed), key=lambda d: d.excess)
    return worst


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest number; of equal infinities and NaN none."""
    if a.numel() == 0:
        return 0.0
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a.double() - b.double()).abs()).max()
    scale = torch.where(a.isfinite(), a.double().abs(), 0.0).max()
    if not bool(gap.isfinite()):
        return math.inf
    return float(gap / scale) if scale else float(gap)
