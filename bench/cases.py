"""Every benched case in one table: what is run, on what, and the figure it has to reach."""

from dataclasses import dataclass, field, replace
from itertools import product

import torch

LARGE = (4, 64, 256, 256)  # where the figures hold: a first level at 256, batch 4
HUGE = (16, 64, 256, 256)  # the same on a GPU, batch 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = {
    "nchw": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "tokens": torch.contiguous_format,
}
BOTH = ("nchw", "channels_last")
NCHW = ("nchw",)
TOKENS = ("tokens",)  # (N, H * W, C)
FP32 = ("float32",)
BF16 = ("float32", "bfloat16")
STEPS = ("inference", "forward+backward")


@dataclass(frozen=True)
class Row:
    """A shape of the table, in some layouts and dtypes; `options` go to the op."""

    shape: tuple[int, int, int, int]
    layouts: tuple[str, ...] = NCHW
    dtypes: tuple[str, ...] = FP32
    options: tuple[tuple[str, int], ...] = ()
    steps: tuple[str, ...] = STEPS


@dataclass(frozen=True)
class Case:
    """One contest. `goals`: most clones, most percent saved; for rivals, how many times faster."""

    op: str
    shape: tuple[int, int, int, int]
    layout: str
    dtype: str
    step: str
    options: tuple[tuple[str, int], ...] = ()
    goals: dict[str, float] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        shape = "x".join(str(s) for s in self.shape)
        options = "".join(f"{name}{value}-" for name, value in self.options)
        return f"{self.op}-{shape}-{options}{self.layout}-{self.dtype}-{self.step}"

    @property
    def training(self) -> bool:
        """Whether gradients are wanted."""
        return self.step != "inference"


# The networks' maps at 256 and, where the batch is 1, at 512; then odd ones, halves, tiny ones.
TABLE: dict[str, tuple[Row, ...]] = {
    "eca": (
        Row(LARGE, BOTH, BF16),
        Row((1, 64, 512, 512)),  # DRA-Net, the first level
        Row((2, 128, 128, 128), BOTH),
        Row((2, 512, 32, 32)),
        Row((2, 256, 16, 16)),  # HPDDRNet, stage 4 at 512
        Row((2, 7, 256, 256)),  # DRA-Net, the logits
        Row((2, 7, 97, 83), BOTH),
        Row((2, 64, 32, 32), dtypes=("float16",)),
        Row((1, 16, 8, 8)),
    ),
    "eca_pool": (  # DRA-Net's levels
        Row(LARGE, BOTH, BF16),
        Row((1, 64, 512, 512)),
        Row((2, 256, 64, 64)),
        Row((2, 7, 97, 83), BOTH),
    ),
    "triplet": (
        Row(LARGE, BOTH, BF16),
        Row((1, 128, 256, 256)),  # DRA-Net, dec2
        Row((2, 128, 128, 128), BOTH),
        Row((2, 512, 32, 32), BOTH),  # dec4
        Row((2, 7, 97, 83), BOTH),
        Row((2, 64, 32, 32), dtypes=("float16",)),
        Row((1, 16, 8, 8)),
    ),
    "split": (  # x of DPSAU2-Net: two splits, so twice the block's channels
        Row(LARGE, BOTH, BF16),
        Row((1, 128, 512, 512), steps=("inference",)),  # the last block
        Row((4, 128, 128, 128), BOTH),  # the first block
        Row((4, 512, 32, 32), BOTH),
        Row((4, 128, 64, 64), options=(("radix", 1),)),
        Row((4, 128, 64, 64), options=(("radix", 4), ("cardinality", 2))),
        Row((4, 14, 97, 83), BOTH),
        Row((4, 64, 32, 32), dtypes=("float16",)),
        Row((4, 16, 8, 8)),
    ),
    "triplet_parts": (Row(LARGE, BOTH),),
    "split_parts": (Row(LARGE, BOTH),),
    "split_folded": (Row(LARGE, BOTH, BF16, steps=("inference",)),),
    "mde": (  # E-DU's skips
        Row(LARGE, BOTH, BF16),
        Row((1, 64, 512, 512)),
        Row((2, 128, 128, 128), BOTH),
        Row((2, 512, 32, 32)),
        Row((2, 7, 97, 83), BOTH),
        Row((2, 64, 32, 32), dtypes=("float16",)),
        Row((1, 16, 8, 8)),
    ),
    "mde_learned": (
        Row(LARGE, BOTH, BF16, steps=("forward+backward",)),
        Row((2, 7, 97, 83), steps=("forward+backward",)),
    ),
    "mde_concat": (
        Row(LARGE, BOTH),
        Row((2, 256, 64, 64), BOTH),
        Row((2, 7, 97, 83)),
    ),
    "gate": (  # DRRMSAN's levels
        Row(LARGE, BOTH, BF16),
        Row((2, 32, 256, 256)),
        Row((2, 256, 32, 32), BOTH),
        Row((2, 7, 97, 83), BOTH),
    ),
    "position": (  # HPDDRNet's two fusions at 256, 512 and 1024
        Row((2, 128, 16, 16), TOKENS),
        Row((2, 256, 8, 8), TOKENS),
        Row((2, 128, 32, 32), TOKENS, BF16),
        Row((2, 256, 16, 16), TOKENS),
        Row((1, 128, 64, 64), TOKENS),
        Row((2, 24, 9, 11), TOKENS),
    ),
}

