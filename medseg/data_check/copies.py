"""Images that are in the set twice: pixel by pixel, or nearly, turned and mirrored ones too."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.files import read_mask_values
from .facts import SIDE, Facts

# Correlation of thumbnails. Different images of one microscope reach 0.974 on wbc_tecom, the same
# image in another format, brightness or size 0.99 and more.
NEAR = 0.985
_COARSE = SIDE // 2
_COARSE_NEAR = 0.97  # of the smaller thumbnails that most pairs are ruled out by
_BLOCK = 1 << 23  # correlations held at once, 32 MB
MOST = 1000  # pairs told; a set of one image in all its files has millions


@dataclass(frozen=True)
class Copy:
    """Two images that are one."""

    first: Facts
    second: Facts
    exact: bool
    masks_agree: float | None  # share of equal pixels; None where the sizes differ or it is turned

    @property
    def across(self) -> bool:
        """Whether they lie in different parts of the split."""
        return self.first.sample.split != self.second.sample.split


def find_copies(facts: Sequence[Facts]) -> list[Copy]:
    """Returns the pairs, exact copies first; at most `MOST` of them."""
    exact = _exact(facts)[:MOST]
    known = set(exact)
    near = [pair for pair in _near(facts) if (pair[0], pair[1]) not in known]
    copies = [_copy(facts[i], facts[j], True, False) for i, j in exact]
    copies += [_copy(facts[i], facts[j], False, turned) for i, j, turned in near]
    return copies[:MOST]


def _exact(facts: Sequence[Facts]) -> list[tuple[int, int]]:
    """Each later copy with the first one."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for place, one in enumerate(facts):
        places[one.digest].append(place)
    return [(group[0], other) for group in places.values() for other in group[1:]]


def _near(facts: Sequence[Facts]) -> list[tuple[int, int, bool]]:
    """(place, later place, whether turned or mirrored) of images whose thumbnails agree.

    Of images with the same pixels only the first is looked at: `_exact` has told of the others.
    """
    first: dict[bytes, int] = {}
    for place, one in enumerate(facts):
        if one.thumb.any():
            first.setdefault(one.digest, place)
    places = np.array(list(first.values()), np.int64)
    if len(places) < 2:
        return []
    fine = np.stack([facts[place].thumb for place in places])  # (n, SIDE, SIDE)
    found: dict[tuple[int, int], bool] = {}
    for i, j, turn in _candidates(fine):
        if (i, j) not in found and _agree(fine[i], fine[j], turn):
            found[i, j] = turn > 0
            if len(found) == MOST:
                break
    return [(int(places[i]), int(places[j]), turned) for (i, j), turned in found.items()]


def _candidates(fine: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(i, j > i, turn of j) of thumbnails that agree when halved, a block of rows at a time."""
    count = len(fine)
    coarse = _normed(fine.reshape(-1, _COARSE, 2, _COARSE, 2).mean((2, 4), dtype=np.float32))
    flat, columns = coarse.reshape(count, -1), np.arange(count)
    for turn, turned in enumerate(_turns(coarse)):
        others = turned.reshape(count, -1)
        rows = max(1, _BLOCK // count)
        for start in range(0, count, rows):
            alike = flat[start : start + rows] @ others.T > _COARSE_NEAR
            alike &= columns > start + np.arange(len(alike))[:, None]
            for i, j in zip(*np.nonzero(alike), strict=True):
                yield start + int(i), int(j), turn


def _agree(one: np.ndarray, other: np.ndarray, turn: int) -> bool:
    turned = _turns(other[None].astype(np.float32))[turn][0]
    return float((one.astype(np.float32) * turned).sum()) > NEAR


def _turns(maps: np.ndarray) -> list[np.ndarray]:
    """(n, S, S) in the eight ways to lay a square; the first is as it is."""
    quarter = [np.rot90(maps, k, (1, 2)) for k in range(4)]
    return quarter + [np.flip(each, 2) for each in quarter]


def _normed(maps: np.ndarray) -> np.ndarray:
    maps = maps - maps.mean((1, 2), keepdims=True)
    return maps / np.maximum(np.linalg.norm(maps, axis=(1, 2), keepdims=True), 1e-6)


def _copy(first: Facts, second: Facts, exact: bool, turned: bool) -> Copy:
    agree = None
    if first.mask_digest == second.mask_digest:
        agree = 1.0
    elif not turned and (first.height, first.width) == (second.height, second.width):
        one, other = read_mask_values(first.sample.mask), read_mask_values(second.sample.mask)
        agree = float((one == other).mean())
    return Copy(first, second, exact, agree)
