"""DPSAU2-Net against the numbers of the authors' code, and its options."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
import copy
import re

import numpy as np
import pytest
import torch

from medseg import create_model
from medseg.errors import UserError
from medseg.kernels import use_backend
from medseg.models.dpsau2_net import DEAD, DPSAU2Net, Stage, clean_name
from tests import golden

CASES = ("eval_64x64", "eval_97x83", "train_64x64")


@pytest.fixture(scope="module")
def published():
    return create_model("dpsau2_net")


@golden.needs_golden
@pytest.mark.parametrize(("backend", "dtype"), golden.RUNS)
@pytest.mark.parametrize("case", CASES)
def test_golden(case, backend, dtype, published):
    device = golden.device_for(backend, dtype)
    arrays, meta = golden.load(f"dpsau2_net/case_{case}")
    model = copy.deepcopy(published).to(device, dtype).train(meta["mode"] == "train")
    state = golden.original_state("dpsau2_net", meta["weight_salt"], meta["beta_shift"])
    model.load_state_dict(model.translate(state))
    exact, train = dtype is torch.float64, meta["mode"] == "train"
    x = torch.from_numpy(arrays["x"]).to(device, dtype).requires_grad_()
    with use_backend(backend), torch.backends.cudnn.flags(allow_tf32=False):
        out = model(x)
        assert golden.relative(out, arrays["out_0"]) <= (1e-12 if exact else 1e-4)
        cotangent = golden.unit("cotangent:0", tuple(out.shape), meta["cot_salt"])
        (out * torch.from_numpy(cotangent.astype(np.float32)).to(out)).sum().backward()
    # a rounding in float32 flips a ReLU here and there, and gradients jump, as the authors' own do
    assert golden.relative(x.grad, arrays["grad_x"]) <= (1e-9 if exact else 2e-2)
    tolerance = 1e-9 if exact else 1e-2 if train else 3e-3
    golden.check_gradients(model, arrays, "dpsau2_net", clean_name, tolerance)
    if train:
        golden.check_buffers(
            model, arrays, "dpsau2_net", clean_name, 1e-9 if exact else 1e-4, dead=DEAD
        )


@golden.needs_golden
def test_file_of_the_authors(tmp_path):
    """Every entry of their file is used, except the layers that their network never runs."""
    state = golden.original_state("dpsau2_net", 0, 0.0)
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "best.pth")
    model = create_model("dpsau2_net", weights=tmp_path / "best.pth").eval()
    own = model.state_dict()
    used = {clean_name(key): value for key, value in state.items() if not re.match(DEAD, key)}
    assert len(state) - len(used) == 70
    assert own.keys() == used.keys()
    assert all(torch.equal(own[key], value) for key, value in used.items())
    arrays, _ = golden.load("dpsau2_net/case_eval_97x83")
    with torch.no_grad():
        out = model(torch.from_numpy(arrays["x"]))
    assert golden.relative(out, arrays["out_0"]) <= 1e-4


def test_strange_entry_of_the_authors_is_named(tmp_path):
    state = {"spl1.block.3.fc1.weight": torch.ones(1), "spl1.block.3.conv2.bias": torch.ones(1)}
    state |= {"stage1.rebnconv9x.weight": torch.ones(1), "spl11.block.0.weight": torch.ones(1)}
    torch.save(state, tmp_path / "original.pth")
    with pytest.raises(UserError) as caught:
        create_model("dpsau2_net_s", weights=tmp_path / "original.pth")
    assert "has enc1.rebnconv9x.weight, spl11.block.0.weight, which" in str(caught.value)


def test_size_is_the_published_one(published):
    """66,198,925 in the authors' code, less the 5,501,568 in 40 tensors that it never runs."""
    count = sum(p.numel() for p in published.parameters())
    print(f"dpsau2_net has {count:,} parameters")
    assert count == 66_198_925 - 5_501_568 == 60_697_357
    assert sum(b.numel() for b in published.buffers()) == 73_400 - 5_898


def test_small_variant_is_a_quarter_as_wide(published):
    small = create_model("dpsau2_net_s")
    for key in ("enc1.entry", "enc1.down.7", "enc5.up.2", "dec1.up.3", "dec_sa4.reduce"):
        wide, narrow = (m.get_submodule(key).conv.out_channels for m in (published, small))
        assert wide == 4 * narrow, key


def image(n=2, size=(37, 41)):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(1))


def build(**options):
    torch.manual_seed(0)
    return DPSAU2Net(**{"classes": 2, "width": 8, **options})


def test_deep_supervision():
    """The side maps are those that the logits are fused from; eval mode returns logits alone."""
    model, plain = build(deep_supervision=True), build()
    out = model(image())
    assert [tuple(aux.shape) for aux in out.aux] == [(2, 2, 37, 41)] * 6
    torch.testing.assert_close(model.fuse(torch.cat(out.aux, 1)), out.logits, rtol=0, atol=0)
    torch.testing.assert_close(plain(image()), out.logits, rtol=0, atol=0)
    assert model.eval()(image()).shape == (2, 2, 37, 41)


def test_without_attention():
    """Blocks whose last batch norm gives 0 are no blocks: what they get is never negative."""
    model, plain = build().eval(), build(attention="none").eval()
    assert not [key for key in plain.state_dict() if "_sa" in key]
    state = {
        k: torch.zeros_like(v) if ".expand.bn." in k else v for k, v in build().state_dict().items()
    }
    state |= {k: torch.ones_like(v) for k, v in state.items() if k.endswith("running_var")}
    model.load_state_dict(state)
    plain.load_state_dict({key: value for key, value in state.items() if "_sa" not in key})
    with torch.no_grad():
        torch.testing.assert_close(model(image()), plain(image()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("depth", [3, 4, 5])
def test_depth(depth, tmp_path):
    model = build(depth=depth, deep_supervision=True)
    assert len(model(image()).aux) == depth
    pooling = [stage.pools for stage in model.modules() if isinstance(stage, Stage)]
    assert pooling.count(True) == 2 * (depth - 2) and pooling.count(False) == 3
    torch.save(model.state_dict(), tmp_path / "shallow.pth")
    with pytest.raises(UserError, match=f"was made with depth={depth}, the model with depth=6"):
        create_model("dpsau2_net", classes=2, width=8, weights=tmp_path / "shallow.pth")


@pytest.mark.parametrize("size", [(7, 5), (1, 1)])
def test_tiny_image(size):
    model = build()
    assert model(image(2, size)).isfinite().all()
    assert model.eval()(image(1, size)).shape == (1, 2, *size)


def test_one_image_in_training():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        build()(image(1))


def test_inference_changes_no_input():
    """It adds in place, where nothing needs the summand again."""
    model, x = build().eval(), image()
    before = x.clone()
    with torch.no_grad():
        first, second = model(x), model(x)
    torch.testing.assert_close(first, model(x).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"width": 10}, "width must be a multiple of 4, got 10"),
        ({"depth": 2}, "depth must be 3, 4, 5 or 6, got 2"),
        ({"attention": "split"}, "attention must be one of 'fused', 'none', got 'split'"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(UserError, match=message):
        create_model("dpsau2_net", **options)
