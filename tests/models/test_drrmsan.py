"""DRRMSAN against the numbers of the authors' code, its Keras files, and its options."""

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medseg import create_model
from medseg.kernels import use_backend
from medseg.layers import AttentionGate
from medseg.losses import build_loss
from medseg.models.blocks import enlarged_conv
from medseg.models.drrmsan import mixed
from medseg.models.drrmsan_keras import keras_order
from tests import golden

VARIANTS = ("msan1", "msan2", "msan3")
CASES = (
    "msan1/case_eval_96x96",
    "msan1/case_eval_96x128_zeros",
    "msan1/case_train_96x96",
    "msan2/case_eval_64x80",
    "msan3/case_eval_64x80",
)


def layer_order(variant):
    """The layers of a file of the authors, in its order."""
    path = golden.FOLDER / f"drrmsan_{variant}" / "state_keys.json"
    return json.loads(path.read_text())["h5_layer_order"]


def as_read(variant, salt=0, beta_shift=0.0):
    """What `read_h5` makes of a file of the authors: its order, and kernels in torch's layout."""
    folder = f"drrmsan_{variant}"
    state = golden.original_state(folder, salt, beta_shift)
    entries = golden.keys(folder)
    turned = {e["key"]: golden.in_torch_layout(e, state[e["key"]].numpy()) for e in entries}
    place = {layer: i for i, layer in enumerate(layer_order(variant))}
    names = sorted(turned, key=lambda key: place[key.rpartition("/")[0]])
    return {name: torch.from_numpy(np.ascontiguousarray(turned[name])) for name in names}


@pytest.fixture(scope="module")
def published():
    """The three variants, untrained."""
    return {v: create_model("drrmsan", attention=v) for v in VARIANTS}


def probabilities(model, x):
    maps = model.maps(x)
    return [z.sigmoid() for z in (*maps, mixed(maps, model.alphas))]


# (channels_last, oneDNN), which sum in another order each. In one of eight a rounding flips a ReLU,
# and so 0.7 % of a gradient that the others have to 2e-6; a wrong formula is wrong in all.
ORDERS = ((False, False), (True, True), (True, False), (False, True))


@golden.needs_golden
@pytest.mark.parametrize(("backend", "dtype"), golden.RUNS)
@pytest.mark.parametrize("case", CASES)
def test_golden(case, backend, dtype, published):
    device = golden.device_for(backend, dtype, ("gate",))
    orders = ORDERS[1:2] if dtype is torch.float64 else ORDERS
    for order in orders:
        try:
            with use_backend(backend):
                check_case(case, copy.deepcopy(published[case[:5]]).to(device, dtype), *order)
            return
        except AssertionError:
            if order is orders[-1]:
                raise


def check_case(case, model, channels_last, onednn):
    """Outputs, gradients and running statistics, in the dtype and on the device of the model."""
    arrays, meta = golden.load(f"drrmsan_{case}")
    folder = f"drrmsan_{case[:5]}"
    state = model.translate(as_read(case[:5], meta["weight_salt"], meta["beta_shift"]))
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in left.missing_keys)
    model.train(meta["mode"] == "train").alphas = tuple(meta["build"]["alphas"])
    model.channels_last_on_cpu = channels_last
    x: Any = torch.from_numpy(arrays["x"]).to(next(model.parameters())).requires_grad_()
    exact = x.dtype is torch.float64
    tf32: Any = None  # left as it is
    sums = torch.backends.mkldnn.flags(enabled=onednn, allow_tf32=tf32)
    with sums, torch.backends.cudnn.flags(allow_tf32=False):
        outs = probabilities(model, x)
        total = torch.zeros_like(x[0, 0, 0, 0])
        for i, out in enumerate(outs):
            # The authors' own float32 is up to 9.3e-5 off their float64, in one of the maps.
            close = 1e-10 if exact else max(1e-4, 2 * meta["f32_out_rel"][i])
            assert golden.relative(out, arrays[f"out_{i}"]) <= close
            cotangent = golden.unit(f"cotangent:{i}", tuple(out.shape), meta["cot_salt"])
            total = total + (out * torch.from_numpy(cotangent.astype(np.float32)).to(out)).sum()
        total.backward()
    # Of the training case the authors' own float32 is 5e-3 off: batch norms of few numbers.
    tolerance = 1e-7 if exact else max(1e-3, 10 * meta["f32_grad_norm_rel_worst"])
    if meta["check_grad_x"] and "grad_x" in arrays:
        assert golden.relative(x.grad, arrays["grad_x"]) <= tolerance
    names = {e["key"]: e["torch_key"] for e in golden.keys(folder)}
    golden.check_gradients(model, arrays, folder, names.__getitem__, tolerance)
    if model.training:
        golden.check_buffers(model, arrays, folder, names.__getitem__, 1e-7 if exact else 1e-4)


