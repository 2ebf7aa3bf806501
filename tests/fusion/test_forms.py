"""Each form, fused, computes what its published block does: outputs, gradients, statistics."""

import copy

import pytest
import torch

from bench.published import blocks
from medseg import fuse, unfuse
from medseg.fusion.block import Fused
from tests.models.watch import Ops

from .cases import FORMS, C, make

LAYOUTS = {"nchw": torch.contiguous_format, "last": torch.channels_last}


def step(block, x):
    """Everything that one step leaves: output, gradients, buffers."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = block(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    asked = [x, *(p for p in block.parameters() if p.requires_grad)]
    grads = torch.autograd.grad(out, asked, weights, allow_unused=True)
    with torch.no_grad():
        quiet = block(x)
    return [out, quiet, *grads, *block.buffers()]


def check_equal(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype is b.dtype and a.shape == b.shape
            largest = max(1.0, float(b.detach().abs().max()))
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * largest)


@pytest.mark.usefixtures("no_small_position")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FORMS)
def test_equals_the_published_block(name, layout, training):
    plain = make(name).double().train(training)
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).fused) == 1
    x = torch.randn(4, C, 9, 11, dtype=torch.float64)
    x = x.contiguous(memory_format=LAYOUTS[layout])
    with Ops() as ops:
        found = step(fused, x)
    assert FORMS[name][1] in {*ops.fused, None}  # and not the original once more
    check_equal(found, step(plain, x), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FORMS)
def test_as_close_in_other_dtypes(name, dtype):
    """The fused block is no further from the truth than the published one."""
    block = make(name).to(dtype).eval()
    truth = copy.deepcopy(block).double()
    x = torch.randn(2, C, 9, 11).to(dtype)
    with torch.no_grad():
        expected, plain = truth(x.double()), block(x)
        assert len(fuse(block).fused) == 1
        found = block(x)
    assert found.dtype is dtype
    floor = torch.finfo(dtype).eps * float(expected.abs().max())
    assert (found - expected).abs().max() <= 2 * (plain - expected).abs().max() + floor


@pytest.mark.parametrize("name", FORMS)
def test_keeps_what_the_block_is(name):
    block = make(name)
    cls, attributes = type(block), set(vars(block))
    tensors = {key: id(t) for key, t in (*block.named_parameters(), *block.named_buffers())}
    keys = list(block.state_dict())
    fuse(block)
    assert isinstance(block, Fused) and isinstance(block, cls)
    assert {k: id(t) for k, t in (*block.named_parameters(), *block.named_buffers())} == tensors
    assert list(block.state_dict()) == keys
    assert unfuse(block) is block
    assert type(block) is cls and set(vars(block)) == attributes


@pytest.mark.parametrize("name", FORMS)
def test_other_inputs_take_the_original_forward(name):
    """What the fused op refuses or was not made for ends as it did."""
    plain = make(name).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    for x in (torch.zeros(2, C), torch.zeros(0, C, 4, 4), torch.zeros(2, C, 4, 4).long()):
        assert outcome(fused, x) == outcome(plain, x)


def outcome(block, x):
    try:
        return block(x).shape
    except Exception as error:
        return type(error), str(error)


@pytest.mark.usefixtures("no_small_position")
def test_dropped_weights_are_those_of_the_original():
    """HPDDRNet drops attention weights in training; a fused op would drop others."""
    torch.manual_seed(1)
    plain = blocks.PositionAttentionModule(C, dropout=0.5)
    fused = copy.deepcopy(plain)
    assert len(fuse(fused).fused) == 1
    x = torch.randn(2, C, 6, 5)
    results = []
    for block in (plain, fused):
        torch.manual_seed(3)
        results.append(block(x))
    assert torch.equal(*results)
    with Ops() as ops, torch.no_grad():
        torch.testing.assert_close(fused.eval()(x), plain.eval()(x))
    assert "position" in ops.fused


@pytest.mark.parametrize(
    "stencil",
    [torch.rand(5, 5), torch.tensor([[1.0, 0, -1]] * 3), torch.tensor([[1.0, 2, 1]] * 3)],
)
def test_stencils_of_other_masks_are_left_alone(stencil):
    side = stencil.shape[0]
    conv = torch.nn.Conv2d(C, C, side, padding=side // 2, groups=C, bias=False)
    conv.weight.requires_grad_(False).copy_(stencil.expand_as(conv.weight))
    (skipped,) = fuse(conv).skipped
    assert skipped.reason == "its stencil is not made of the masks of the MDE filter"


@pytest.mark.parametrize("bank, scales", [("box", (3, 5)), ("binomial", (3, 5, 7)), ("box", (5,))])
def test_stencils_of_several_masks(bank, scales):
    from medseg.kernels import mde_filter

    side = max(scales)
    gains = torch.tensor([[0.5, 2.0, 1.5, 1.0][: len(scales) + 1]])
    impulse = torch.zeros(1, 1, side, side, dtype=torch.float64)
    impulse[..., side // 2, side // 2] = 1
    conv = torch.nn.Conv2d(C, C, side, padding=side // 2, groups=C, bias=False)
    stencil = mde_filter(impulse, gains, scales, bank)[0, 0].float()
    conv.weight.requires_grad_(False).copy_(stencil.expand_as(conv.weight))
    x = torch.randn(2, C, 12, 9)
    expected = conv(x)
    assert len(fuse(conv).fused) == 1
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-5)


def test_a_stencil_follows_its_weight():
    """Another stencil in a checkpoint is found, and one of no masks convolved."""
    conv, other = blocks.sharpening(C), blocks.sharpening(C, (0.0, -1.0, 0.0), 5.0)
    x = torch.randn(2, C, 8, 9)
    fuse(conv)
    conv(x)
    conv.load_state_dict(other.state_dict())
    with Ops() as ops:
        torch.testing.assert_close(conv(x), other(x))
    assert ops.fused == {"mde"}
    other.weight[:, 0, 0, 0] = 3.0
    conv.load_state_dict(other.state_dict())
    with Ops() as ops:
        torch.testing.assert_close(conv(x), other(x))
    assert not ops.fused
