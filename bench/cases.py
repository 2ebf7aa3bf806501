"""Every benched case in one table: what is run, on what, and the figure it has to reach."""

from dataclasses import dataclass, field

import torch

LARGE = (4, 64, 256, 256)  # the first decoder level of DRA-Net at 256, batch 4; where figures hold
SMALL = ((1, 16, 8, 8), (2, 64, 32, 32))  # launches and Python, not bytes
LEVELS = ((2, 128, 128, 128), (2, 512, 32, 32))  # deeper levels of DRA-Net
ODD = ((2, 7, 97, 83),)  # the logits, and no multiple of any vector
LAYOUTS = ("nchw", "channels_last")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PASSES = ("inference", "forward+backward")


@dataclass(frozen=True)
class Case:
    """One row per contender. Goals: at most `clones` clones, at least so many times faster."""

    op: str
    shape: tuple[int, int, int, int]
    layout: str
    dtype: str
    step: str
    goals: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        shape = "x".join(str(s) for s in self.shape)
        return f"{self.op}-{shape}-{self.layout}-{self.dtype}-{self.step}"


# CPU, float32, LARGE. Where clones and the two ratios disagree, the ratios decide: `clone` moves
# with the page faults of the moment.
GOALS = {
    ("eca", "nchw", "inference"): {"clones": 1.3, "eager": 1.15, "compile": 1.3},
    ("eca", "nchw", "forward+backward"): {"eager": 1.7, "compile": 1.3},
    ("eca", "channels_last", "inference"): {"clones": 1.5},
    ("eca", "channels_last", "forward+backward"): {"eager": 1.7},
    ("triplet", "nchw", "inference"): {"clones": 2.2, "eager": 18, "compile": 1.7},
    ("triplet", "nchw", "forward+backward"): {"eager": 9, "compile": 3.5},
    ("triplet", "channels_last", "inference"): {"clones": 2.4},
    ("triplet", "channels_last", "forward+backward"): {"eager": 9},
}


def cases(op: str) -> list[Case]:
    """All cases of an op; every one asks to be no slower than eager."""
    found = []
    for shape in (LARGE, *SMALL, *LEVELS, *ODD):
        for layout in LAYOUTS:
            for dtype in DTYPES if shape in (LARGE, LEVELS[0]) else ("float32",):
                for step in PASSES:
                    goals = {"eager": 1.0}
                    if shape == LARGE and dtype == "float32":
                        goals |= GOALS[op, layout, step]
                    found.append(Case(op, shape, layout, dtype, step, goals))
    return found


def tiny(case: Case) -> Case:
    """The same case small, for a run that only shows that everything works."""
    n, c, h, w = case.shape
    shape = (min(n, 2), min(c, 8), min(h, 16), min(w, 16))
    return Case(case.op, shape, case.layout, case.dtype, case.step)