@golden.needs_golden
@pytest.mark.parametrize("variant", VARIANTS)
def test_order_of_keras(variant):
    """Found from the graph, it is the one that Keras gave."""
    names = {e["key"].rpartition("/")[0]: e["torch_key"] for e in golden.keys(f"drrmsan_{variant}")}
    ours = [names[layer].rpartition(".")[0] for layer in layer_order(variant)]
    assert keras_order(variant) == ours


@pytest.mark.parametrize(
    ("variant", "trainable", "statistics"),
    [("msan1", 21_556_472, 24_522), ("msan2", 11_694_817, 0), ("msan3", 14_830_177, 0)],
)
def test_size_is_the_published_one(published, variant, trainable, statistics):
    """All of them live: the authors' head that is not connected is no part of their model."""
    model = published[variant]
    own = sum(p.numel() for p in model.parameters())
    kept = sum(b.numel() for b in model.buffers() if b.dim())
    print(f"drrmsan {variant}: {own} parameters, {kept} running statistics")
    assert (own, kept) == (trainable, statistics)


def small(**options) -> Any:
    torch.manual_seed(0)
    return create_model("drrmsan_s", **{"width": 4, **options})


@pytest.mark.parametrize("attention", [*VARIANTS, "none"])
@pytest.mark.parametrize("size", [(97, 110), (33, 50)])
def test_four_maps_and_their_mixture(attention, size):
    model = small(attention=attention, classes=2)
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    out = model(x)
    assert len(out.aux) == 4
    assert all(each.shape == (2, 2, *size) for each in (out.logits, *out.aux))
    p = torch.stack([each.double().sigmoid() for each in out.aux]).mean(0)
    torch.testing.assert_close(out.logits.double().sigmoid(), p, rtol=1e-5, atol=1e-6)
    alone = small(attention=attention, classes=2, deep_supervision=False)
    torch.testing.assert_close(alone(x), out.logits, rtol=0, atol=0)
    with torch.no_grad():
        assert model.eval()(x).shape == (2, 2, *size)


@pytest.mark.parametrize("alphas", [(0.25,) * 4, (0.08, 0.32, 0.22, 0.37), (0, 0, 0, 1)])
def test_mixture(alphas):
    maps = torch.randn(4, 2, 1, 5, 7, dtype=torch.float64, requires_grad=True)
    got = mixed(list(maps), alphas)
    p = torch.stack([a * z.sigmoid() for a, z in zip(alphas, maps, strict=True)]).sum(0)
    torch.testing.assert_close(got, torch.logit(p))
    grads = [torch.autograd.grad(out.sum(), maps)[0] for out in (got, torch.logit(p))]
    torch.testing.assert_close(*grads)


def test_mixture_far_from_zero():
    """Where all maps are sure, probabilities have lost in float32 what logits still say."""
    maps: list[Any] = [
        torch.full((1, 1, 1, 1), z).requires_grad_() for z in (60.0, 62.0, 64.0, 66.0)
    ]
    out = mixed(maps, (0.25,) * 4)
    out.backward()
    assert 60 < out.item() < 62
    assert all(z.grad.isfinite().all() for z in maps) and sum(z.grad.item() for z in maps) > 0.99


