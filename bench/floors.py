"""The bytes each op has to move with perfect fusion, and the operations it has to do.

In passes over the map: x, which for split attention holds R splits. `resident`: what is needed
twice is still in a cache, which nothing can undercut. `streamed`: it comes from memory twice, which
is what is left of the floor for a map whose every image is larger than the cache.
"""

from math import prod

from bench.cases import DTYPES, Case

# op: (inference resident, streamed, backward resident, streamed)
PASSES = {
    "eca": (2.0, 3.0, 3.0, 4.0),
    "eca_pool": (3.25, 4.25, 3.25, 4.5),  # two maps in, their sum and a quarter out
    "triplet": (2.0, 3.0, 3.0, 4.0),
    "triplet_parts": (2.0, 3.0, 3.0, 4.0),
    "mde": (2.0, 2.0, 2.0, 2.0),
    "mde_learned": (2.0, 2.0, 3.0, 3.0),
    "gate": (5.0, 5.0, 8.0, 8.0),  # three maps in, two out; then five in, three out
    "position": (4.0, 4.0, 8.0, 8.0),
    "mde_concat": (4.0, 4.0, 2.0, 2.0),  # both maps; of the gradient, up's half is a slice
}


# Where the floor is what time goes for.
_SPLITS = ("split", "split_parts", "split_folded")
MEMORY_BOUND = {*PASSES, *_SPLITS} - {"position"}


def map_bytes(case: Case) -> int:
    """Of the map that counts."""
    return prod(case.shape) * DTYPES[case.dtype].itemsize


def floor_bytes(case: Case) -> tuple[int, int]:
    """(resident, streamed) bytes of a case."""
    resident, streamed, backward, backward_streamed = passes(case)
    if case.training:
        resident, streamed = resident + backward, streamed + backward_streamed
    unit = map_bytes(case)
    return int(resident * unit), int(streamed * unit)


def passes(case: Case) -> tuple[float, float, float, float]:
    """Over x: inference resident and streamed, backward resident and streamed."""
    if case.op in _SPLITS:  # the output is an R-th of x
        part = 1 / dict(case.options).get("radix", 2)
        return 1 + part, 2 + part, 2 + part, 2 + 2 * part
    return PASSES[case.op]


def flops(case: Case) -> int:
    """Additions, products and comparisons of the formulas; an exponential counts as one."""
    forward, backward = FLOPS[case.op](case)
    return int(prod(case.shape) * (forward + (backward if case.training else 0)))


def _triplet(case: Case) -> tuple[float, float]:
    """Nine an element, and 98 products and sums for each element of the three planes."""
    planes = sum(1 / side for side in case.shape[1:])
    return 9 + 196 * planes, 11 + 392 * planes


_STENCIL = 56  # 28 products and sums: the 7 x 7 masks row by row, then column by column
# op: operations an element of x, forward and backward
FLOPS = {
    "eca": lambda case: (2, 4),
    "eca_pool": lambda case: (4, 5),
    "triplet": _triplet,
    "triplet_parts": lambda case: (9, 11),
    "split": lambda case: (3, 4),
    "split_parts": lambda case: (3, 4),
    "split_folded": lambda case: (6, 0),
    "mde": lambda case: (_STENCIL, _STENCIL),
    "mde_learned": lambda case: (_STENCIL, _STENCIL + 8),
    "mde_concat": lambda case: (_STENCIL, _STENCIL),
    "gate": lambda case: (7, 11),
    "position": lambda case: tuple(k * case.shape[2] * case.shape[3] for k in (4, 10)),
}
