"""DRA-Net against the numbers of the authors' code, and its options."""

# pyright: reportOptionalCall=false, reportOptionalIterable=false
import copy
import re

import numpy as np
import pytest
import torch

from medseg import create_model
from medseg.kernels import use_backend
from medseg.models.dra_net import DRANet, clean_name
from tests import golden

CASES = ("eval_64x64", "eval_80x48", "train_64x64")


@pytest.fixture(scope="module")
def published():
    return create_model("dra_net", classes=7)


@golden.needs_golden
@pytest.mark.parametrize(("backend", "dtype"), golden.RUNS)
@pytest.mark.parametrize("case", CASES)
def test_golden(case, backend, dtype, published):
    device = golden.device_for(backend, dtype)
    arrays, meta = golden.load(f"dra_net/case_{case}")
    model = copy.deepcopy(published).to(device, dtype).train(meta["mode"] == "train")
    state = golden.original_state("dra_net", meta["weight_salt"], meta["beta_shift"])
    model.load_state_dict(model.translate(state))
    model.dropout.p = 0.0
    exact, train = dtype is torch.float64, meta["mode"] == "train"
    x = torch.from_numpy(arrays["x"]).to(device, dtype).requires_grad_(exact or train)
    with use_backend(backend), torch.backends.cudnn.flags(allow_tf32=False):
        with torch.set_grad_enabled(x.requires_grad):
            out = model(x)
        assert golden.relative(out, arrays["out_0"]) <= (1e-10 if exact else 1e-4)
        if x.requires_grad:
            cotangent = golden.unit("cotangent:0", tuple(out.shape), meta["cot_salt"])
            (out * torch.from_numpy(cotangent.astype(np.float32)).to(out)).sum().backward()
    if x.grad is not None:  # a rounding in float32 flips a ReLU here and there, and gradients jump
        assert golden.relative(x.grad, arrays["grad_x"]) <= (1e-7 if exact else 3e-2)
        golden.check_gradients(model, arrays, "dra_net", clean_name, 1e-7 if exact else 2e-2)
    if train:
        golden.check_buffers(
            model, arrays, "dra_net", clean_name, 1e-7 if exact else 1e-4, dead=r"tr9\."
        )


@golden.needs_golden
@pytest.mark.parametrize("top_attention", [False, True])
def test_file_of_the_authors(tmp_path, top_attention):
    """Every entry of their file is used, except the attention that their network never runs."""
    state = golden.original_state("dra_net", 0, 0.0)
    torch.save(state, tmp_path / "best.pth")
    model = create_model(
        "dra_net", classes=7, weights=tmp_path / "best.pth", top_attention=top_attention
    )
    own = model.state_dict()
    expected = {clean_name(k): v for k, v in state.items() if top_attention or k[:3] != "tr9"}
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[key], value) for key, value in expected.items())
    if not top_attention:
        arrays, _ = golden.load("dra_net/case_eval_80x48")
        with torch.no_grad():
            out = model.eval()(torch.from_numpy(arrays["x"]))
        assert golden.relative(out, arrays["out_0"]) <= 1e-4


def test_size_is_the_published_one(published):
    """31,745,531 in the authors' code, less the 300 of the attention it never runs."""
    count = sum(p.numel() for p in published.parameters())
    print(f"dra_net: {count:,} parameters")
    assert count == 31_745_231
    assert sum(b.numel() for b in published.buffers()) == 13_754 - 9
    figure = create_model("dra_net", classes=7, top_attention=True)
    assert sum(p.numel() for p in figure.parameters()) == 31_745_531
    assert sum(b.numel() for b in figure.buffers()) == 13_754
    assert len(figure.state_dict()) == 240


def test_small_variant_is_a_quarter_as_wide(published):
    small = create_model("dra_net_s", classes=7)
    for level, width in ((1, 64), (5, 1024)):
        widths = [m.state_dict()[f"enc{level}.proj.bias"].numel() for m in (published, small)]
        assert widths == [width, width // 4]


def run(seed=0, **options):
    """A narrow network with the weights of a seed, and its output."""
    torch.manual_seed(seed)
    model = DRANet(classes=4, width=4, **options).eval()
    with torch.no_grad():
        return model, model(torch.linspace(0, 1, 2 * 3 * 32 * 48).reshape(2, 3, 32, 48))


def test_gate_logits():
    gated, out = run()
    plain, raw = run(gate_logits=False)
    with torch.no_grad():
        torch.testing.assert_close(out, gated.eca(raw))
    assert plain.state_dict().keys() == gated.state_dict().keys()


def test_own_gate_per_level():
    shared, out = run()
    model = create_model("dra_net", classes=4, width=4, eca_shared=False).eval()
    state = shared.state_dict()
    for leaf in ("weight", "bias"):
        value = state.pop(f"eca.conv.{leaf}")
        state |= {f"eca.{level}.conv.{leaf}": value for level in range(6)}
    model.load_state_dict(state)
    with torch.no_grad():
        again = model(torch.linspace(0, 1, 2 * 3 * 32 * 48).reshape(2, 3, 32, 48))
    torch.testing.assert_close(again, out, rtol=0, atol=0)


def test_auxiliary_heads_leave_the_logits_alone():
    plain, _ = run()
    model, _ = run(deep_supervision=True)
    x = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    model.load_state_dict(plain.state_dict(), strict=False)
    model.dropout.p = plain.dropout.p = 0.0
    outputs = model.train()(x)
    torch.testing.assert_close(outputs.logits, plain.train()(x), rtol=0, atol=0)
    assert [tuple(aux.shape) for aux in outputs.aux] == [(2, 4, 20, 30)] * 3
    assert [head.in_channels for head in model.side] == [8, 16, 32]


def test_adaptive_kernels():
    options = {"classes": 7, "eca_kernel": "adaptive", "eca_shared": False}
    taps = [len(p.flatten()) for p in gates(create_model("dra_net_s", **options))]
    assert taps == [3, 3, 3, 5, 5, 1]
    assert len(gates(create_model("dra_net_s", gate_logits=False, **options))) == 5


def gates(model):
    return [p for key, p in model.named_parameters() if re.match(r"eca\..*weight", key)]


def test_input_as_the_authors_trained():
    """Their loader reshaped (H, W, C) to (C, H, W) where it should have transposed."""
    torch.manual_seed(0)
    model = create_model("dra_net", width=4).eval()
    scrambled = create_model("dra_net", width=4, input_layout="reshape", input_divisor=256).eval()
    scrambled.load_state_dict(model.state_dict())
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 32, 3)).astype(np.float32)
    seen = torch.from_numpy(pixels.reshape(2, 3, 16, 32) / 256)
    image = torch.from_numpy(pixels.transpose(0, 3, 1, 2) / 255)
    with torch.no_grad():
        torch.testing.assert_close(scrambled(image), model(seen))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "eca"}, "attention must be one of 'fused', 'none', got 'eca'"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"eca_kernel": 4}, "eca_kernel must be an odd number or 'adaptive', got 4"),
        ({"eca_kernel": "auto"}, "eca_kernel must be an odd number or 'adaptive', got 'auto'"),
        ({"eca_kernel": "adaptive"}, "add eca_shared=False"),
        ({"input_layout": "nhwc"}, "input_layout must be one of 'nchw', 'reshape', got 'nhwc'"),
        ({"input_divisor": 1}, "input_divisor must be 255 or 256, got 1"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("dra_net", **options)
