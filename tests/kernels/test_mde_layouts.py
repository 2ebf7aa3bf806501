"""The MDE filter on maps whose axes of length 1 have strides of their own, and what it writes."""

import pytest
import torch

from medseg.kernels import mde_concat, mde_filter
from medseg.kernels.mde import native
from tests.kernels.test_mde import MDE, pair, some_gains
from tests.kernels.truth import DTYPES, check, layouts


def flat_maps(dtype=torch.float32):
    """Dense maps whose axes of length 1 have strides of their own."""
    yield torch.randn(2, 64, 1, 1).to(dtype, memory_format=torch.channels_last)
    yield torch.randn(2, 8, 1, 9).to(dtype).transpose(2, 3)
    yield torch.randn(2, 8, 9, 1).to(dtype).transpose(2, 3)
    yield torch.randn(2, 9, 1, 5).to(dtype).transpose(1, 2).as_strided((2, 1, 9, 5), (45, 5, 5, 1))
    yield torch.empty_strided((1, 20, 1, 1), (7, 1, 33, 9)).to(dtype).normal_()


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("dtype", (torch.float64, *DTYPES), ids=str)
def test_maps_one_wide_hold_the_rule(dtype):
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    for x in flat_maps(dtype):
        check(*pair((3, 5, 7), "binomial", "zero"), x, [some_gains(x.shape[1], 4, wide)])


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
def test_nothing_is_written_around_the_results(dtype, monkeypatch):
    buffers, guard = [], 512
    plain = native.empty_map

    def guarded(x, shape=None):
        model = plain(x, shape)
        size = 1 + sum((n - 1) * s for n, s in zip(model.shape, model.stride(), strict=True))
        buffers.append((torch.full((size + 2 * guard,), 7.0, dtype=x.dtype), size))
        return buffers[-1][0].as_strided(model.shape, model.stride(), guard)

    monkeypatch.setattr(native, "empty_map", guarded)
    maps = [*flat_maps(dtype), *layouts((3, 16, 33, 1), dtype), *layouts((2, 5, 1, 9), dtype)]
    for x in maps:
        for layout in (torch.contiguous_format, torch.channels_last):
            up = torch.randn(x.shape[0], 3, *x.shape[2:]).to(dtype, memory_format=layout)
            leaf, gains = x.detach().requires_grad_(), MDE.clone().requires_grad_()
            mde_filter(leaf, gains, backend="cpu").sum().backward()
            mde_concat(up, leaf, gains, backend="cpu").sum().backward()
    assert len(buffers) == 8 * len(maps)
    for buffer, size in buffers:
        assert (buffer[:guard] == 7).all() and (buffer[guard + size :] == 7).all()
