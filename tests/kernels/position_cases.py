"""Tokens, the rule and a seeded dropout for the tests of position attention."""

import torch

from medseg.kernels import position_attention, position_reference
from tests.kernels.truth import FLOOR, FLOOR_FLOAT32, error, gradients

HALF = (torch.float16, torch.bfloat16)


def tokens(n, length, keys, d, e, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, length, d), (n, keys, d), (n, keys, e))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def check(inputs, scale=None):
    """The rule of tests/kernels/truth.py, for tokens in place of a map.

    The fused way rounds the weights before they sum to one: a rounding of the dtype is allowed.
    """

    def fast(q, k, v):
        return position_attention(q, k, v, scale=scale)

    def plain(q, k, v):
        return position_reference(q, k, v, scale=scale)

    shape = (*inputs[0].shape[:2], inputs[2].shape[2])
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = gradients(plain, [t.double() for t in inputs], cotangent)
    plain_found = gradients(plain, inputs, cotangent)
    found = gradients(fast, inputs, cotangent)
    floor = FLOOR.get(inputs[0].dtype, FLOOR_FLOAT32) * 5
    rounding = torch.finfo(inputs[0].dtype).eps / 2
    for i, (t, p, g) in enumerate(zip(truth, plain_found, found, strict=True)):
        allowed = (2 if i == 0 else 3) * error(p, t) + floor + rounding
        assert error(g, t) <= allowed, f"{i}: {error(g, t):.3g} > {allowed:.3g}"
        assert g.dtype is p.dtype and g.shape == p.shape


def dropped(q, k, v, dropout=0.25, seed=3):
    torch.manual_seed(seed)
    return position_attention(q, k, v, dropout=dropout)