# Asked on a CPU, in float32 and NCHW, of LARGE.
RATIOS = {
    ("eca", "inference"): {"clones": 1.2, "eager": 1.2, "compile": 1.4},
    ("eca", "forward+backward"): {"eager": 2.0, "compile": 1.4},
    ("triplet", "inference"): {"clones": 1.9, "eager": 21.0, "compile": 2.0},
    ("triplet", "forward+backward"): {"eager": 11.0, "compile": 4.0},
    ("split", "inference"): {"clones": 1.1, "eager": 3.5, "compile": 1.1},
    ("split", "forward+backward"): {"eager": 2.8, "compile": 1.35},
    ("mde", "inference"): {"clones": 2.0, "eager": 12.0, "compile": 5.0, "conv2d": 2.0},
    ("mde", "forward+backward"): {"eager": 12.0, "compile": 5.0, "conv2d": 2.0},
}
LAST = {  # the same in channels_last
    ("eca", "inference"): {"clones": 1.5},
    ("triplet", "inference"): {"clones": 2.2},
    ("split", "inference"): {"clones": 1.3},
    ("mde", "inference"): {"clones": 2.0, "conv2d": 1.3},
    ("mde", "forward+backward"): {"conv2d": 1.3},
}
# Asked in float32 too: percent of x kept for backward, beyond x and the outputs.
SAVED = {"eca": 0.1, "eca_pool": 0.1, "triplet": 8.0, "split": 0.1, "mde": 0.0}


def cases(*ops: str) -> list[Case]:
    """All cases of these ops, with what is asked of them on this device."""
    found = []
    for op in ops:
        for row in (*TABLE[op], *_beyond(op)):
            for layout, dtype, step in product(row.layouts, row.dtypes, row.steps):
                case = Case(op, row.shape, layout, dtype, step, row.options)
                found.append(replace(case, goals=_goals(case)))
    return found


def _beyond(op: str) -> tuple[Row, ...]:
    """On a GPU a map beyond the L2 cache in bfloat16 too."""
    if not torch.cuda.is_available() or TABLE[op][0].shape != LARGE:
        return ()
    return (Row(HUGE, BOTH, BF16, steps=TABLE[op][0].steps),)


def _goals(case: Case) -> dict[str, float]:
    """Nowhere slower than eager, and never by more than 5 % (GPU: not at all) than compile."""
    if torch.cuda.is_available():
        return {"eager": 1.0, "compile": 1.0, "share": 80.0}
    goals = {"eager": 1.0, "compile": 0.95}
    if case.shape != LARGE or case.options:
        return goals
    if case.dtype == "float32":
        goals |= (RATIOS if case.layout == "nchw" else LAST).get((case.op, case.step), {})
        if case.training and case.op in SAVED:
            goals["saved"] = SAVED[case.op]
    elif case.layout == "nchw":  # in bfloat16 the same ratio to eager
        goals["eager"] = RATIOS.get((case.op, case.step), {}).get("eager", 1.0)
    return goals


def tiny(case: Case) -> Case:
    """The same case small, for a run that only shows that everything works."""
    n, c, h, w = case.shape
    shape = (min(n, 4), min(c, 16), min(h, 16), min(w, 16))
    return replace(case, shape=shape, goals={})
