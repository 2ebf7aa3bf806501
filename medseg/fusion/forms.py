"""The forms of attention that can be fused: one class each, and the table of them.

To add one, write a class here that says by which names and parts it is known and what it computes,
and enter it in `FORMS`. A form is not taken on its looks alone: before a block is fused, probe.py
compares both formulas on random numbers.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medseg.kernels import position_attention
from medseg.layers import ECA, PositionAttention, SplitAttention, TripletAttention
from medseg.layers.position import _map, _tokens

from . import parts
from .block import Fused
from .stencil import FusedStencil


class FusedECA(Fused, ECA):
    """ECA of ECANet, timm, DRA-Net (with a bias) and HPDDRNet."""

    label, op = "ECA", "eca"
    names = ("eca", "ecalayer", "ecaattention", "ecamodule", "ecablock", "efficientchannelattn")
    _spare = {  # noqa: RUF012
        **dict.fromkeys(("avg_pool", "gap"), parts.pool),
        **dict.fromkeys(("sigmoid", "gate"), parts.bypassed("Sigmoid")),
    }

    @staticmethod
    def why_not(block: Any) -> str | None:
        return parts.why_not_parts(block, {"conv": parts.taps}, FusedECA._spare)

    @staticmethod
    def channels(block: Any) -> int:
        return 6

    def fused(self, x: Tensor) -> Tensor:
        return ECA.forward(self, x)


def _gate_parts(gate: str, inner: str) -> dict[str, parts.Check]:
    """A Z-pool gate of landskape's or DRA-Net's, its convolution and norm under ``inner``."""
    return {
        gate: parts.bypassed("AttentionGate", "SpatialGate"),
        f"{gate}.compress": parts.bypassed("ZPool", "ChannelPool"),
        f"{gate}.{inner}": parts.bypassed("BasicConv"),
        f"{gate}.{inner}.conv": parts.gate_conv,
        f"{gate}.{inner}.bn": parts.norm,
    }


class FusedTriplet(Fused, TripletAttention):
    """Triplet attention of landskape-ai."""

    label, op, names = "triplet attention", "triplet", ("tripletattention",)
    _places = ("cw", "hc", "hw")
    _needed = _gate_parts("cw", "conv") | _gate_parts("hc", "conv")
    _spare = _gate_parts("hw", "conv")

    @classmethod
    def may_be(cls, module: Any) -> bool:
        return hasattr(module, cls._places[0])

    @classmethod
    def _gates_of(cls, block: Any) -> list[Any]:
        gates = [getattr(block, place, None) for place in cls._places]
        return [gate.conv for gate in gates if gate is not None]

    @classmethod
    def why_not(cls, block: Any) -> str | None:
        found = parts.why_not_parts(block, cls._needed, cls._spare)
        if found is not None:
            return found
        norms = [gate.bn for gate in cls._gates_of(block)]
        kinds = {(n.momentum, n.eps, n.training) for n in norms}
        return None if len(kinds) == 1 else "its norms differ in momentum, eps or mode"

    @staticmethod
    def channels(block: Any) -> int:
        return 5

    def fused(self, x: Tensor) -> Tensor:
        return self._fused(x, [gate.bn for gate in self._gates()])

    def _gates(self) -> list[Any]:
        return self._gates_of(self)


class FusedDRATriplet(FusedTriplet):
    """The same by the names of DRA-Net and of landskape-ai's first release."""

    _places = ("ChannelGateH", "ChannelGateW", "SpatialGate")
    _needed = _gate_parts("ChannelGateH", "spatial") | _gate_parts("ChannelGateW", "spatial")
    _spare = _gate_parts("SpatialGate", "spatial")

    @classmethod
    def _gates_of(cls, block: Any) -> list[Any]:
        gates = [getattr(block, place, None) for place in cls._places]
        return [gate.spatial for gate in gates if gate is not None]


class FusedSplit(Fused, SplitAttention):
    """Split attention of ResNeSt, timm and DPSAU2-Net."""

    label, op = "split attention", "split"
    names = ("splatconv2d", "splitattn", "splatconv")
    _needed = {  # noqa: RUF012
        "conv": parts.called,
        "bn0": parts.norm_or_nothing,
        "fc1": parts.pointwise,
        "bn1": parts.norm,
        "fc2": parts.pointwise,
        "rsoftmax": parts.bypassed("rSoftMax", "RadixSoftmax"),
    }
    _spare = {  # noqa: RUF012
        **dict.fromkeys(("relu", "act0", "act1"), parts.bypassed("ReLU")),
        "drop": parts.bypassed("Identity"),
        **dict.fromkeys(("conv2", "bn2", "dropout"), parts.idle),  # DPSAU2-Net never calls them
    }

    @staticmethod
    def why_not(block: Any) -> str | None:
        found = parts.why_not_parts(block, FusedSplit._needed, FusedSplit._spare)
        if found is None and not 1 <= block.rsoftmax.radix <= 4:
            return f"its radix is {block.rsoftmax.radix}, the fused op takes 1 to 4"
        return found

    @staticmethod
    def channels(block: Any) -> int:
        return block.conv.in_channels

    @property
    def cardinality(self) -> int:
        return self.rsoftmax.cardinality  # pyright: ignore

    def fused(self, x: Tensor) -> Tensor:
        return SplitAttention.forward(self, x)


