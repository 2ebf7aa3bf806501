"""The attention gate's middle on Triton: one launch each way, 3R 2W and 5R 3W, the floor.

The maps are brought to one dense layout and read as flat memory.
"""

# ruff: noqa: ANN001, ANN201
# Triton declares what a kernel is given as constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false
import triton
import triton.language as tl
from torch import Tensor

from .._backend import like_input, like_layout

BLOCK_BYTES = 2048  # of each map and program: a 16-byte access for each of 128 threads


@triton.jit
def _relu(x):
    return tl.where(x <= 0.0, 0.0, x)  # NaN stays


@triton.jit
def gate_kernel(a_ptr, b_ptr, c_ptr, total_ptr, product_ptr, count, BLOCK: tl.constexpr):
    """total = A + B + C, product = A * B * C of BLOCK elements, A = relu(a) and so on."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < count
    a = _relu(tl.load(a_ptr + offs, mask=mask, other=0.0).to(tl.float32))
    b = _relu(tl.load(b_ptr + offs, mask=mask, other=0.0).to(tl.float32))
    c = _relu(tl.load(c_ptr + offs, mask=mask, other=0.0).to(tl.float32))
    tl.store(total_ptr + offs, (a + b + c).to(total_ptr.dtype.element_ty), mask=mask)
    tl.store(product_ptr + offs, (a * b * c).to(product_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gate_backward_kernel(
    total_ptr, product_ptr, a_ptr, b_ptr, c_ptr, grad_a_ptr, grad_b_ptr, grad_c_ptr, count,
    HAS_TOTAL: tl.constexpr, HAS_PRODUCT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad_a = grad_total + grad_product * B * C where a > 0, and so on in turn."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < count
    a = tl.load(a_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(c_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    grad_a = tl.zeros((BLOCK,), dtype=tl.float32)
    if HAS_TOTAL:
        grad_a += tl.load(total_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    grad_b = grad_a
    grad_c = grad_a
    if HAS_PRODUCT:
        grad = tl.load(product_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        grad_a += grad * _relu(c) * _relu(b)
        grad_b += grad * _relu(c) * _relu(a)
        grad_c += grad * (_relu(a) * _relu(b))
    kind = grad_a_ptr.dtype.element_ty
    tl.store(grad_a_ptr + offs, tl.where(a <= 0.0, 0.0, grad_a).to(kind), mask=mask)
    tl.store(grad_b_ptr + offs, tl.where(b <= 0.0, 0.0, grad_b).to(kind), mask=mask)
    tl.store(grad_c_ptr + offs, tl.where(c <= 0.0, 0.0, grad_c).to(kind), mask=mask)


def forward(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (total, product) in the layout of ``a``."""
    total, product = like_input(a), like_input(a)
    if total.numel():
        maps = [like_layout(a, t) for t in (a, b, c)]
        block, grid = _cut(a)
        gate_kernel[grid](*maps, total, product, a.numel(), BLOCK=block)
    return total, product


def backward(
    grad_total: Tensor | None, grad_product: Tensor | None, a: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of a, b and c; an absent gradient counts as zero."""
    found = like_input(a), like_input(a), like_input(a)
    if a.numel():
        maps = [like_layout(a, t) for t in (a, b, c)]
        grads = [maps[0] if g is None else like_layout(a, g) for g in (grad_total, grad_product)]
        block, grid = _cut(a)
        gate_backward_kernel[grid](
            *grads, *maps, *found, a.numel(), HAS_TOTAL=grad_total is not None,
            HAS_PRODUCT=grad_product is not None, BLOCK=block,
        )  # fmt: skip
    return found


def _cut(a: Tensor) -> tuple[int, tuple[int]]:
    block = BLOCK_BYTES // a.element_size()
    return block, (triton.cdiv(a.numel(), block),)
