"""ECA with a residual and a pool: what every backend is held to."""

import torch
import torch.nn.functional as F

from medseg.kernels import eca_reference
from tests.kernels.truth import check, coarse

POOLED = (
    (4, 8, 16, 16),
    (2, 7, 17, 19),
    (1, 3, 2, 2),
    (3, 16, 33, 2),
    (1, 5, 3, 70),
    (5, 64, 8, 8),
)


def pooled_shape(x, pool):
    n, c, h, w = x.shape
    return (n, c, h // pool, w // pool)


def joined(op, pool, **options):
    """Both outputs of the op with a residual as one, of the pooled shape."""

    def run(x, residual, weight, bias=None):
        out, summed = op(x, weight, bias, residual=residual, pool=pool, **options)
        return out + F.avg_pool2d(summed, pool)

    return run


def check_pool(op, x, learned, **options):
    """The op with pool, with a residual and with both."""
    learned = [t.to(x.device) for t in learned]
    shape = pooled_shape(x, 2)
    check(
        lambda y, *p: op(y, *p, pool=2, **options),
        lambda y, *p: eca_reference(y, *p, pool=2),
        x,
        learned,
        shape=shape,
    )
    x, residual = coarse(x), coarse(x.flip(0).roll(1, 3) * 1.7)
    for pool in (1, 2):
        fused, reference = joined(op, pool, **options), joined(eca_reference, pool)
        check(fused, reference, x, [residual, *learned], shape=pooled_shape(x, pool))


def first_of_equals(op, x, **options):
    """Gradients where equal values meet, the gate being exactly 1/2 and its own gradient 0."""
    out, summed = op(x, x.new_zeros(3), residual=torch.ones_like(x), pool=2, **options)
    grad = torch.arange(1.0, 1 + out.numel()).view(out.shape).to(out)
    return torch.autograd.grad((out, summed), x, (grad, torch.ones_like(summed)))[0]
