# pyright: reportCallIssue=false, reportOptionalMemberAccess=false, reportArgumentType=false
# pyright: reportOperatorIssue=false, reportOptionalSubscript=false
"""Attention whose batch norms share their statistics between processes, as SyncBatchNorm does.

That one runs on GPUs alone; a norm of our own does the same here, between two real processes.
"""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from medseg.layers import SplitAttention, TripletAttention

SHARES = (slice(0, 3), slice(3, 4))  # of the images; a single one has no variance of its own


class _Sum(torch.autograd.Function):
    """The sum over all processes; each one's loss is a part of the whole."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, *grads):
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


class SharedNorm(nn.BatchNorm2d):
    """A batch norm over the images of all processes."""

    def forward(self, input):
        if not self.training:
            return super().forward(input)
        values = input.transpose(0, 1).flatten(1)  # (C, N * H * W)
        count = values.new_full((len(values),), values.shape[1])
        count, total, squares = _Sum.apply(torch.stack((count, values.sum(1), (values**2).sum(1))))
        mean = total / count
        var = squares / count - mean**2
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * (var + self.eps).rsqrt()
        return input * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]


def layers(norm):
    """Both blocks with parameters that are no defaults, their norms of a class."""
    torch.manual_seed(0)
    found = nn.ModuleDict({"triplet": TripletAttention(3), "split": SplitAttention(8, bias=True)})
    for module in found.modules():
        if type(module) is nn.BatchNorm2d:
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias)
            module.__class__ = norm
    return found.double()


def step(norm, part):
    """Outputs, gradients and running statistics of one step on some of four images."""
    found, result = layers(norm), {}
    torch.manual_seed(1)
    image, weights = torch.randn(2, 4, 8, 7, 9, dtype=torch.float64)
    for name, layer in found.items():
        x = image[part].clone().requires_grad_()
        out = layer(x)
        (out * weights[part]).sum().backward()
        result[f"{name} out"], result[f"{name} grad_x"] = out.detach(), x.grad
    gradients = {f"{key} grad": value.grad for key, value in found.named_parameters()}
    return result | gradients | dict(found.named_buffers())


def main(rank, folder):
    """What a process does: its share of the images."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(step(SharedNorm, SHARES[rank]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shares")
    code = "import sys; from tests.layers.test_shared_norms import main; main(int(sys.argv[1]), "
    words = [sys.executable, "-c", code + "sys.argv[2])"]
    processes = [subprocess.Popen([*words, str(rank), str(folder)]) for rank in range(2)]
    for process in processes:
        assert process.wait(timeout=120) == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_give_the_numbers_of_one(shares):
    """The one process runs the fused ops with plain batch norms on all images."""
    whole = step(nn.BatchNorm2d, slice(0, 4))
    for key, value in whole.items():
        first, second = (share[key] for share in shares)
        if key.endswith((" out", " grad_x")):
            found = torch.cat((first, second))
        elif key.endswith(" grad"):
            found = first + second
        else:
            assert torch.equal(first, second), key
            found = first
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-9, msg=key)


def test_without_sharing_the_numbers_would_be_others():
    whole, alone = step(nn.BatchNorm2d, slice(0, 4)), step(nn.BatchNorm2d, SHARES[0])
    for name in ("triplet", "split"):
        apart = (whole[f"{name} out"][:3] - alone[f"{name} out"]).abs().max()
        assert apart > 1e-3, name


class OwnNorm(nn.BatchNorm2d):
    """A norm that the fused ops do not take."""


@pytest.mark.parametrize("name", ["triplet", "split"])
def test_gradients_around_a_norm_of_ones_own(name):
    layer = layers(OwnNorm)[name]
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64, requires_grad=True)
    parameters = tuple(layer.parameters())
    names = [key for key, _ in layer.named_parameters()]

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)

    assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", ["triplet", "split"])
def test_captured_around_a_norm_of_ones_own(name, backend):
    """For every size in one graph, and compiled; fused or, as an export has it, not."""
    layer = layers(OwnNorm)[name].eval()
    layer.backend = backend
    x, other = (torch.randn(2, 8, h, w, dtype=torch.float64) for h, w in ((6, 5), (9, 12)))
    sides = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(layer, (x,), dynamic_shapes=(sides,)).module()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for image in (x, other):
        want = layer(image)
        torch.testing.assert_close(program(image), want)
        torch.testing.assert_close(compiled(image), want)
    with torch.profiler.profile() as profile:
        layer(x)
    called = {event.key for event in profile.key_averages()}
    fused = {f"medseg::{name}_pool", f"medseg::{name}_apply"}
    assert called & fused == (set() if backend else fused)
