"""A trained network as one graph of plain PyTorch operators, for any number and size of images."""

import copy

import torch
from torch import Tensor, nn

from ..data.normalize import normalize
from ..inference import Trained
from ..kernels import use_backend

_TRACED = (2, 203, 157)  # images, height, width: no multiple of anything, and no 1


class FromImages(nn.Module):
    """The network with the normalisation of its images in front."""

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        network = copy.deepcopy(trained.network)  # channels_last weights would make maps so, too
        self.network = nn.Module.to(network, memory_format=torch.contiguous_format)  # pyright: ignore
        self.normalize = trained.normalize

    def forward(self, image: Tensor) -> Tensor:
        """image: float32 (N, C, H, W) in 0..1; returns logits (N, K, H, W)."""
        return self.network(normalize(image, self.normalize)).float()


def capture(trained: Trained) -> torch.export.ExportedProgram:
    """The graph of a network, through the reference ops, with N, H and W left open.

    No guard ties it to some sizes: maps of one pixel, which PyTorch by default makes a case of
    their own, are like all others.
    """
    # what torch.onnx.export sets for itself; there is no public name
    from torch.fx.experimental import _config

    n, height, width = _TRACED
    image = torch.rand(n, trained.channels, height, width, device=trained.device)
    open_sizes = {"image": dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}
    oblivious = _config.patch(backed_size_oblivious=True)  # pyright: ignore
    with use_backend("reference"), torch.no_grad(), oblivious:
        return torch.export.export(FromImages(trained), (image,), dynamic_shapes=open_sizes)
