"""ECA, triplet, split attention and the Z-pool gate against numbers of the authors' modules."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medseg.kernels import eca_attention, split_attention, triplet_attention, use_backend
from medseg.kernels.triplet.reference import z_pool_gate
from medseg.layers import AttentionGate, MinPool, PositionAttention
from tests.golden import RUNS, device_for, load, needs_golden, relative

pytestmark = needs_golden
ECA = ("k3_nobias", "k5_nobias", "k3_bias_dra", "k3_bias_c7_logits_dra", "k3_hpddr")
TRIPLET = ("eval", "train", "no_spatial_eval", "ties_eval")
SPLIT = (
    "dpsau2_c16_eval", "dpsau2_c16_train", "dpsau2_c68_eval", "resnest_g1_r4_eval",
    "resnest_g2_r2_eval", "resnest_g2_r2_train", "resnest_r1_eval",
)  # fmt: skip
GATES = ("ChannelGateH.spatial", "ChannelGateW.spatial", "SpatialGate.spatial")
# dtype: outputs, gradients; a gradient is measured against the largest of its file at least thus.
TOLERANCES = {torch.float64: (1e-10, 1e-9, 1e-3), torch.float32: (1e-5, 1e-4, 3e-2)}


def leaves(arrays, dtype, device):
    """x and the weights of a golden file, by their original names."""
    tensors = {"x": torch.from_numpy(arrays["x"])}
    tensors |= {k[2:]: torch.from_numpy(np.array(v)) for k, v in arrays.items() if k[:2] == "w/"}
    for name, value in tensors.items():
        if value.is_floating_point():
            tensors[name] = value.to(device, dtype).requires_grad_("running_" not in name)
    return tensors


def check(arrays, out, tensors, dtype, vanishing=()):
    """A vanishing gradient is rounding alone, and measured against the largest of the file."""
    tolerance, grad_tolerance, floor = TOLERANCES[dtype]
    assert relative(out, arrays["out"]) <= tolerance
    (out * torch.from_numpy(arrays["cot"]).to(out)).sum().backward()
    truths = {k.removeprefix("gw/"): v for k, v in arrays.items() if k.startswith("gw/")}
    top = max(np.abs(v).max() for v in truths.values())
    for name, truth in {"x": arrays["grad_x"], **truths}.items():
        got = tensors[name].grad.double().cpu().numpy()
        scale = max(np.abs(truth).max(), (1.0 if name in vanishing else floor) * top)
        assert np.abs(got - truth).max() <= grad_tolerance * scale, name
    for name, truth in arrays.items():
        if name.startswith("after/") and "running_" in name:
            assert relative(tensors[name.removeprefix("after/")], truth) <= tolerance, name


@pytest.mark.parametrize(("backend", "dtype"), RUNS)
@pytest.mark.parametrize("case", ECA)
def test_eca(case, backend, dtype):
    device = device_for(backend, dtype)
    arrays, _ = load(f"ops/eca_{case}")
    t = leaves(arrays, dtype, device)
    out = eca_attention(t["x"], t["conv.weight"].flatten(), t.get("conv.bias"), backend=backend)
    check(arrays, out, t, dtype)


@pytest.mark.parametrize(("backend", "dtype"), RUNS)
@pytest.mark.parametrize("case", TRIPLET)
def test_triplet(case, backend, dtype):
    device = device_for(backend, dtype)
    arrays, meta = load(f"ops/triplet_{case}")
    t = leaves(arrays, dtype, device)
    gates = [g for g in GATES if f"{g}.conv.weight" in t]
    running = [
        torch.cat([t[f"{g}.bn.{name}"] for g in gates]) for name in ("running_mean", "running_var")
    ]
    out = triplet_attention(
        t["x"],
        torch.cat([t[f"{g}.conv.weight"] for g in gates]),
        torch.cat([t[f"{g}.bn.weight"] for g in gates]),
        torch.cat([t[f"{g}.bn.bias"] for g in gates]),
        *running,
        training=meta["mode"] == "train",
        backend=backend,
    )
    for name, values in zip(("running_mean", "running_var"), running, strict=True):
        t |= {f"{g}.bn.{name}": value for g, value in zip(gates, values.split(1), strict=True)}
    check(arrays, out, t, dtype)


@pytest.mark.parametrize(("backend", "dtype"), RUNS)
@pytest.mark.parametrize("case", SPLIT)
def test_split(case, backend, dtype):
    """The convolution, batch norm and ReLU in front are PyTorch's, the attention is ours."""
    device = device_for(backend, dtype)
    arrays, meta = load(f"ops/split_{case}")
    t = leaves(arrays, dtype, device)
    for name in meta["unused"]:
        del t[name], arrays[f"w/{name}"]
    for name in [n for n in arrays if n.startswith("after/bn2")]:
        del arrays[name]
    x, weight, training = t["x"], t["conv.weight"], meta["mode"] == "train"
    groups = x.shape[1] // weight.shape[1]
    radix = weight.shape[0] // arrays["out"].shape[1]
    norm = [t[f"bn0.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    u = F.conv2d(x, weight, t.get("conv.bias"), padding=1, groups=groups)
    u = F.batch_norm(u, *norm, training=training).relu()
    out = split_attention(
        u, t["fc1.weight"].flatten(1), t["fc1.bias"], t["bn1.weight"], t["bn1.bias"],
        t["bn1.running_mean"], t["bn1.running_var"], t["fc2.weight"].flatten(1), t["fc2.bias"],
        radix=radix, cardinality=groups // radix, training=training, backend=backend,
    )  # fmt: skip
    # A batch norm that trains takes off the biases in front of it.
    check(arrays, out, t, dtype, ("conv.bias", "fc1.bias") if training else ())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_z_pool_gate(mode, dtype):
    arrays, _ = load(f"ops/zpool_gate_{mode}")
    t = leaves(arrays, dtype, torch.device("cpu"))
    names = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    gate = functools.partial(z_pool_gate, training=mode == "train")
    parameters = [t[f"spatial.{name}"] for name in ("conv.weight", *names)]
    check(arrays, gate(t["x"], *parameters), t, dtype)


HPDDRNET = {"cnn": "conv", **{f"pa.fc_{name}": name for name in "qkvo"}}
DANET = {f"{name}_conv": name[0] for name in ("query", "key", "value")}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", ["hpddr_c8", "hpddr_c16", "danet_c16"])
def test_position(case, backend, dtype):
    arrays, _ = load(f"ops/position_{case}")
    t = leaves(arrays, dtype, torch.device("cpu"))
    danet = case.startswith("danet")
    layer = PositionAttention(arrays["x"].shape[1], "danet" if danet else "hpddrnet", dropout=0)
    names = {
        name: ".".join([(DANET if danet else HPDDRNET).get(stem, stem), leaf] if leaf else [stem])
        for name in t
        if name != "x"
        for stem, _, leaf in [name.rpartition(".") if "." in name else (name, "", "")]
    }
    assert set(names.values()) == set(layer.state_dict())
    with use_backend(backend):
        out = torch.func.functional_call(layer, {names[n]: t[n] for n in names}, (t["x"],))
    exact = [n for n in t if n.endswith(("fc_k.bias", "key_conv.bias"))]
    for name in exact:  # no score moves against another: the gradient is a rounding error
        arrays["gw/" + name] = np.zeros_like(arrays["gw/" + name])
    out = out if danet else out.flatten(2).mT
    check(arrays, out, t, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("variant", ["msan1", "msan2", "msan3"])
def test_attention_gate(variant, backend, dtype):
    arrays, _ = load(f"ops/drrmsan_gate_{variant}")
    arrays["x"] = arrays["dec"]
    arrays["grad_x"] = arrays["grad_dec"]
    t = leaves(arrays, dtype, torch.device("cpu"))
    t["skip"] = torch.from_numpy(arrays["skip"]).to(dtype).requires_grad_()
    arrays["gw/skip"] = arrays["grad_skip"]
    layer = AttentionGate(t["x"].shape[1], variant)
    weights = {name: value for name, value in t.items() if name not in ("x", "skip")}
    assert set(weights) == set(layer.state_dict())
    with use_backend(backend):
        out = torch.func.functional_call(layer, weights, (t["x"], t["skip"]))
    check(arrays, out, t, dtype)


def test_min_pool():
    arrays, _ = load("ops/drrmsan_minpool")
    for name in ("", "_signed"):
        got = MinPool()(torch.from_numpy(arrays["x" + name]))
        assert np.array_equal(got.numpy(), arrays["out" + name])
