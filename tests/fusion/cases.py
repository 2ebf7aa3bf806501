"""Every form of attention, small, by the names and parts of its authors."""

import torch
from torch import nn

from bench.published import blocks, dpsau2_net, dra_net

C = 16  # channels of the maps
# form: (how it is made, the op that it runs on when it is fused)
FORMS = {
    "eca-ecanet": (lambda: blocks.eca_layer(5), "eca"),
    "eca-timm": (blocks.EcaModule, "eca"),
    "eca-hpddrnet": (lambda: blocks.ECA(C), "eca"),
    "eca-dra": (dra_net.ECAAttention, "eca"),
    "triplet-landskape": (blocks.TripletAttention, "triplet"),
    "triplet-landskape-two": (lambda: blocks.TripletAttention(no_spatial=True), "triplet"),
    "triplet-landskape-5x5": (lambda: blocks.TripletAttention(kernel_size=5), "triplet"),
    "triplet-dra": (dra_net.TripletAttention, "triplet"),
    "triplet-dra-two": (lambda: dra_net.TripletAttention(no_spatial=True), "triplet"),
    "split-resnest": (lambda: blocks.SplAtConv2d(C, C), "split"),
    "split-resnest-groups": (lambda: blocks.SplAtConv2d(C, 2 * C, groups=2, radix=4), "split"),
    "split-resnest-one": (lambda: blocks.SplAtConv2d(C, C, radix=1, bias=True), "split"),
    "split-timm": (lambda: blocks.SplitAttn(C), "split"),
    "split-timm-groups": (lambda: blocks.SplitAttn(C, groups=2), "split"),
    "split-dpsau2": (lambda: dpsau2_net.SplAtConv2d(C, C), "split"),
    "position-danet": (lambda: blocks.PAM_Module(C), "position"),
    "channel-danet": (blocks.CAM_Module, None),  # PyTorch's own products, another way
    "position-hpddrnet": (lambda: blocks.PositionAttentionModule(C, dropout=0), "position"),
    "stencil-sharp8": (lambda: blocks.sharpening(C), "mde"),
    "stencil-sharp5": (lambda: blocks.sharpening(C, (0.0, -1.0, 0.0), 5.0), "mde"),
    "stencil-blur": (lambda: blocks.sharpening(C, (0.0625, 0.125, 0.0625), 0.25), "mde"),
    "stencil-reflect": (lambda: blocks.sharpening(C, padding_mode="reflect"), "mde"),
}


def make(name):
    """A block of a form, with norms and gates that do something."""
    torch.manual_seed(1)
    block = FORMS[name][0]()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.get_buffer("running_var").uniform_(0.5, 1.5)
    if isinstance(getattr(block, "gamma", None), nn.Parameter):
        nn.init.constant_(block.gamma, 0.7)
    return block


class Model(nn.Module):
    """A small network with four forms in it, one of them shared by two places."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, C, 3, padding=1)
        self.bn = nn.BatchNorm2d(C)
        self.eca = dra_net.ECAAttention()
        self.deep = nn.Sequential(make("split-resnest"), nn.ReLU(), make("triplet-landskape"))
        self.same = self.eca
        self.sharp = blocks.sharpening(C)
        self.head = nn.Conv2d(C, 2, 1)

    def forward(self, x):
        x = self.eca(torch.relu(self.bn(self.stem(x))))
        return self.head(self.same(self.deep(x)) + 0.1 * self.sharp(x))


PLACES = ["eca", "deep.0", "deep.2", "sharp"]  # of the blocks in it
