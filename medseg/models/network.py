"""What every network of the package has in common."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import UserError
from medseg.kernels._backend import has_open_sizes


class Outputs(NamedTuple):
    """What a network with deep supervision returns in training; in eval mode it is logits alone.

    Attributes:
        logits: (N, classes, H, W), what eval mode would return.
        aux: logits of auxiliary heads, each (N, classes, H, W).
    """

    logits: Tensor
    aux: tuple[Tensor, ...] = ()


_Out = TypeVar("_Out", Tensor, Outputs)


class Network(nn.Module):
    """A segmentation network: images (N, in_channels, H, W) to logits (N, classes, H, W).

    The logits lie in memory as the maps do, on a CPU mostly channels_last: `reshape` takes them,
    `view` may not.

    Attributes:
        paper, year: where the network comes from.
        fused: the fused ops that its attention runs on.
        size_multiple: the body works on heights and widths that are multiples of it.
        least_size: and that are not below it.
        in_channels: channels of the image.
        classes: channels of the logits, background included.
        per_class: how the names of entries begin whose size follows from ``classes``.
        beyond_backbone: and those of what a file of the backbone alone does not have besides.
        filled_by: buffers that an option fills and a file of weights fills too, by their endings.
        channels_last_on_cpu: whether `fit` gives images that layout; False leaves them theirs.
    """

    paper: ClassVar[str] = ""
    year: ClassVar[int] = 0
    fused: ClassVar[tuple[str, ...]] = ()
    per_class: ClassVar[tuple[str, ...]] = ()
    beyond_backbone: ClassVar[tuple[str, ...]] = ()
    filled_by: ClassVar[dict[str, str]] = {}
    size_multiple = 1
    least_size = 1
    channels_last_on_cpu = True

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.classes = classes

    def check_image(self, x: Tensor) -> None:
        """Refuses what the network cannot take.

        Raises:
            ValueError: ``x`` is no (N, in_channels, H, W) with at least one pixel.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels or not x.shape[2] or not x.shape[3]:
            raise ValueError(
                f"x must be (N, {self.in_channels}, H, W), H and W at least 1, got {tuple(x.shape)}"
            )

    def fit(self, x: Tensor) -> tuple[Tensor, Callable[[_Out], _Out]]:
        """Brings an image of any size to a legal one by repeating its last row and column.

        On a CPU the image becomes channels_last, and so do the maps behind it: convolutions on
        two cores take 5 to 40 % less time so, and copying the image costs nothing beside them.

        Returns:
            The image, and what cuts logits, or ``Outputs``, of its size back to the size of ``x``.

        Raises:
            ValueError: as `check_image`.
        """
        self.check_image(x)
        height, width = x.shape[2:]
        below, right = (self.legal_size(side) - side for side in (height, width))
        crop = _whole
        if has_open_sizes(x) or below or right:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
            crop = partial(_cut, height=height, width=width)
        return self.laid_out(x), crop

    def laid_out(self, x: Tensor) -> Tensor:
        """The image in the layout of the maps; what pools or slices a grey one has to ask again."""
        if x.device.type != "cpu" or not self.channels_last_on_cpu or has_open_sizes(x):
            return x
        if x.stride(1) == 1:
            return x
        return x.clone(memory_format=torch.channels_last)  # `to` would leave a grey image alone

    def legal_size(self, side: int) -> int:
        """The least height or width of the body that an image of that height or width fits in."""
        step = self.size_multiple
        return (torch.sym_max(side, self.least_size) + step - 1) // step * step  # pyright: ignore[reportReturnType]

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives the entries of a file of the original authors the names of this network.

        A state dict of any other origin comes back as it is.
        """
        return state

    @classmethod
    def of_authors(cls, state: dict[str, Tensor]) -> bool:
        """Whether the entries have the names of the original authors, which `translate` knows."""
        return False

    @classmethod
    def made_with(cls, state: dict[str, Tensor]) -> dict[str, Any]:
        """The options that a state dict of this class shows in its names and shapes."""
        return {}


def check_choice(option: str, value: object, known: Collection[str]) -> None:
    """Refuses, by a UserError, an option of a network that is none of those it knows."""
    if value not in known:
        words = ", ".join(repr(one) for one in known)
        raise UserError(f"{option} must be one of {words}, got {value!r}")


def check_count(option: str, value: object, least: int = 1) -> None:
    """Refuses, by a UserError, an option that is no whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{option} must be a whole number of at least {least}, got {value!r}")


def check_flag(option: str, value: object) -> None:
    """Refuses, by a UserError, a switch that is neither True nor False."""
    if not isinstance(value, bool):
        raise UserError(f"{option} must be True or False, got {value!r}")


def _whole(out: _Out) -> _Out:
    return out


def _cut(out: _Out, height: int, width: int) -> _Out:
    if isinstance(out, Tensor):
        return out[:, :, :height, :width]
    aux = tuple(_cut(each, height, width) for each in out.aux)
    return Outputs(_cut(out.logits, height, width), aux)
