"""The two ways of position attention that never hold the whole L x M matrix.

"flash": PyTorch's fused CPU attention. "blocks": as many rows of the matrix as fit in cache, by
PyTorch's matrix products and softmax; backward forms each block again. Public
`scaled_dot_product_attention` takes the fused way on a CPU only where D = E, nothing is dropped and
the widths are dense in memory, and else holds the whole matrix (PyTorch 2.13, seen in its
profiler); hence the rule of `takes_flash`.

Milliseconds of one busy AVX-512 core with AMX, batch 1, forward / forward + backward, of this
loop before it kept scores of the half types in float32 (which costs blocks some time there):

    L     D    E    dtype     plain formula  flash (padded)  blocks
    256   128  128  float32   0.24 / 0.85    0.24 / 0.80     0.24 / 0.89
    1024  128  128  float32   5.6 / 16.3     3.5 / 12.0      3.9 / 17.1
    4096  128  128  float32   87 / 269       56 / 192        66 / 220
    256   32   256  float32   0.26 / 0.99    0.46 / 1.66     0.26 / 0.91
    4096  8    64   float32   55 / 155       32 / 104        29 / 98
    4096  32   256  float32   92 / 275       109 / 377       67 / 222
    4096  128  128  bfloat16  38 / 99        14 / 81         29 / 98
    4096  8    64   bfloat16  32 / 87        11 / 64         20 / 64
    4096  32   256  bfloat16  42 / 111       23 / 114        28 / 94
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from .._backend import accumulator

BLOCK = 1 << 19  # scores formed at once, 2 MB: 2^17 and 2^21 were up to 1.5 times slower
FEWEST_ROWS = 32
FEWEST_KEYS = 16  # of flash: with less than a vector of them PyTorch 2.13 turns a row of NaN into 0
LEVELS = 1 << 16  # steps in which a probability of dropout is told; the scale makes up for it

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def takes_flash(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether PyTorch's fused attention runs these; widths that differ are padded with zeros."""
    return key.shape[1] >= FEWEST_KEYS and _may_take_flash(query, value, dropout)


