# pyright: reportOptionalMemberAccess=false, reportPrivateImportUsage=false, reportArgumentType=false
"""A fused model goes on as what it was: optimizers, hooks, averages, checkpoints, copies."""

import copy
import io
import os
import pickle
import socket

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from medseg import fuse, unfuse
from medseg.fusion.block import Fused, fused_blocks
from tests.models.watch import Ops

from .cases import PLACES, C, Model, make


@pytest.fixture
def plain():
    torch.manual_seed(1)
    return Model()


@pytest.fixture
def fused(plain):
    model = copy.deepcopy(plain)
    assert [f.path for f in fuse(model).fused] == PLACES
    return model


X = torch.linspace(-2, 2, 4 * 3 * 8 * 10).sin().view(4, 3, 8, 10)


def train(model, optimiser, steps=3):
    for _ in range(steps):
        optimiser.zero_grad()
        model(X).square().mean().backward()
        optimiser.step()
    return [p.detach() for p in model.parameters()]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_optimizer_built_before(plain):
    model = copy.deepcopy(plain)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimiser, 1)
    fuse(model)
    train(model, optimiser, 2)
    other = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    close(list(model.parameters()), train(plain, other, 3))


def test_average_of_weights_built_before(plain):
    average = AveragedModel(plain, avg_fn=lambda a, b, n: 0.5 * a + 0.5 * b)
    fuse(plain)
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    average.update_parameters(plain)
    average.update_parameters(plain)
    close(list(average.module.parameters()), [p.detach() for p in plain.parameters()])
    report = fuse(average)
    assert [f.path for f in report.fused] == [f"module.{path}" for path in PLACES]
    close(average.eval()(X), unfuse(average)(X))


def test_hooks_of_blocks_stay(plain):
    seen = []
    plain.eca.register_forward_pre_hook(lambda m, a: seen.append("pre"))
    plain.eca.register_forward_hook(lambda m, a, o: seen.append("post"))
    plain.eca.register_full_backward_hook(lambda m, a, o: seen.append("backward"))
    plain.deep[0].conv.register_forward_hook(lambda m, a, o: seen.append("conv"))
    assert len(fuse(plain).fused) == 4
    assert not seen  # nothing ran on the model
    plain(X).sum().backward()
    assert seen == ["pre", "post", "conv", "pre", "post", "backward", "backward"]


def test_state_dict_goes_both_ways(plain, fused):
    other = Model()
    fuse(other)
    other.load_state_dict(plain.state_dict())
    close(other.eval()(X), plain.eval()(X))
    plain.load_state_dict(other.state_dict())
    assert list(plain.state_dict()) == list(fused.state_dict())


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies(fused, way):
    if way == "deepcopy":
        copied = copy.deepcopy(fused)
    elif way == "pickle":
        copied = pickle.loads(pickle.dumps(fused))
    else:
        file = io.BytesIO()
        torch.save(fused, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    assert [type(m) for m in copied.modules()] == [type(m) for m in fused.modules()]
    assert copied.eca is copied.same
    with Ops() as ops:
        close(copied(X), fused(X))
    assert ops.fused == {"eca", "split", "triplet", "mde"}
    assert not any(isinstance(m, Fused) for m in unfuse(copied).modules())
    assert len(fused_blocks(fused)) == 4


@pytest.mark.parametrize("training", [True, False])
def test_compiles_whole(plain, fused, training):
    for model in (plain, fused):
        model.train(training)
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    close(compiled(X), plain(X))
    compiled(X).sum().backward()
    plain(X).sum().backward()
    pairs = zip(plain.parameters(), fused.parameters(), strict=True)
    assert all((a.grad is None) == (b.grad is None) for a, b in pairs)
    close([p.grad for p in fused.parameters() if p.requires_grad],
          [p.grad for p in plain.parameters() if p.requires_grad])  # fmt: skip


def test_fuse_inside_of_a_compiled_model(plain):
    torch._dynamo.reset()
    compiled = torch.compile(plain.eval(), backend="eager")
    with torch.no_grad():
        expected = compiled(X)
        assert [f.path for f in fuse(compiled).fused] == [f"_orig_mod.{path}" for path in PLACES]
        close(compiled(X), expected)


@pytest.mark.parametrize("strict", [True, False])
def test_exports(fused, strict):
    fused.eval()
    with torch.no_grad():
        program = torch.export.export(fused, (X,), strict=strict)
        names = {str(node.target) for node in program.graph.nodes}
        assert "medseg.eca.default" in names and "medseg.triplet.default" in names
        close(program.module()(X), fused(X))


def test_autocast(plain, fused):
    outputs = []
    for model in (plain, fused):
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(model(X))
        outputs[-1].float().sum().backward()
    assert outputs[0].dtype is outputs[1].dtype
    torch.testing.assert_close(*outputs, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "name", ["eca-dra", "triplet-dra", "split-timm", "position-danet", "channel-danet",
             "position-hpddrnet", "stencil-sharp8"])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_under_autocast(name, dtype):
    """A block gives what the published one gives for a map of either dtype."""
    plain = make(name).eval()
    fused = copy.deepcopy(plain)
    fuse(fused)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        x = torch.randn(2, C, 8, 9).to(dtype)
        expected, found = plain(x), fused(x)
    assert found.dtype is expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_functional_call_and_second_derivatives(plain, fused):
    state = dict(plain.named_parameters())
    close(
        torch.func.functional_call(fused, state, (X,)),
        torch.func.functional_call(plain, state, (X,)),
    )
    found = []
    for model in (plain, fused):
        x = X.double().requires_grad_()
        (first,) = torch.autograd.grad(model.double()(x).sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


def test_moves_to_other_dtypes(fused):
    for dtype in (torch.bfloat16, torch.float64):
        assert fused.to(dtype)(X.to(dtype)).dtype is dtype


def _worker(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    results = []
    for before in (True, False):
        torch.manual_seed(1)
        model = Model()
        if before:
            fuse(model)
        parallel = nn.parallel.DistributedDataParallel(model)
        if not before:
            assert [f.path for f in fuse(parallel).fused] == [f"module.{path}" for path in PLACES]
        optimiser = torch.optim.SGD(parallel.parameters(), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            parallel(X[2 * rank : 2 * rank + 2]).square().mean().backward()
            optimiser.step()
        results.append([p.detach() for p in parallel.parameters()])
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # a thread of gloo that is still there would abort the interpreter's end


def test_ddp(tmp_path):
    """Fused before or after it is wrapped, two processes end with the same weights."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(_worker, (port, str(tmp_path)), nprocs=2)
    found = [one for rank in range(2) for one in torch.load(tmp_path / f"{rank}.pt")]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    torch.manual_seed(1)
    start = list(Model().parameters())
    assert any(not torch.equal(a, b) for a, b in zip(found[0], start, strict=True))
