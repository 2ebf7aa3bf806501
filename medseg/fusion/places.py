"""The blocks of a model that are to be fused, and the model as it was and as it will be."""

from typing import NamedTuple

from torch import nn

from .block import Fused, put, take
from .layout import turn, turn_back


class Place(NamedTuple):
    """A block that is to be fused: its path in the model and the form it has."""

    path: str
    block: nn.Module
    form: type[Fused]


def put_all(places: list[Place], backend: str | None, turned: nn.Module | None = None) -> None:
    """Fuses the blocks that are not yet, and brings the maps of ``turned`` to channels_last."""
    for place in places:
        if not isinstance(place.block, Fused):
            put(place.block, place.form, backend)
    if turned is not None:
        turn(turned)


def take_all(places: list[Place], turned: nn.Module | None = None) -> None:
    """Undoes it."""
    for place in places:
        if isinstance(place.block, Fused):
            take(place.block)
    if turned is not None:
        turn_back(turned)
