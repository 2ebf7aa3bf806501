"""The rule every fast op is held to, and the inputs it is held to it on.

Truth is the reference in float64. The fused error may be at most twice the error of the plain
reference at the same dtype (three times for gradients), plus a floor of a few roundings of the
accumulator: where the plain reference happens to be exact, ours may still round.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from medseg.kernels import _cpu_launch
from medseg.kernels._backend import is_channels_last

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# A power of two, an odd one, smaller than any block or vector, a tall and a flat one, one of a
# model; five images leave a last one for two threads to share.
SHAPES = (
    (4, 8, 16, 16),
    (2, 7, 17, 19),
    (1, 3, 2, 2),
    (3, 16, 33, 1),
    (1, 5, 1, 9),
    (5, 64, 32, 32),
)
FLOOR = {torch.float64: 1e-13}  # relative to the largest value; float32 accumulators otherwise
FLOOR_FLOAT32 = 1e-6


def error(got: Tensor, truth: Tensor) -> float:
    """Largest deviation, relative to the largest value of the truth."""
    if truth.numel() == 0:
        return 0.0
    truth = truth.detach()
    scale = float(truth.abs().max())
    return float((got.detach().double().cpu() - truth).abs().max()) / (scale or 1.0)


def gradients(fn: Callable[..., Tensor], tensors: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    """[output, gradient of every tensor], the tensors' strides kept."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = fn(*leaves)
    return [out, *torch.autograd.grad(out, leaves, cotangent.to(out))]


def check(
    fused: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    x: Tensor,
    params: list[Tensor],
    *,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
) -> None:
    """Holds ``fused(x, *params)`` and its gradients to the rule; x's layout must be kept.

    ``shape`` of the output where it is not that of x.
    """
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(shape or x.shape, generator=generator, dtype=torch.float64).to(x)
    wide = [t.detach().double().cpu() for t in (x, *params)]
    truth = gradients(reference, wide, cotangent.double().cpu())
    plain = gradients(reference, [x, *params], cotangent)
    got = gradients(fused, [x, *params], cotangent)
    floor = FLOOR.get(x.dtype, FLOOR_FLOAT32)
    names = ("out", "grad_x", *(f"grad of parameter {i}" for i in range(len(params))))
    for i, (name, t, p, g) in enumerate(zip(names, truth, plain, got, strict=True)):
        allowed = (2 if i == 0 else 3) * error(p, t) + floor * (1 if i < 2 else 10)
        assert error(g, t) <= allowed, f"{name}: {error(g, t):.3g} > {allowed:.3g}"
        assert g.dtype == p.dtype and g.shape == p.shape, name
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    assert got[0].is_contiguous(memory_format=layout)


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Exactly ``count`` threads, however small the map; its parts may then be empty."""
    before, grain = torch.get_num_threads(), _cpu_launch.GRAIN
    torch.set_num_threads(count)
    _cpu_launch.GRAIN = 1
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _cpu_launch.GRAIN = grain


def coarse(x: Tensor) -> Tensor:
    """Cut to sixteenths in [-4, 4]: sums of two are exact in every dtype, and many are equal."""
    return (x * 16).round().clamp(-64, 64) / 16


def layouts(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> Iterator[Tensor]:
    """The same kind of map contiguous, channels_last, and cut out of a larger one.

    Where H or W is 1, also turned: dense still, with strides of that axis that mean nothing.
    """
    generator = torch.Generator().manual_seed(hash(shape) % 1000)
    n, c, h, w = shape
    large = torch.randn((n, c + 2, h + 1, w + 3), generator=generator, dtype=torch.float64)
    large = large.to(device, dtype)
    cut = large[:, 1:-1, 1:, 2:-1]
    yield cut.contiguous()
    yield cut.contiguous(memory_format=torch.channels_last)
    yield cut
    if 1 in (h, w):
        for layout in (torch.contiguous_format, torch.channels_last):
            yield cut.mT.contiguous(memory_format=layout).mT
