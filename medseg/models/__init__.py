"""Published segmentation networks, built by name."""

from .dpsau2_net import DPSAU2Net
from .dra_net import DRANet
from .drrmsan import DRRMSAN
from .e_du import EDU
from .fold import fuse_conv_bn
from .hpddrnet import HPDDRNet
from .network import Network, Outputs
from .registry import create_model, list_models, register
from .weights import load_weights

__all__ = [
    "DRRMSAN",
    "EDU",
    "DPSAU2Net",
    "DRANet",
    "HPDDRNet",
    "Network",
    "Outputs",
    "create_model",
    "fuse_conv_bn",
    "list_models",
    "load_weights",
    "register",
]
