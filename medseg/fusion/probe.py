"""The proof that a block computes what its form says: both formulas on random numbers.

It is made on a twin of the block on the CPU, so neither its weights nor its statistics, its hooks
or PyTorch's generators are touched. That what a twin is filled with is random lets gates at their
first values, as DANet's gamma of 0, hide nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from medseg.kernels._backend import without_autocast

from .block import Fused, put
from .parts import HOOKS

SHAPE = (3, -1, 4, 5)
CLOSE = {torch.float64: 1e-8, torch.float32: 1e-5}  # relative to the largest value


def why_unequal(block: nn.Module, layer: type[Fused]) -> str | None:
    """Why a block may not be replaced by the layer, or None: they agree on random numbers.

    Outputs, gradients and the statistics of norms are compared, in training and in eval mode.
    """
    shape = [layer.channels(block) if side < 0 else side for side in SHAPE]
    generator = torch.Generator().manual_seed(0)
    dtype = _wide(block) if layer.own_weights else torch.float64
    x = torch.randn(shape, generator=generator, dtype=dtype)
    with torch.inference_mode(False), torch.enable_grad(), without_autocast(x):
        try:
            plain, ours = (twin(block, dtype, layer.own_weights) for _ in range(2))
            put(ours, layer, None)
            if reason := layer.why_not(ours):  # else the original would meet itself
                return reason
            for training in (True, False):
                expected, got = (_found(m.train(training), x) for m in (plain, ours))
                if not _alike(expected, got):
                    mode = "training" if training else "eval"
                    return f"in {mode} mode its forward computes something else than this form"
        except Exception as error:
            return f"it cannot be tried on random numbers: {type(error).__name__}: {error}"
    return None


def _wide(block: nn.Module) -> torch.dtype:
    """The dtype of a block, at least float32."""
    return torch.promote_types(next(block.parameters()).dtype, torch.float32)


def twin(block: nn.Module, dtype: torch.dtype, own_weights: bool = False) -> nn.Module:
    """A module of the same structure on the CPU, without hooks.

    Args:
        block: what it is like; nothing of it is shared but what is no tensor of it and no part.
        dtype: of its parameters and buffers.
        own_weights: keeps parameters and buffers, in place of random ones.
    """
    generator = torch.Generator().manual_seed(1)

    def fill(t: Tensor | None, buffer: bool) -> Any:
        if t is None:
            return None
        if not t.is_floating_point():
            return torch.zeros(t.shape, dtype=t.dtype) if t.is_meta else t.detach().cpu().clone()
        if own_weights:
            return t.detach().to("cpu", dtype, copy=True)
        if buffer:  # may be a variance
            return torch.rand(t.shape, generator=generator, dtype=dtype) + 0.5
        fan = max(1, t[:1].numel()) if t.dim() > 1 else 1
        return torch.randn(t.shape, generator=generator, dtype=dtype) / fan**0.5

    return _twin(block, fill, {})


def _twin(block: nn.Module, fill: Callable[..., Any], made: dict[Any, Any]) -> nn.Module:
    if block in made:
        return made[block]
    copy = made[block] = block.__new__(type(block))
    state: dict[str, Any] = dict(vars(block))
    state |= {hooks: type(state[hooks])() for hooks in HOOKS}
    state["_parameters"] = {
        name: p if p is None else nn.Parameter(fill(p, False), p.requires_grad)
        for name, p in block._parameters.items()
    }
    state["_buffers"] = {name: fill(b, True) for name, b in block._buffers.items()}
    state["_modules"] = {
        name: part if part is None else _twin(part, fill, made)
        for name, part in block._modules.items()
    }
    vars(copy).update(state)
    return copy


def _found(block: nn.Module, x: Tensor) -> list[Tensor | None]:
    """Output, gradients and buffers of one step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = x.clone().requires_grad_()
        out = block(x)
        if not isinstance(out, Tensor):
            raise TypeError(f"it returns {type(out).__name__}, not a tensor")
        asked = [x, *(p for p in block.parameters() if p.requires_grad)]
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        grads = torch.autograd.grad((out * weights.cos()).sum(), asked, allow_unused=True)
        with torch.no_grad():
            quiet = block(x)
    return [out, quiet, *grads, *block.buffers()]


def _alike(expected: list[Tensor | None], got: list[Tensor | None]) -> bool:
    return all(_close(a, b) for a, b in zip(expected, got, strict=True))


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.shape != b.shape or a.dtype is not b.dtype:
        return False
    limit = CLOSE.get(a.dtype, 0.0) * (max(1.0, float(a.detach().abs().max())) if a.numel() else 1)
    return bool(torch.isfinite(a).all()) and bool(((a - b).abs() <= limit).all())