class FusedPositionMixture(Fused):
    """DANet's attention of positions."""

    label, op, names = "position attention", "position", ("pammodule", "pam")
    _needed = {  # noqa: RUF012
        **dict.fromkeys(("query_conv", "key_conv", "value_conv"), parts.called)
    }
    _spare = {"softmax": parts.softmax}  # noqa: RUF012
    query_conv: nn.Module
    key_conv: nn.Module
    value_conv: nn.Module
    gamma: Tensor

    @staticmethod
    def why_not(block: Any) -> str | None:
        found = parts.why_not_parts(
            block, FusedPositionMixture._needed, FusedPositionMixture._spare
        )
        return found or parts.why_scalar(block, "gamma")

    @staticmethod
    def channels(block: Any) -> int:
        return block.query_conv.in_channels

    def fused(self, x: Tensor) -> Tensor:
        q, k, v = (_tokens(conv(x)) for conv in (self.query_conv, self.key_conv, self.value_conv))
        out = position_attention(q, k, v, scale=1.0, backend=self.backend)
        return self.gamma * _map(out, x) + x


class FusedChannelMixture(Fused):
    """DANet's attention of channels, residual and gamma taken into its second product."""

    label, op, names = "channel attention", "position", ("cammodule", "cam")
    gamma: Tensor

    @staticmethod
    def why_not(block: Any) -> str | None:
        found = parts.why_not_parts(block, {}, {"softmax": parts.softmax})
        return found or parts.why_scalar(block, "gamma")

    @staticmethod
    def channels(block: Any) -> int:
        return 6

    def fused(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        if torch.is_autocast_enabled(x.device.type) or self.gamma.dtype is not x.dtype:
            return self.original.forward(self, x)  # which adds x in its own dtype
        energy = torch.bmm(flat, flat.mT)  # (N, C, C)
        weights = torch.softmax(energy.detach().amax(-1, keepdim=True) - energy, -1)
        return torch.baddbmm(flat, self.gamma * weights, flat).view(x.shape)


class FusedHPDDRPosition(Fused, PositionAttention):
    """HPDDRNet's attention of positions, which returns tokens.

    Where weights are dropped the original runs: the fused op would drop others.
    """

    label, op, names = "position attention", "position", ("positionattentionmodule",)
    variant = "hpddrnet"
    dropout = 0.0
    _needed = {  # noqa: RUF012
        "cnn": parts.called,
        "pa": parts.bypassed("ScaledDotProductAttention"),
        **dict.fromkeys(("pa.fc_q", "pa.fc_k", "pa.fc_v", "pa.fc_o"), parts.called),
        "pa.dropout": parts.bypassed("Dropout"),
    }

    @staticmethod
    def why_not(block: Any) -> str | None:
        found = parts.why_not_parts(block, FusedHPDDRPosition._needed, {})
        if found is None and block.pa.h != 1:
            return f"it has {block.pa.h} heads, the fused op has one"
        return found

    @staticmethod
    def channels(block: Any) -> int:
        return block.cnn.in_channels

    conv = property(lambda self: self.cnn)
    q = property(lambda self: self.pa.fc_q)
    k = property(lambda self: self.pa.fc_k)
    v = property(lambda self: self.pa.fc_v)
    o = property(lambda self: self.pa.fc_o)

    def fused(self, x: Tensor) -> Tensor:
        dropout: Any = self.get_submodule("pa.dropout")
        if dropout.training and dropout.p > 0:
            return self.original.forward(self, x)
        return PositionAttention.forward(self, x).flatten(2).mT


FORMS: tuple[type[Fused], ...] = (
    FusedECA,
    FusedTriplet,
    FusedDRATriplet,
    FusedSplit,
    FusedPositionMixture,
    FusedChannelMixture,
    FusedHPDDRPosition,
    FusedStencil,
)

_NO_GATE = "no fused op has a single spatial gate"
UNSERVED = {  # attention that is known and left alone
    "cecamodule": "it pads the channels in a circle, the fused op with zeros",
    "circularefficientchannelattn": "it pads the channels in a circle, the fused op with zeros",
    **dict.fromkeys(("scsemodule", "scse", "scseblock"), _NO_GATE),
    **dict.fromkeys(("spatialgate", "spatialattn", "lightspatialattn"), _NO_GATE),
    **dict.fromkeys(("cbam", "cbammodule", "lightcbammodule", "spatialattention"), _NO_GATE),
}
