"""Depthwise convolutions with one fixed stencil, such as Sharp U-Net's, as the MDE filter."""

import itertools
from typing import Any

import torch
from torch import Tensor

from medseg.kernels import mde_filter
from medseg.kernels.mde.bank import quadrants

from .block import Fused

_SCALES = ((3,), (5,), (7,), (3, 5), (3, 7), (5, 7), (3, 5, 7))
_BANKS = (("cross", (3,)), *itertools.product(("box", "binomial", "opencv"), _SCALES))
_PADS = {"zeros": "zero", "reflect": "reflect"}
_CLOSE, _CLOSE_DOUBLE = 1e-6, 1e-13  # of the largest weight; float32 holds 6e-8 of it


class FusedStencil(Fused):
    """A depthwise nn.Conv2d of fixed weights, the same for all channels, that weigh the masks of
    the MDE filter."""

    label, op, names = "fixed stencil", "mde", ("conv2d",)
    extra = ("_masks", "_gains", "_found_in")
    own_weights = True
    weight: Tensor
    padding_mode: str
    _masks: tuple[str, tuple[int, ...]]
    _gains: Tensor

    @staticmethod
    def may_be(module: Any) -> bool:
        """Whether it is a depthwise convolution with one stencil for its several channels."""
        if not 1 < module.groups == module.in_channels == module.out_channels:
            return False
        weight = module.weight.detach()
        if weight.shape[-2:] == (1, 1) or not weight.is_floating_point():
            return False
        return weight.is_meta or bool((weight == weight[:1]).all())

    @staticmethod
    def why_not(block: Any) -> str | None:
        side = block.kernel_size[0]
        place = (block.kernel_size, block.padding, block.stride, block.dilation)
        if block.weight.is_meta:
            return "its weights are on the meta device, and what it computes hangs on their values"
        if block.weight.requires_grad:
            return "its weights are trained (requires_grad), a fixed stencil's are not"
        if block.bias is not None:
            return "it has a bias, the fused filter none"
        if place != ((side, side), (side // 2,) * 2, (1, 1), (1, 1)) or side not in (3, 5, 7):
            return "it is no 3x3, 5x5 or 7x7 convolution that keeps the size of the map"
        if block.padding_mode not in _PADS:
            return f"it pads by {block.padding_mode!r}, the fused filter by zeros or reflection"
        return _why_no_masks(block)

    @staticmethod
    def channels(block: Any) -> int:
        return block.in_channels

    def fused(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.dtype is not torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))  # as the convolution would
        bank, scales = self._masks
        gains = self._gains.to(x.device, torch.promote_types(x.dtype, torch.float32))
        pad = _PADS[self.padding_mode]
        return mde_filter(x, gains, scales, bank, pad, backend=self.backend)


def _why_no_masks(block: Any) -> str | None:
    """Finds the masks of the weight, once for each value that it takes."""
    if torch.compiler.is_compiling():
        return None
    weight = block.weight
    place = (weight._version, weight.data_ptr(), weight.dtype, weight.device)
    if vars(block).get("_found_in") == place:
        return None if block._masks is not None else _OTHER
    block._masks, block._gains, block._found_in = *_found(weight), place
    return None if block._masks is not None else _OTHER


_OTHER = "its stencil is not made of the masks of the MDE filter"


@torch.no_grad()
def _found(weight: Tensor) -> tuple[tuple[str, tuple[int, ...]] | None, Tensor]:
    """(bank, scales) whose masks the stencils of a weight (C, 1, k, k) are made of, or None, and
    the gains (1, S + 1) of the filter."""
    stencils = weight.detach().cpu().double()[:, 0]
    stencil = stencils[0]
    if not bool((stencils == stencil).all()):
        return None, weight.new_empty(0)
    close = _CLOSE_DOUBLE if weight.dtype is torch.float64 else _CLOSE
    limit = close * float(stencil.abs().max())
    for bank, scales in _BANKS:
        if max(scales) != stencil.shape[0]:
            continue
        masks = torch.stack([_whole(q) for q in quadrants(scales, bank)], -1)  # (k, k, S + 1)
        shares = torch.linalg.lstsq(masks.flatten(0, 1), stencil.flatten()[:, None]).solution
        if float((masks @ shares[:, 0] - stencil).abs().max()) <= limit:
            gains = shares[:, 0].cumsum(0)[None]  # a share is the step from one gain to the next
            return (bank, scales), gains.to(weight.device)
    return None, weight.new_empty(0)


def _whole(quadrant: tuple[tuple[float, ...], ...]) -> Tensor:
    """A mask (k, k) of its quadrant from the centre."""
    quarter = torch.tensor(quadrant, dtype=torch.float64)
    half = torch.cat((quarter[1:].flip(0), quarter))
    return torch.cat((half[:, 1:].flip(1), half), 1)
