# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
"""`fuse(channels_last=True)`: maps in that layout on a CPU, in the model and in its copies."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from bench.published import dra_net
from medseg import fuse, unfuse
from medseg.fusion.layout import is_turned

from .cases import PLACES, Model


class Viewing(nn.Module):
    """Reads its maps by `view`, which channels_last does not allow."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x).view(len(x), -1)


class Slipping(nn.Module):
    """Says another thing in another layout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x) + float(x.is_contiguous())


def layouts(model, x):
    """Whether the output of each block is in channels_last; no hook on what a fused one skips."""
    seen = []
    hooks = [
        m.register_forward_hook(lambda m, args, out: seen.append(out.stride(1) == 1))
        for m in (model.stem, model.eca, *model.deep, model.sharp, model.head)
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("verify", [None, torch.randn(4, 3, 16, 12)])
def test_maps_are_turned_and_turned_back(training, verify):
    model, x = Model().train(training), torch.randn(2, 3, 16, 12)
    hook = model.register_forward_pre_hook(lambda module, args: None)
    keys, plain = list(model.state_dict()), copy.deepcopy(model)
    report = fuse(model, channels_last=True, verify=verify)
    assert [f.path for f in report.fused] == PLACES
    assert "channels_last" in str(report)
    turned = layouts(model, x)
    assert len(turned) == 8 and all(turned) and not any(layouts(plain, x))
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)
    fuse(model, channels_last=True)  # once more changes nothing
    assert len(model._forward_pre_hooks) == 2
    unfuse(model)
    assert not any(layouts(model, x)) and list(model._forward_pre_hooks) == [hook.id]
    assert not model._forward_pre_hooks_with_kwargs


def test_keywords_and_what_is_no_image():
    class Both(nn.Module):
        def forward(self, pairs, mask=None):
            return pairs["image"].stride(), mask.stride(), pairs["count"].stride()

    model = Both()
    fuse(model, channels_last=True)
    x, mask = torch.rand(2, 3, 4, 5), torch.rand(2, 1, 4, 5)
    pairs = {"image": x, "count": torch.zeros(2, 3, 4, 5, dtype=torch.long)}
    assert model(pairs, mask=mask) == ((60, 1, 15, 3), (20, 1, 5, 1), (60, 20, 5, 1))


def test_copies_keep_it():
    model, x = Model().eval(), torch.randn(1, 3, 8, 8)
    fuse(model, channels_last=True)
    with torch.no_grad():
        expected = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert is_turned(other)
            torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
            assert not is_turned(unfuse(other))
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), expected)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected)


@pytest.mark.parametrize(("kind", "words"), [(Viewing, "does not run"), (Slipping, "are off by 1")])
def test_refused(kind, words):
    model = kind()
    x = torch.zeros(2, 3, 8, 8) if kind is Slipping else torch.randn(2, 3, 8, 8)
    nn.init.zeros_(model.conv.bias)
    with pytest.raises(RuntimeError, match=f"channels_last=True was refused.*{words}"):
        fuse(model, channels_last=True, verify=x)
    assert not is_turned(model)
    with pytest.raises(ValueError, match="channels_last must be True or False, got 'yes'"):
        fuse(model, channels_last="yes")


def test_nothing_to_fuse():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    report = fuse(model, channels_last=True, verify=torch.randn(1, 3, 8, 8))
    assert str(report).startswith("Nothing to fuse") and "maps are channels_last" in str(report)
    assert report.before.ms > 0 and is_turned(model)
    assert not is_turned(unfuse(model))


def test_a_part_that_was_turned_stays_turned():
    model, x = Model().eval(), torch.randn(2, 3, 16, 12)
    fuse(model.deep, channels_last=True)
    fuse(model, channels_last=True, verify=x)
    assert is_turned(model.deep) and is_turned(model)
    assert fuse(model).channels_last  # it says what is, not what was asked
    unfuse(model)
    assert not is_turned(model.deep) and not is_turned(model)


def test_a_copy_in_a_new_process_takes_other_hooks(tmp_path):
    """Numbers of hooks begin anew there."""
    fuse(model := Model().eval(), channels_last=True)
    torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys, torch\n"
        "model = torch.load(sys.argv[1], weights_only=False)\n"
        "model.register_forward_pre_hook(lambda module, args: None)\n"
        "print(model(torch.rand(1, 3, 8, 8)).stride())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "model.pt"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "(128, 1, 16, 2)" in done.stdout, done.stderr


def test_inputs_without_a_layout():
    class Same(nn.Module):
        def forward(self, x):
            return x

    fuse(model := Same(), channels_last=True)
    x = torch.rand(3, 1, 2, 4, 4)
    torch.testing.assert_close(torch.vmap(model)(x), x)
    sparse = torch.eye(4).reshape(1, 1, 4, 4).to_sparse()
    assert model(sparse) is sparse
    with pytest.raises(ValueError, match="fuse before torch"):
        fuse(torch.jit.script(nn.ReLU()), channels_last=True)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_training_of_a_network(seed, channels_last):
    torch.manual_seed(seed)
    model = dra_net.DRANet(3, 7, 8).train()
    report = fuse(model, channels_last=channels_last, verify=torch.randn(2, 3, 64, 64))
    assert len(report.fused) == 4 and is_turned(model) is channels_last


@pytest.mark.parametrize("seed", range(3))
def test_training_of_few_numbers_is_verified(seed):
    """Batch norms magnify the order of sums there, which float64 shows to be all there is."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        *(nn.Sequential(nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3)),
    )
    fuse(model.train(), channels_last=True, verify=torch.randn(2, 3, 33, 33))
    assert is_turned(model)
