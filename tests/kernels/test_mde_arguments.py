"""What the MDE filter refuses, and in which words."""

import pytest
import torch

from medseg.kernels import mde_concat, mde_filter, mde_reference

MDE = torch.tensor([[0.5, 2.0, 1.5, 1.0]])
ONES = torch.ones(1, 2, 4, 4)
WIDTHS = "must name 3 widths from 0.001 to 1000, one a scale, got"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((ONES[0], MDE), r"x must be \(N, C, H, W\), got \(2, 4, 4\)"),
        ((ONES.int(), MDE), "x must be float16.* got torch.int32"),
        ((ONES[:, :0], MDE), r"x must have C, H and W of at least 1, got \(1, 0, 4, 4\)"),
        ((ONES, MDE[0]), r"gains must be \(2, 4\) or \(1, 4\), got \(4,\)"),
        ((ONES, MDE.expand(3, 4)), r"gains must be \(2, 4\) or \(1, 4\), got \(3, 4\)"),
        ((ONES, MDE.half()), "gains must be torch.float32 beside torch.float32, got torch.float16"),
        ((ONES, MDE.double()), "gains must be torch.float32 .* got torch.float64"),
        ((ONES, MDE.to("meta")), "gains must be on cpu like x, got meta"),
        ((ONES, MDE, (3, 4, 5)), r"scales must be odd and at least 3, got \(3, 4, 5\)"),
        ((ONES, MDE, ()), r"scales must be odd and at least 3, got \(\)"),
        ((ONES, MDE, (3, 7, 5)), r"scales must rise, got \(3, 7, 5\)"),
        ((ONES, MDE, (3, 5, 7), "sinc"), "bank must be one of binomial.* got 'sinc'"),
        ((ONES, MDE, (3, 5, 7), "box(1)"), r"bank must be one of binomial.* got 'box\(1\)'"),
        ((ONES, MDE, (3, 5, 7), "cross"), r"bank cross has the scales \(3,\), got \(3, 5, 7\)"),
        ((ONES, MDE, (3, 5, 9), "opencv"), r"bank opencv has the scales \(3, 5, 7\), got"),
        ((ONES, MDE, (3, 5, 7), "gauss(1,2)"), WIDTHS),
        ((ONES, MDE, (3, 5, 7), "gauss(1,2,x)"), WIDTHS),
        ((ONES, MDE, (3, 5, 7), "gauss(1,2,nan)"), WIDTHS),
        ((ONES, MDE, (3, 5, 7), "gauss(1,2,inf)"), WIDTHS),
        ((ONES, MDE, (3, 5, 7), "gauss(1,2,1e-200)"), WIDTHS),
        ((ONES, MDE, (3, 5, 7), None), "bank must be one of binomial.* got None"),
        ((ONES, MDE, 3), "scales must be a sequence of integers, got 3"),
        ((ONES, MDE, (3.0, 5.0, 7.0)), r"scales must be a sequence of integers, got \(3.0"),
        ((ONES, MDE, (3, 5, 7), "box", "same"), "pad must be one of zero, reflect, got 'same'"),
        ((ONES[:, :, :3], MDE, (3, 5, 7), "box", "reflect"), "of at least 4 to reflect, got"),
    ],
)
def test_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        mde_filter(*arguments)


@pytest.mark.parametrize(
    ("up", "words"),
    [
        (ONES[0], r"up must be \(N, C, H, W\), got \(2, 4, 4\)"),
        (ONES[:, :, :3], r"up must be \(1, C, 4, 4\) like skip, got \(1, 2, 3, 4\)"),
        (ONES.half(), "up must be torch.float32 like skip, got torch.float16"),
        (ONES.to("meta"), "up must be on cpu like skip, got meta"),
    ],
)
def test_concat_refuses(up, words):
    with pytest.raises(ValueError, match=words):
        mde_concat(up, ONES, MDE)
    with pytest.raises(ValueError, match=r"skip must be \(N, C, H, W\), got"):
        mde_concat(ONES, ONES[0], MDE)


def test_wide_scales_go_through_the_reference():
    x, gains = torch.randn(1, 2, 12, 12), torch.tensor([[0.5, 2.0, 1.0]])
    got = mde_filter(x, gains, (3, 9))
    assert torch.equal(got, mde_reference(x, gains, (3, 9)))
    words = r"backend 'cpu' cannot run mde: .*fast backends take scales up to 7, got \(3, 9\)"
    with pytest.raises(RuntimeError, match=words):
        mde_filter(x, gains, (3, 9), backend="cpu")


def autocast(enabled=True):
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


@pytest.mark.parametrize("scales", [(3, 5, 7), (3, 5, 9)])
def test_autocast_leaves_the_reference_in_float32(scales):
    x, gains = torch.randn(1, 3, 12, 12, requires_grad=True), MDE.clone().requires_grad_()
    found = []
    for enabled in (False, True):
        with autocast(enabled):
            y = mde_filter(x, gains, scales, backend="reference")
            found.append([y, *torch.autograd.grad(y.square().sum(), (x, gains))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_autocast_leaves_gradients_to_be_differentiated_again_in_float32():
    x, gains = torch.randn(1, 3, 12, 12, requires_grad=True), MDE.clone().requires_grad_()
    found = []
    for enabled in (False, True):
        with autocast(enabled):
            y = mde_filter(x, gains)
            found.append(torch.autograd.grad(y.square().sum(), (x, gains), create_graph=True))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_compiled_and_exported_reference_under_autocast():
    x = torch.randn(1, 3, 12, 12)

    class Filter(torch.nn.Module):
        def forward(self, x):
            return mde_filter(x, MDE, (3, 5, 9))

    want = Filter()(x)
    for enabled in (False, True):
        with autocast(enabled):
            compiled = torch.compile(Filter(), fullgraph=True, backend="aot_eager")
            assert torch.equal(compiled(x), want)
            assert torch.equal(torch.export.export(Filter(), (x,)).module()(x), want)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_concat_takes_the_wider_dtype_under_autocast(backend):
    up, skip = torch.randn(1, 2, 5, 6).bfloat16(), torch.randn(1, 3, 5, 6)
    with autocast():
        got = mde_concat(up, skip, MDE, backend=backend)
        swapped = mde_concat(skip, up, MDE, backend=backend)
    assert torch.equal(got, torch.cat([up, mde_filter(skip, MDE, backend=backend)], dim=1))
    assert torch.equal(swapped, mde_concat(skip, up.float(), MDE, backend=backend))
