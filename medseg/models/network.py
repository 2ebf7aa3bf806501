"""What every network of the package has in common."""

from torch import Tensor, nn


class Network(nn.Module):
    """A segmentation network: images (N, in_channels, H, W) to logits (N, classes, H, W).

    Attributes:
        size_multiple: H and W must be multiples of it.
        in_channels: channels of the image.
        classes: channels of the logits, background included.
    """

    size_multiple = 1

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.classes = classes

    def check_image(self, x: Tensor) -> None:
        """Refuses what the network cannot take.

        Raises:
            ValueError: ``x`` is no (N, in_channels, H, W) of legal size; the message names the
                nearest legal ones.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must be (N, {self.in_channels}, H, W), got {tuple(x.shape)}")
        height, width, multiple = x.shape[2], x.shape[3], self.size_multiple
        if height % multiple or width % multiple or not height or not width:
            near = [nearest_sizes(side, multiple) for side in (height, width)]
            sizes = dict.fromkeys(f"{a} x {b}" for a, b in zip(*near, strict=True))
            raise ValueError(
                f"height and width of x must be multiples of {multiple}, got {height} x {width}; "
                f"the nearest are {' and '.join(sizes)}"
            )

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives the entries of a file of the original authors the names of this network.

        A state dict of any other origin comes back as it is.
        """
        return state

    @classmethod
    def made_with(cls, state: dict[str, Tensor]) -> dict[str, int]:
        """The options that a state dict of this class shows in its shapes."""
        return {}


def nearest_sizes(size: int, multiple: int) -> tuple[int, int]:
    """The multiples next below and above, the same twice where ``size`` is one; never 0."""
    below = size // multiple * multiple
    above = below if below == size else below + multiple
    return max(below, multiple), max(above, multiple)
