"""The two ways of position attention that never hold the whole L x M matrix.

"flash": PyTorch's fused CPU attention. "blocks": as many rows of the matrix as fit in cache, by
PyTorch's matrix products and softmax; backward forms each block again. Public
`scaled_dot_product_attention` takes the fused way on a CPU only where D = E, nothing is dropped and
the widths are dense in memory, and else holds the whole matrix (PyTorch 2.13, seen in its
profiler); hence the rule of `takes_flash`.

Milliseconds of two quiet AVX-512 cores with AMX, batch 1, forward / forward + backward, medians of
turns, huge pages on; flash drops nothing, and pads where D and E differ:

    L     D    E    dtype     dropout  plain formula  flash         blocks
    256   128  128  float32            0.18 / 0.63    0.15 / 0.64   0.19 / 0.67
    1024  128  128  float32            3.5 / 10.3     1.8 / 7.3     2.4 / 8.1
    4096  128  128  float32            47 / 127       28 / 113      38 / 131
    1024  256  256  float32            3.9 / 11.2     3.5 / 12.7    3.9 / 13.6
    256   32   256  float32            0.20 / 0.67    0.30 / 1.18   0.19 / 0.65
    4096  8    64   float32            32 / 82        16 / 73       19 / 59
    4096  32   256  float32            52 / 154       56 / 205      44 / 131
    1024  256  256  bfloat16           1.7 / 4.9      0.9 / 5.4     3.0 / 8.5
    4096  128  128  bfloat16           39 / 88        7.4 / 61      31 / 103
    4096  8    64   bfloat16           35 / 74        5.9 / 45      15 / 55
    4096  32   256  bfloat16           39 / 86        12 / 81       24 / 87
    256   128  128  float32   0.1      0.55 / 1.05                  0.32 / 0.93
    1024  256  256  float32   0.1      12.3 / 23.1                  5.2 / 16.2
    4096  128  128  float32   0.1      156 / 271                    60 / 175
    1024  256  256  bfloat16  0.1      9.8 / 12.8                   4.3 / 11.2
    4096  128  128  bfloat16  0.1      145 / 225                    51 / 143

What it costs not to keep the matrix is that backward forms it again: for 1024 tokens as wide as 256
that is more than the fusion saves.
"""

import math
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
_softmax_backward = torch.ops.aten._softmax_backward_data.out
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


