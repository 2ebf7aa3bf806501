"""A file is run and held to the network it was made of, on images of several sizes."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.normalize import normalize
from ..errors import UserError
from ..inference import Trained, full_memory, naming_flags
from .formats import Run

TOLERANCE = 1e-4  # of the largest logit, where that is above 1
_LARGEST = 1 << 13  # side of an image that is tried
_LONGEST = 200  # characters of a reason that is quoted
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
_SMALL = 64  # the usual sizes are not above twice of it: they are run in seconds


def parse_sizes(words: Sequence[str]) -> list[tuple[int, int]]:
    """Heights and widths of words such as 37x53.

    Raises:
        UserError: a word is none, or a side is 0 or huge.
    """
    found = []
    for word in words:
        sides = re.fullmatch(r"(\d{1,6})x(\d{1,6})", word)
        if sides is None or not all(1 <= int(side) <= _LARGEST for side in sides.groups()):
            raise UserError(
                f"--sizes {word}: must be HEIGHTxWIDTH, such as 37x53, each 1 to {_LARGEST}."
            )
        found.append((int(sides[1]), int(sides[2])))
    return found


def sizes_of(trained: Trained, words: Sequence[str]) -> list[tuple[int, int, int]]:
    """(images, height, width) to try: those of the words, or the usual ones.

    The usual ones are the square that the network was trained on, as far as it is small, an odd
    size above and an odd one below.
    """
    side = min(trained.view.size, 2 * _SMALL)
    usual = [(side, side), (side + 5, side // 2 + 7), (max(side // 2 - 3, 1), 9)]
    sizes = parse_sizes(words) or usual
    return [(1 + number % 3, *size) for number, size in enumerate(sizes)]


@torch.inference_mode()
def check(
    read: Callable[[], Run], trained: Trained, sizes: Sequence[tuple[int, int, int]]
) -> list[dict[str, Any]]:
    """Compares a file with the network, whose fused ops run as everywhere else.

    Args:
        read: opens the file.
        trained: the network.
        sizes: (images, height, width) of random images.

    Returns:
        For each size the largest difference of two logits, and what was allowed.

    Raises:
        UserError: a difference is larger, or the file cannot be opened or run.
    """
    try:
        run = read()
    except Exception as error:
        raise _refused(f"cannot be opened ({first_line(error)})") from error
    return list(_checks(run, trained, sizes))


def _checks(
    run: Run, trained: Trained, sizes: Sequence[tuple[int, int, int]]
) -> Iterator[dict[str, Any]]:
    drawn = torch.Generator().manual_seed(0)
    for images, height, width in sizes:
        where = f"{images} x {height}x{width}"
        with naming_flags(sizes=f"{height}x{width}"):
            image = torch.rand(images, trained.channels, height, width, generator=drawn)
            image = image.to(trained.device)
            wanted = trained.network(normalize(image, trained.normalize)).float()
            found = _run(run, image, where)
        if found.shape != wanted.shape:
            raise _refused(f"gives {tuple(found.shape)} for {where}, not {tuple(wanted.shape)}")
        error = float((found - wanted).abs().max())
        allowed = TOLERANCE * max(1.0, float(wanted.abs().max()))
        if not error <= allowed:  # NaN too
            raise _refused(f"is {error:.1e} off the network on {where}, allowed are {allowed:.1e}")
        size = {"images": images, "height": height, "width": width}
        yield {**size, "error": error, "allowed": allowed}


def _run(run: Run, image: Tensor, where: str) -> Tensor:
    try:
        return run(image)
    except Exception as error:
        if full_memory(error):
            raise
        raise _refused(f"cannot be run on {where} ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """What an error says first, without colours and not too long; its kind if it says nothing."""
    lines = (line.strip() for line in _COLOURS.sub("", str(error)).splitlines())
    said = next(filter(None, lines), type(error).__name__).rstrip(".")
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]} ..."


def _refused(what: str) -> UserError:
    return UserError(
        f"the exported file {what}, so it was not kept: try another --format, and please report it "
        "with the versions that medseg doctor prints.",
        code=3,
    )
