"""One benched case: time every contender in turns, note memory, hold the figures."""

from collections.abc import Callable
from typing import Any

from bench.cases import LARGE, LAYOUTS, Case, tiny
from bench.contenders import Setup, prepare
from bench.measure import Samples, interleaved, peak_bytes, saved_bytes
from bench.results import FUSED, Rows, compare, judge, missed

BLOCKS = 3  # a figure that is missed is measured again, and the medians are those of all blocks
BUDGET = {"large": 3.0, "other": 1.0}  # seconds a block, warm-up aside


def run_case(case: Case, measuring: bool, benchmark: Any, keep: Callable[[Rows], None]) -> None:
    """Measures and compares, or, without `measuring`, runs every contender once on a small map."""
    if not measuring:
        return _try(tiny(case), benchmark)
    setup = prepare(case, compiled=True)
    steps = setup.steps(case)
    memory = {name: _memory(case, setup, name, steps[name]) for name in setup.contenders}
    rows, goals = _contest(case, steps, memory)
    keep([r | ({"goals": goals} if r["contender"] in FUSED else {}) for r in rows])
    benchmark.extra_info["case"] = str(case)
    benchmark.pedantic(steps[_chosen(setup)], rounds=5, warmup_rounds=1)
    assert not missed(goals), missed(goals)


def _contest(case: Case, steps: dict[str, Callable[[], Any]], memory: dict) -> tuple[Rows, Rows]:
    """The rows and the goals, after one block, or after all of them if a figure is missed."""
    budget = BUDGET["large" if case.shape == LARGE else "other"]
    samples: Samples = {name: [] for name in steps}
    rows, goals = [], []
    for _ in range(BLOCKS):
        for name, found in interleaved(steps, budget).items():
            samples[name] += found
        rows = [r | memory.get(r["contender"], {}) for r in compare(case, samples)]
        goals = judge(case, rows)
        if not missed(goals):
            break
    return rows, goals


def _memory(case: Case, setup: Setup, name: str, step: Callable[[], Any]) -> dict:
    """Peak of one step, and what is kept for backward; a compiled graph hides the latter."""
    step()
    found = {"peak_MB": round(peak_bytes(step) / 2**20, 2)}
    if case.training and name != "compile":
        contender = setup.contenders[name]
        kept = saved_bytes(contender.forward, [*contender.inputs, *contender.wanted])
        found["saved_percent"] = round(100 * kept / setup.x.nbytes, 3)
    return found


def _chosen(setup: Setup) -> str:
    """The backend that is chosen by itself comes first of those that run."""
    return next((n for n in setup.contenders if n in FUSED), "eager")


def _try(case: Case, benchmark: Any) -> None:
    """Everything once but the file; outputs or gradients have to agree and keep the layout."""
    setup = prepare(case, compiled=False)
    found = {name: setup.step(case, name)() for name in setup.contenders}
    truth = found.pop("eager")
    most = 0.02 if case.dtype == "float32" else 0.3  # maxima that rounding ties lead elsewhere
    for name, got in found.items():
        assert len(got) == len(truth), f"{name} has {len(got)} results, eager {len(truth)}"
        if name not in FUSED and case.dtype != "float32":
            continue  # peers compute their gates in half precision
        for ours, theirs in zip(got, truth, strict=True):
            error = float((ours.reshape(theirs.shape) - theirs).float().norm())
            assert error <= most * float(theirs.float().norm()) + 1e-2, f"{name} is {error} off"
        if name in FUSED:
            assert got[0].is_contiguous(memory_format=LAYOUTS[case.layout]), (
                f"{name} changed the layout"
            )
    steps = setup.steps(case)
    rows = compare(case, interleaved(steps, 0.0, rounds=(1, 1)))
    judge(case, [r | _memory(case, setup, _chosen(setup), steps[_chosen(setup)]) for r in rows])
    benchmark.pedantic(steps[_chosen(setup)], rounds=1)