def _may_take_flash(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Without a look at the number of keys, on which torch.compile would have to guard.

    In float32 padding costs more than the fusion saves, in the half types it does not.
    """
    half = query.dtype in (torch.float16, torch.bfloat16)
    return not query.is_cuda and dropout == 0 and (half or query.shape[2] == value.shape[2])


def new_saved(query: Tensor, value: Tensor, dropout: float) -> Tensor:
    """What forward keeps beside its output: a number a row (N, 1, L) for flash, else nothing."""
    flash = _may_take_flash(query, value, dropout)
    rows = (query.shape[0], 1, query.shape[1]) if flash else (0,)
    return query.new_empty(rows, dtype=accumulator(query.dtype))


def forward(
    query: Tensor, key: Tensor, value: Tensor, seed: Tensor | None, scale: float, dropout: float
) -> tuple[Tensor, Tensor]:
    """Returns (out (N, L, E), saved)."""
    some = query.numel() and value.numel()
    if some and takes_flash(query, key, value, dropout):
        found, saved = _flash(*_heads(query, key, value), scale=scale)
        return found[:, 0, :, : value.shape[2]].contiguous(), saved.contiguous()
    out = value.new_zeros((query.shape[0], query.shape[1], value.shape[2]))
    saved = new_saved(query, value, dropout)
    if not some:
        return out, saved.zero_()
    query, key = _scores_of(query, scale), _scores_of(key)
    for images, rows, kept in _blocks(query, key, seed, dropout):
        weights = _weights(query[images, rows], key[images]).to(value.dtype)
        if kept is not None:
            weights.mul_(kept)
        torch.bmm(weights, value[images], out=out[images, rows])
    return out, saved.zero_()


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    saved: Tensor,
    seed: Tensor | None,
    scale: float,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (grad_query, grad_key, grad_value), contiguous."""
    if out.numel() == 0 or key.shape[1] == 0:
        found = query, key, value
        return tuple(torch.zeros_like(t, memory_format=torch.contiguous_format) for t in found)  # pyright: ignore
    if not takes_flash(query, key, value, dropout):
        return _backward_blocks(grad_out, query, key, value, seed, scale, dropout)
    heads = _heads(query, key, value, out, grad_out)
    grads = _flash_backward(heads[4], *heads[:4], saved, 0.0, False, scale=scale)
    wanted = zip(grads, (query, key, value), strict=True)
    return tuple(g[:, 0, :, : t.shape[2]].contiguous() for g, t in wanted)  # pyright: ignore


def _heads(*tokens: Tensor) -> list[Tensor]:
    """One head each, dense along a common width."""
    width = max(t.shape[2] for t in tokens)
    padded = (F.pad(t, (0, width - t.shape[2])) if t.shape[2] < width else t for t in tokens)
    return [(t if t.stride(2) == 1 else t.contiguous()).unsqueeze(1) for t in padded]


def _scores_of(tokens: Tensor, scale: float | None = None) -> Tensor:
    """Queries or keys as the scores want them: float32 at least, since energies may be large."""
    wide = tokens.to(accumulator(tokens.dtype))
    return wide if scale is None else wide * scale


def _weights(query: Tensor, key: Tensor) -> Tensor:
    return torch.softmax(torch.bmm(query, key.mT), 2)


def _blocks(
    query: Tensor, key: Tensor, seed: Tensor | None, dropout: float
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """(images, rows, mask of the kept weights) of each block, the same whenever it is asked."""
    batch, length, keys = query.shape[0], query.shape[1], key.shape[1]
    rows = min(length, max(FEWEST_ROWS, BLOCK // keys))
    images = min(batch, max(1, BLOCK // (rows * keys)))
    generator = None
    if seed is not None:
        generator = torch.Generator(query.device).manual_seed(int(seed))
    for n in range(0, batch, images):
        for i in range(0, length, rows):
            shape = (min(images, batch - n), min(rows, length - i), keys)
            kept = None if generator is None else _mask(shape, dropout, generator)
            yield slice(n, n + images), slice(i, i + rows), kept


def _mask(shape: tuple[int, int, int], dropout: float, generator: torch.Generator) -> Tensor:
    """0 where a weight is dropped, else 1 / (share that is kept); four draws of 64 random bits."""
    count, dropped = shape[0] * shape[1] * shape[2], min(round(dropout * LEVELS), LEVELS - 1)
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]
    kept = (bits >= dropped - LEVELS // 2).view(shape)
    return kept.to(torch.float32).mul_(LEVELS / (LEVELS - dropped))


def _backward_blocks(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seed: Tensor | None,
    scale: float,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """With P = softmax(S), P~ = P * mask: dV = P~' dO, dS = P (dP - sum(P dP)), dP = mask dO V'."""
    wide, half = accumulator(query.dtype), value.dtype
    scaled, keys = _scores_of(query, scale), _scores_of(key)
    grad_query = torch.empty_like(scaled, memory_format=torch.contiguous_format)
    grad_key = torch.zeros_like(keys, memory_format=torch.contiguous_format)
    grad_value = torch.zeros(value.shape, dtype=wide, device=value.device)
    for images, rows, kept in _blocks(query, key, seed, dropout):
        weights = _weights(scaled[images, rows], keys[images])
        grad = grad_out[images, rows]
        moved = torch.bmm(grad, value[images].mT).to(wide)
        used = weights
        if kept is not None:
            used = weights * kept
            moved.mul_(kept)
        grad_value[images] += torch.bmm(used.to(half).mT, grad)
        moved = torch.ops.aten._softmax_backward_data(moved, weights, 2, wide).to(half)
        grad_query[images, rows] = torch.bmm(moved, key[images])
        grad_key[images] += torch.bmm(moved.mT, query[images, rows])
    return (
        grad_query.mul_(scale).to(half),
        grad_key.mul_(scale).to(half),
        grad_value.to(half),
    )


def with_mask(
    query: Tensor, key: Tensor, value: Tensor, seed: Tensor, scale: float, dropout: float
) -> Tensor:
    """The formula with the mask that ``seed`` stands for, for second derivatives; holds L x M."""
    mask = query.new_empty((*query.shape[:2], key.shape[1]))
    for images, rows, kept in _blocks(query.detach(), key.detach(), seed, dropout):
        if kept is not None:
            mask[images, rows] = kept.to(mask.dtype)
    weights = (query @ key.mT).to(accumulator(query.dtype)).mul(scale).softmax(2)
    return (weights.to(value.dtype) * mask) @ value
