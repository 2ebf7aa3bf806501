"""Launchers of the compiled CUDA kernels of the MDE filter."""

import functools

from torch import Tensor

from .._backend import like_input, native
from .._cuda_launch import DTYPES, on_device, scratch
from .access import channels_dense, output, readable, vector
from .rows import rows_of

NOTHING = (0, (0, 0, 0, 0))


def forward(
    x: Tensor,
    up: Tensor | None,
    gains: Tensor,
    scales: tuple[int, ...],
    bank: str,
    pad: str,
) -> Tensor:
    """The filtered map, behind the channels of ``up`` if that is given."""
    cuda = native("_cuda")
    out, target = output(x, up)
    if target.numel() == 0:
        return out
    x, gains = readable(x, out), gains.contiguous()
    shape = _shape(cuda, [x, target], False, scales, bank, pad)
    with on_device(x) as (device, stream):
        cuda.mde_forward(
            device, stream, DTYPES[x.dtype], shape, _map(x), _map(target), *_gains(gains)
        )
    return out


def backward(
    grad_out: Tensor,
    x: Tensor | None,
    gains: Tensor,
    offset: int,
    scales: tuple[int, ...],
    bank: str,
    pad: str,
    need_input: bool,
    need_gains: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """(grad_x or None, grad_gains float32 or None), reading grad_out from channel ``offset`` on."""
    cuda = native("_cuda")
    grad = grad_out.narrow(1, offset, grad_out.shape[1] - offset)
    grad_x = like_input(grad_out, grad.shape) if need_input else None
    if grad.numel() == 0:
        return grad_x, gains.new_zeros(gains.shape) if need_gains else None
    grad_gains = gains.new_empty(gains.shape) if need_gains else None
    other = readable(x, grad_out) if need_gains and x is not None else None
    grad, gains = readable(grad, grad_out), gains.contiguous()
    maps = [t for t in (grad, grad_x, other) if t is not None]
    shape = _shape(cuda, maps, need_gains, scales, bank, pad)
    work = scratch(grad, cuda.mde_scratch(shape)) if need_gains else None
    with on_device(grad) as (device, stream):
        cuda.mde_backward(
            device, stream, DTYPES[grad.dtype], shape, _map(grad), _map(other), _map(grad_x),
            *_gains(gains), 0 if grad_gains is None else grad_gains.data_ptr(),
            0 if work is None else work.data_ptr(),
        )  # fmt: skip
    return grad_x, grad_gains


def _map(x: Tensor | None) -> tuple[int, tuple[int, ...]]:
    return NOTHING if x is None else (x.data_ptr(), x.stride())


def _gains(gains: Tensor) -> tuple[int, int]:
    """Address, and what lies between two channels' gains."""
    return gains.data_ptr(), gains.shape[1] if gains.shape[0] > 1 else 0


def _shape(
    cuda,  # noqa: ANN001  (types of the compiled module)
    maps: list[Tensor],
    products: bool,
    scales: tuple[int, ...],
    bank: str,
    pad: str,
):
    last = channels_dense(maps[1] if len(maps) > 1 else maps[0])
    widest = 4 if last or products else 16 // maps[0].element_size()
    vec = vector(maps, last, (widest,))
    return cuda.MdeShape(maps[0].shape, last, pad == "reflect", vec, _bank(cuda, scales, bank))


@functools.cache
def _bank(cuda, scales: tuple[int, ...], bank: str):  # noqa: ANN001
    rows = rows_of(scales, bank)
    places = [rows.radii.index(r) + 1 if r in rows.radii else 0 for r in (1, 2, 3)]
    missing = 3 - rows.radius
    return cuda.MdeBank(
        len(scales), places, (*rows.norm, *(0.0,) * missing),
        (*rows.row, *(0.0,) * (4 * missing)), rows.cross,
    )  # fmt: skip