def test_loss_is_the_published_one():
    """Binary cross entropy of each of five probability maps, with weight 1."""
    model = small().double()
    x = torch.rand(2, 3, 96, 96, dtype=torch.float64)
    target = (torch.rand(2, 96, 96) > 0.5).long()
    out = model(x)
    truth = target[:, None].double()
    want = sum(F.binary_cross_entropy(z.sigmoid(), truth) for z in (out.logits, *out.aux))
    torch.testing.assert_close(build_loss("drrmsan", 1)(out, target), want)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_convolution_of_an_enlarged_map(scale):
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    want = F.conv2d(F.interpolate(x, scale_factor=scale), weight, bias, padding=1)
    got = enlarged_conv(x, weight, bias, scale)
    torch.testing.assert_close(got, want)
    cotangent = torch.randn_like(want)
    for a, b in zip(
        torch.autograd.grad(got, (x, weight, bias), cotangent),
        torch.autograd.grad(want, (x, weight, bias), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_attention_kinds():
    gates = {kind: small(attention=kind).attn3 for kind in ("fused", *VARIANTS)}
    assert all(isinstance(gate, AttentionGate) for gate in gates.values())
    assert [gate.variant for gate in gates.values()] == ["msan1", *VARIANTS]
    bare = small(attention="none")
    assert not any(isinstance(module, AttentionGate) for module in bare.modules())
    normed = {k: any("bn" in key for key in small(attention=k).state_dict()) for k in VARIANTS}
    assert normed == {"msan1": True, "msan2": False, "msan3": False}
    assert "enc1.bn_out.weight" in small(attention="msan2", norm=True).state_dict()


def test_gate_residual_lets_the_decoder_through():
    """With gates of 0 the network is the one without gates; unmended it sees nothing below."""
    x = torch.rand(1, 3, 96, 96)
    bare = small(attention="none").eval()
    for residual in (True, False):
        model = small(gate_residual=residual).eval()
        model.load_state_dict(bare.state_dict(), strict=False)
        with torch.no_grad():
            for level in range(1, 5):
                gate = model.get_submodule(f"attn{level}.out")
                gate.weight.zero_()
                gate.bias.zero_()
            out, expected = model(x), bare(x)
            same = float((out - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
            assert same == residual


def test_bounded_gate():
    """(1 + m) / (2 + m) where the published gate is 1 / (1 + exp(-m)), pinned at 1 early."""
    plain, bounded = (AttentionGate(2, "msan3", bounded=b).double() for b in (False, True))
    bounded.load_state_dict(plain.state_dict())
    d = (30 * torch.rand(1, 2, 8, 8, dtype=torch.float64)).requires_grad_()
    k = 30 * torch.rand(1, 2, 8, 8, dtype=torch.float64)
    gates = [(gate(d, k) / d).detach() for gate in (plain, bounded)]
    score = torch.logit(gates[0])
    sure = gates[0] > 1 - 1e-9
    torch.testing.assert_close(gates[1][~sure], ((1 + score) / (2 + score))[~sure])
    assert sure.any() and bool((gates[1] < 1).all())
    assert small(gate_bounded=True).attn1.bounded and not small().attn1.bounded


def test_final_norm():
    mended = small(final_norm=False)
    assert mended.final.conv.bias is not None and not any(
        key.startswith("final.bn") for key in mended.state_dict()
    )
    with torch.no_grad():
        mended.final.conv.bias.fill_(3.0)
        mended.final.conv.weight.zero_()
        assert (mended.maps(torch.rand(1, 3, 96, 96))[3] == 3).all()
        x = torch.rand(2, 3, 96, 96)
        assert small().maps(x)[3].std() == pytest.approx(1, abs=0.1)  # of the published head


def test_channel_order():
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        rgb, bgr = (small(channel_order=order).eval() for order in ("rgb", "bgr"))
        assert torch.equal(bgr(x), rgb(x.flip(1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "msan4"}, "attention must be one of 'fused', 'msan1', .*got 'msan4'"),
        ({"width": 3}, "width must be a whole number of at least 4, got 3"),
        ({"alphas": (0.5, 0.5)}, "alphas must be four numbers in 0..1, at most 1 together"),
        ({"alphas": (0.5, 0.5, 0.5, 0.5)}, r"at most 1 together, got \(0.5, 0.5, 0.5, 0.5\)"),
        ({"alphas": (-0.1, 0.5, 0.3, 0.3)}, "in 0..1"),
        ({"alphas": (float("nan"), 0.5, 0.3, 0.3)}, "at most 1"),
        ({"alphas": (0, 0, 0, 0)}, "alphas must be four numbers"),
        ({"channel_order": "gbr"}, "channel_order must be one of 'rgb', 'bgr', got 'gbr'"),
        ({"channel_order": "bgr", "in_channels": 1}, "for 3 channels, got in_channels=1"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("drrmsan_s", **options)
