"""The check that every network makes of its input."""

from torch import Tensor


def check_image(x: Tensor, channels: int, multiple: int) -> None:
    """Refuses what a network cannot take.

    Args:
        x: should be (N, channels, H, W), H and W multiples of ``multiple``.

    Raises:
        ValueError: it is not; the message names the nearest sizes that are.
    """
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"x must be (N, {channels}, H, W), got {tuple(x.shape)}")
    height, width = x.shape[2:]
    if height % multiple or width % multiple or not height or not width:
        sizes = dict.fromkeys(
            f"{_nearest(height, multiple, up)} x {_nearest(width, multiple, up)}"
            for up in (False, True)
        )
        raise ValueError(
            f"height and width of x must be multiples of {multiple}, got {height} x {width}; "
            f"the nearest are {' and '.join(sizes)}"
        )


def _nearest(size: int, multiple: int, up: bool) -> int:
    below = size // multiple * multiple
    above = below if below == size else below + multiple
    return max(above if up else below, multiple)
