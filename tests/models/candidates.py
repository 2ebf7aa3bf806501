"""What check_golden.py is to check, run from the root of the repository as

python ../shared/golden/check_golden.py --golden ../shared/golden --candidates \
    tests/models/candidates.py
"""

import re

import torch

from medseg import create_model
from medseg.kernels import eca_attention, triplet_attention
from medseg.kernels.triplet.reference import z_pool_gate
from medseg.layers import PositionAttention
from medseg.models import dpsau2_net, dra_net, hpddrnet
from medseg.models.ddr import DAPPM
from medseg.models.drrmsan import mixed

GATES = ("ChannelGateH.spatial", "ChannelGateW.spatial", "SpatialGate.spatial")
NAMES = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")


def build(name):
    return lambda out_ch: create_model(name, classes=out_ch)


def rename(clean_name, dead):
    """The authors' names in ours, None for what their network never runs."""
    return lambda key: None if re.match(dead, key) else clean_name(key)


def drrmsan(variant):
    def build(alphas):
        return create_model("drrmsan", attention=variant, alphas=alphas)

    def forward(model, x):
        maps = model.maps(x)
        return [z.sigmoid() for z in (*maps, mixed(maps, model.alphas))]

    return {"build": build, "forward": forward}


def eca(inputs, weights, mode):
    return eca_attention(inputs["x"], weights["conv.weight"].flatten(), weights.get("conv.bias"))


def triplet(inputs, weights, mode):
    gates = [g for g in GATES if f"{g}.conv.weight" in weights]
    stacked = [torch.cat([weights[f"{g}.{name}"] for g in gates]) for name in NAMES]
    out = triplet_attention(inputs["x"], *stacked, training=mode == "train")
    for name, values in zip(NAMES[3:], stacked[3:], strict=True):
        for gate, value in zip(gates, values.split(1), strict=True):
            weights[f"{gate}.{name}"].copy_(value)
    return out


def ddr_net(num_classes):
    return create_model("hpddrnet", classes=num_classes, dropout=0.0)


def dappm(inputs, weights, mode):
    x = inputs["x"]
    inner, outer = (weights[f"{name}.conv.weight"].shape[0] for name in ("scales.0", "compression"))
    names = {key: hpddrnet.clean_name(f"spp.{key}").removeprefix("dappm.") for key in weights}
    layer = DAPPM(x.shape[1], inner, outer).train(mode == "train")
    return torch.func.functional_call(layer, {names[k]: v for k, v in weights.items()}, (x,))


def position(inputs, weights, mode):
    x = inputs["x"]
    names = {key: key.replace("cnn", "conv").replace("pa.fc_", "") for key in weights}
    layer = PositionAttention(x.shape[1], dropout=0)
    out = torch.func.functional_call(layer, {names[k]: v for k, v in weights.items()}, (x,))
    return out.flatten(2).mT


def zpool(inputs, weights, mode):
    parameters = [weights[f"spatial.{name}"] for name in NAMES]
    return z_pool_gate(inputs["x"], *parameters, training=mode == "train")


CANDIDATES = {
    "dra_net": {"build": build("dra_net"), "rename": rename(dra_net.clean_name, r"tr9\.")},
    "dpsau2_net": {
        "build": build("dpsau2_net"),
        "rename": rename(dpsau2_net.clean_name, dpsau2_net.DEAD),
    },
}
CANDIDATES |= {f"drrmsan_{variant}": drrmsan(variant) for variant in ("msan1", "msan2", "msan3")}
CANDIDATES |= {
    f"ops/eca_{case}": {"fn": eca}
    for case in ("k3_nobias", "k5_nobias", "k3_bias_dra", "k3_bias_c7_logits_dra", "k3_hpddr")
}
CANDIDATES |= {
    f"ops/triplet_{case}": {"fn": triplet}
    for case in ("eval", "train", "no_spatial_eval", "ties_eval")
}
CANDIDATES |= {f"ops/zpool_gate_{mode}": {"fn": zpool} for mode in ("eval", "train")}
CANDIDATES["hpddrnet"] = {
    "build": ddr_net,
    "rename": rename(hpddrnet.clean_name, hpddrnet.DEAD),
    "forward": lambda model, x: model.coarse_logits(x),
}
CANDIDATES |= {f"ops/dappm_{mode}": {"fn": dappm} for mode in ("eval", "train")}
CANDIDATES |= {f"ops/position_hpddr_{case}": {"fn": position} for case in ("c8", "c16")}