def needs_output(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether backward reads what forward returned; blocks form it again."""
    return _may_take_flash(query, value, dropout)


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
    saved = new_saved(query, value, dropout).zero_()
    if not some:
        return out, saved
    blocks = _Blocks(query, key, value.dtype, scale, seed, dropout)
    for images, rows, shape in blocks:
        weights = blocks.half(blocks.kept(blocks.weights(images, rows, shape), shape))
        torch.bmm(weights, value[images], out=out[images, rows])
    return out, saved


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor | None,
    saved: Tensor,
    seed: Tensor | None,
    scale: float,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (grad_query, grad_key, grad_value), contiguous; ``out`` where `needs_output`."""
    if grad_out.numel() == 0 or key.shape[1] == 0:
        found = query, key, value
        return tuple(torch.zeros_like(t, memory_format=torch.contiguous_format) for t in found)  # pyright: ignore
    if out is None or not takes_flash(query, key, value, dropout):
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


class _Blocks:
    """As many rows of the matrix as fit in cache, one block after the other.

    Room for a block is made once: to fill fresh pages costs more than to compute what goes there.
    What a method returns therefore lies in room that the next block takes again.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        half: torch.dtype,
        scale: float,
        seed: Tensor | None,
        dropout: float,
    ) -> None:
        self.query, self.scale, self.dropout = query, scale, dropout
        self.keys = key.to(accumulator(key.dtype))
        self.batch, self.length, self.count = query.shape[0], query.shape[1], key.shape[1]
        self.rows = min(self.length, max(FEWEST_ROWS, BLOCK // self.count))
        self.images = min(self.batch, max(1, BLOCK // (self.rows * self.count)))
        self._rooms: dict[tuple[str, torch.dtype], Tensor] = {}
        self._half = half
        self._generator = None
        if seed is not None:
            self._generator = torch.Generator(query.device).manual_seed(int(seed))

    def __iter__(self) -> Iterator[tuple[slice, slice, tuple[int, int, int]]]:
        for n in range(0, self.batch, self.images):
            for i in range(0, self.length, self.rows):
                images, rows = min(self.images, self.batch - n), min(self.rows, self.length - i)
                shape = (images, rows, self.count)
                yield slice(n, n + images), slice(i, i + rows), shape

    def room(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """Room under a name, whatever it holds now."""
        dtype, count = dtype or self.keys.dtype, math.prod(shape)
        if (name, dtype) not in self._rooms:  # the first block is the largest
            self._rooms[name, dtype] = self.keys.new_empty(count, dtype=dtype)
        return self._rooms[name, dtype][:count].view(shape)

    def weights(self, images: slice, rows: slice, shape: tuple[int, int, int]) -> Tensor:
        """Rows of the matrix; scores are float32 at least, since energies may be large."""
        query = self.query[images, rows].to(self.keys.dtype) * self.scale
        scores = torch.bmm(query, self.keys[images].mT, out=self.room("scores", shape))
        return torch.softmax(scores, 2, out=self.room("weights", shape))

    def mask(self, shape: tuple[int, int, int]) -> Tensor | None:
        """0 where a weight is dropped, else 1 / (share that is kept), the same in every run over
        all blocks; four draws of 64 random bits. None where nothing is dropped."""
        if self._generator is None:
            return None
        count, dropped = math.prod(shape), min(round(self.dropout * LEVELS), LEVELS - 1)
        words = self.room("words", (-(-count // 4),), torch.int64)
        bits = words.random_(-(2**63), None, generator=self._generator).view(torch.int16)[:count]
        mask = self.room("mask", shape)
        torch.ge(bits.view(shape), dropped - LEVELS // 2, out=mask)
        return mask.mul_(LEVELS / (LEVELS - dropped))

    def product(self, a: Tensor, b: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """a @ b in float32 at least, in the room of the scores, whose softmax is there already."""
        scores = self.room("scores", shape)
        if a.dtype is scores.dtype:
            return torch.bmm(a, b, out=scores)
        return scores.copy_(torch.bmm(a, b, out=self.room("half", shape, a.dtype)))

    def kept(self, weights: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """``weights`` after dropout, in place."""
        mask = self.mask(shape)
        return weights if mask is None else weights.mul_(mask)

    def half(self, block: Tensor) -> Tensor:
        """A block in the dtype of the values."""
        if block.dtype is self._half:
            return block
        return self.room("half", tuple(block.shape), self._half).copy_(block)


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
    blocks = _Blocks(query, key, value.dtype, scale, seed, dropout)
    wide = blocks.keys.dtype
    grads = [torch.zeros(t.shape, dtype=wide, device=t.device) for t in (query, key, value)]
    grad_query, grad_key, grad_value = grads
    for images, rows, shape in blocks:
        weights, mask = blocks.weights(images, rows, shape), blocks.mask(shape)
        grad = grad_out[images, rows]
        moved = blocks.product(grad, value[images].mT, shape)
        used = weights
        if mask is not None:
            moved.mul_(mask)
            used = mask.mul_(weights)
        _add_product(grad_value[images], blocks.half(used).mT, grad)
        scored = blocks.room("mask", shape)
        _softmax_backward(moved, weights, 2, wide, grad_input=scored)
        scored = blocks.half(scored)
        _add_product(grad_query[images, rows], scored, key[images])
        _add_product(grad_key[images], scored.mT, query[images, rows])
    return (
        grad_query.mul_(scale).to(value.dtype),
        grad_key.mul_(scale).to(value.dtype),
        grad_value.to(value.dtype),
    )


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype is a.dtype:
        total.baddbmm_(a, b)
    else:
        total += torch.bmm(a, b)


def with_mask(
    query: Tensor, key: Tensor, value: Tensor, seed: Tensor, scale: float, dropout: float
) -> Tensor:
    """The formula with the mask that ``seed`` stands for, for second derivatives; holds L x M."""
    blocks = _Blocks(query.detach(), key.detach(), value.dtype, scale, seed, dropout)
    mask = query.new_empty((*query.shape[:2], key.shape[1]))
    for images, rows, shape in blocks:
        kept = blocks.mask(shape)
        if kept is not None:
            mask[images, rows] = kept.to(mask.dtype)
    weights = (query @ key.mT).to(accumulator(query.dtype)).mul(scale).softmax(2)
    return (weights.to(value.dtype) * mask) @ value
