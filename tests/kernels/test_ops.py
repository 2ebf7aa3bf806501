"""What PyTorch expects of any operator, for every op on the CPU backend."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from medseg.kernels import (
    attention_gate,
    eca_attention,
    mde_filter,
    position_attention,
    use_backend,
)
from tests.kernels.op_cases import (
    OPS,
    fewest_images,
    leaves,
    raw_calls,
    triplet,
)

pytestmark = pytest.mark.usefixtures("needs_cpu", "no_small_position")


@pytest.fixture(params=OPS)
def op(request):
    torch.manual_seed(0)
    return OPS[request.param]


@pytest.mark.parametrize("number", range(48))
def test_opcheck(number):
    operator, arguments = list(raw_calls())[number]
    torch.library.opcheck(operator, arguments)


def test_gradcheck(op):
    fn, make = op
    for layout in (torch.contiguous_format, torch.channels_last):
        x, *learned = leaves(make, torch.float64, (2, 3, 4, 5))
        x = x.detach().contiguous(memory_format=layout).requires_grad_()
        assert torch.autograd.gradcheck(fn, (x, *learned))


def test_second_derivatives(op):
    fn, make = op
    assert torch.autograd.gradgradcheck(fn, tuple(leaves(make, torch.float64, (2, 2, 3, 3))))


def test_compile(op):
    fn, make = op
    compiled = torch.compile(fn, fullgraph=True, dynamic=True)
    for shape in ((2, 5, 6, 7), (fewest_images(fn), 4, 9, 8)):
        tensors = leaves(make, shape=shape)
        want = torch.autograd.grad(fn(*tensors).square().sum(), tensors)
        got = torch.autograd.grad(compiled(*tensors).square().sum(), tensors)
        torch.testing.assert_close(got, want)


def test_compiled_code_follows_the_chosen_backend():
    x, weight = torch.randn(1, 4, 5, 6), torch.randn(3)
    compiled = torch.compile(eca_attention, fullgraph=True, backend="eager")
    with torch.profiler.profile() as fused:
        compiled(x, weight)
    with use_backend("reference"), torch.profiler.profile() as plain:
        compiled(x, weight)
    assert "medseg::eca" in {e.key for e in fused.key_averages()}
    assert "medseg::eca" not in {e.key for e in plain.key_averages()}


class Holder(torch.nn.Module):
    def __init__(self, fn, learned):
        super().__init__()
        self.fn = fn
        self.learned = torch.nn.ParameterList(learned)

    def forward(self, x):
        return self.fn(x, *self.learned)


@pytest.mark.parametrize("strict", (True, False))
def test_exported_modules_still_train(op, strict):
    fn, make = op
    x, *learned = leaves(make)
    module = Holder(fn, learned)
    batch = torch.export.Dim("batch", min=fewest_images(fn), max=16)
    program = torch.export.export(
        module, (x.detach(),), dynamic_shapes={"x": {0: batch}}, strict=strict
    )
    exported = program.module()
    other = torch.randn(3, *x.shape[1:])
    torch.testing.assert_close(exported(other), module(other))
    exported(other).square().sum().backward()
    found = [p.grad for p in exported.parameters()]
    want = torch.autograd.grad(module(other).square().sum(), list(module.parameters()))
    torch.testing.assert_close(found, list(want))


def test_checkpointing(op):
    fn, make = op
    tensors = leaves(make)
    want = torch.autograd.grad(fn(*tensors).square().sum(), tensors)
    out = checkpoint(fn, *tensors, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), tensors), want)


def test_autocast_keeps_parameters_in_float32(op):
    fn, make = op
    x, *learned = leaves(make)
    with torch.autocast("cpu", torch.bfloat16):
        half = torch.nn.functional.conv2d(x, torch.ones(5, 5, 1, 1))
        out = fn(half, *learned)
    assert half.dtype is torch.bfloat16 and out.dtype is torch.bfloat16
    grads = torch.autograd.grad(out.float().sum(), learned)
    assert all(g.dtype is torch.float32 for g in grads)


def test_create_graph_with_inputs_made_of_one_another():
    """Gradients asked for again must not run on through the input that the others came from."""

    def position_of(x):
        tokens = x.flatten(2)
        return position_attention(2 * tokens, tokens, tokens.square())

    def gate_of(x):
        total, product = attention_gate(2 * x, x, x.square())
        return total + product

    def eca_of(x):
        return eca_attention(x, x[0, :3, 0, 0])

    def triplet_of(x):
        taps = x.flatten()[:54].view(3, 2, 3, 3)
        return triplet(x, taps, x[0, 0, 0, :3] + 1, x[0, 0, 1, :3])

    def mde_of(x):
        return mde_filter(x, x[:1, :, 0, :4].reshape(3, 4))

    x = torch.rand(2, 3, 4, 5, requires_grad=True)
    for fn in (position_of, gate_of, eca_of, triplet_of, mde_of):
        first = torch.autograd.grad(fn(x).square().sum(), x)
        again = torch.autograd.grad(fn(x).square().sum(), x, create_graph=True)
        torch.testing.assert_close(again, first)


@pytest.mark.parametrize(
    "name", ("eca", "position", "split", "split_train", "triplet", "triplet_train")
)
def test_autocast_keeps_gates_and_reference_in_float32(name):
    """First and second order, fused or not, agree with what they are outside autocast."""
    torch.manual_seed(0)
    fn, make = OPS[name]
    tensors = leaves(make)

    def run(backend, twice):
        with use_backend(backend):
            out = fn(*tensors)
            grads = torch.autograd.grad(out.square().sum(), tensors, create_graph=twice)
        return out, *grads

    want = run("reference", False)
    with torch.autocast("cpu", torch.bfloat16):
        out = run("reference", False)[0]
        fused, again = run("cpu", False), run("cpu", True)
        compiled = torch.compile(lambda: run("reference", False)[0], backend="eager")()
    for got in (out, compiled):
        torch.testing.assert_close(got, want[0])
    for got in (fused, again):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_gradients_only_where_they_are_asked(op):
    fn, make = op
    x, *learned = leaves(make)
    out = fn(x.detach(), *learned)
    assert all(g is not None for g in torch.autograd.grad(out.sum(), learned))
    out = fn(x, *(t.detach() for t in learned))
    assert torch.autograd.grad(out.sum(), x)[0].shape == x.shape
    with torch.no_grad():
        assert not fn(x, *learned).requires_grad


def test_gradients_that_come_expanded_or_in_another_layout(op):
    fn, make = op
    tensors = leaves(make, shape=(2, 4, 6, 8))
    ones = torch.ones_like(fn(*tensors))
    want = torch.autograd.grad(fn(*tensors), tensors, ones)
    expanded = torch.autograd.grad(fn(*tensors).sum(), tensors)
    turned = ones.contiguous(memory_format=torch.channels_last)
    other = torch.autograd.grad(fn(*tensors), tensors, turned)
    torch.testing.assert_close(expanded, want)
    torch.testing.assert_close(other, want)


def test_forward_mode_takes_the_reference(op):
    fn, make = op
    x, *learned = (t.detach() for t in leaves(make, torch.float64))
    tangent = torch.randn_like(x)
    moved = torch.func.jvp(lambda v: fn(v, *learned), (x,), (tangent,))[1]
    step = 1e-6
    slope = (fn(x + step * tangent, *learned) - fn(x - step * tangent, *learned)) / (2 * step)
    torch.testing.assert_close(moved, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ("eca", "eca_pooled", "triplet", "split"))
def test_vmap(name):
    """In training the running statistics, shared by all, forbid it, as in ``nn.BatchNorm2d``."""
    fn, make = OPS[name]
    x, *learned = (t.detach() for t in leaves(make))
    many = torch.stack((x, 2 * x))
    got = torch.vmap(lambda v: fn(v, *learned))(many)
    torch.testing.assert_close(got, torch.stack([fn(v, *learned) for v in many]))


def test_layers_survive_deepcopy_of_a_graph_free_module(op):
    fn, make = op
    x, *learned = leaves(make)
    module = Holder(fn, learned)
    twin = copy.deepcopy(module)
    torch.testing.assert_close(twin(x), module(x))
