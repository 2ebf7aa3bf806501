"""One benched case: time every contender in turns, note memory, hold the figures."""

from collections.abc import Callable
from typing import Any

import torch

from bench.cases import Case, tiny
from bench.contenders import Setup, prepare
from bench.measure import interleaved, peak_bytes, saved_bytes
from bench.results import FUSED, compare, missed


def run_case(case: Case, measuring: bool, benchmark: Any, keep: Callable[[list], None]) -> None:
    """Measures and compares, or, without `measuring`, runs every contender once on a small map."""
    if not measuring:
        return _try(tiny(case), benchmark)
    setup = prepare(case, compiled=True)
    steps = setup.steps(case)
    rows = compare(case, interleaved(steps), setup.x.nbytes)
    for row in rows:
        if row["contender"] in setup.forwards:
            row |= _memory(case, setup, row["contender"], steps[row["contender"]])
    keep(rows)
    benchmark.extra_info["case"] = str(case)
    benchmark.pedantic(steps[_fastest(setup)], rounds=5, warmup_rounds=1)
    problems = missed(case, rows)
    assert not problems, "; ".join(problems)


def _memory(case: Case, setup: Setup, name: str, step: Callable[[], Any]) -> dict:
    """Peak of one step, and what is kept for backward; a compiled graph hides the latter."""
    found = {"peak_MB": round(peak_bytes(step) / 2**20, 2)}
    if case.step != "inference" and name != "compile":
        leaves = [t.detach().requires_grad_() for t in (setup.x, *setup.params)]
        kept = saved_bytes(lambda: setup.forwards[name](*leaves), leaves)
        found["saved_percent"] = round(100 * kept / setup.x.nbytes, 3)
    return found


def _fastest(setup: Setup) -> str:
    """The backend that is chosen by itself comes first of those that run."""
    return next((n for n in setup.forwards if n in FUSED), "eager")


def _try(case: Case, benchmark: Any) -> None:
    """Every contender once; outputs or gradients have to agree and keep the layout of x."""
    setup = prepare(case, compiled=False)
    found = {name: setup.step(case, forward)() for name, forward in setup.forwards.items()}
    tensors = {name: (t,) if isinstance(t, torch.Tensor) else t for name, t in found.items()}
    truth = tensors.pop("eager")
    for name, got in tensors.items():
        for ours, theirs in zip(got, truth, strict=True):
            error = float((ours.float() - theirs.float()).abs().max())
            assert error <= 0.05 * max(1.0, float(theirs.abs().max())), f"{name} is {error} off"
        assert got[0].stride() == setup.x.stride(), f"{name} changed the layout"
    benchmark.pedantic(setup.step(case, setup.forwards[_fastest(setup)]), rounds=1)
