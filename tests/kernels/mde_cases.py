"""The MDE filter as the tests of its GPU backends call it."""

import torch

from medseg.kernels import mde_concat, mde_filter
from medseg.kernels.mde.reference import mde_reference

THREE, MDE = (3, 5, 7), (0.5, 2.0, 1.5, 1.0)
# Every radius, bank and padding; scales that leave a radius out; one row of gains for all.
KINDS = (
    (THREE, "binomial", "zero", False),
    (THREE, "gauss", "reflect", False),
    ((3, 7), "opencv", "zero", True),
    ((5,), "gauss(0.2)", "reflect", True),
    ((3,), "cross", "reflect", False),
    ((3, 5), "box", "zero", False),
)


def mde_gains(channels, scales=THREE, shared=False):
    generator = torch.Generator().manual_seed(channels)
    return torch.randn((1 if shared else channels, len(scales) + 1), generator=generator)


def mde_pair(backend, *kind):
    """(fused, reference) of x and gains."""

    def fused(x, gains):
        return mde_filter(x, gains, *kind, backend=backend)

    def reference(x, gains):
        return mde_reference(x, gains, *kind)

    return fused, reference


def concat_pair(backend, *kind):
    """(fused, reference) of the map from below, the skip and the gains."""

    def fused(up, skip, gains):
        return mde_concat(up, skip, gains, *kind, backend=backend)

    def reference(up, skip, gains):
        return torch.cat([up, mde_reference(skip, gains, *kind)], dim=1)

    return fused, reference


def example():
    """The map of the specification's worked example, (1, 1, 8, 8)."""
    h, w = torch.arange(8.0)[:, None], torch.arange(8.0)
    return ((3 * h + 5 * w + h * w) % 7 - 3)[None, None]


# Of the example under the preset mde: values of y by position, gradient of the gains and some of
# the gradient of x where that of y is 1.
EXAMPLE = {
    "zero": (
        {(0, 0): -2.201904296875, (0, 7): -2.5621337890625, (3, 4): 2.772705078125,
         (7, 7): -2.3963623046875},
        (18 - 20.25, 20.25 - 20.51171875, 20.51171875 - 20.26025390625, 20.26025390625),
        {},
    ),
    "reflect": (
        {(0, 0): -2.27734375, (0, 7): -3.01708984375, (3, 4): 2.772705078125,
         (7, 7): -2.81103515625},
        (18 - 20.1875, 20.1875 - 21.9921875, 21.9921875 - 23.200439453125, 23.200439453125),
        {(0, 0): 0.89208984375, (0, 3): 0.947998046875, (1, 1): 1.3006591796875,
         (3, 3): 0.9842529296875},
    ),
}  # fmt: skip


def check_example(backend, pad, device="cpu"):
    values, grad_gains, grad_x = EXAMPLE[pad]
    x = example().to(device).requires_grad_()
    gains = torch.tensor([MDE], device=device, requires_grad=True)
    y = mde_filter(x, gains, pad=pad, backend=backend)
    got = torch.autograd.grad(y.sum(), [x, gains])
    for found, wanted in ((y, values), (got[0], grad_x)):
        for (h, w), value in wanted.items():
            assert abs(float(found[0, 0, h, w].detach()) - value) < 1e-5
    want = torch.tensor([grad_gains])
    torch.testing.assert_close(got[1].cpu(), want, rtol=1e-5, atol=1e-5)


def check_exact(backend, dtype, device="cpu"):
    """What must come out to the bit, in either layout."""
    for layout in (torch.contiguous_format, torch.channels_last):
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(-15, 16, (2, 4, 8, 16), generator=generator).to(device, dtype)
        x = x.contiguous(memory_format=layout)
        for gains in ((1.0,) * 4, (0.75,) * 4):
            out = mde_filter(x, torch.tensor([gains], device=device), backend=backend)
            assert torch.equal(out, gains[0] * x)
        for name, bank, pair in (("sharp8", "box", (9.0, 0.0)), ("sharp5", "cross", (6.0, 1.0))):
            gains = torch.tensor([pair], device=device)
            out = mde_filter(x, gains, (3,), bank, backend=backend)
            want = mde_reference(x.double(), gains.double(), (3,), bank)
            assert torch.equal(out.double(), want.round()), name
