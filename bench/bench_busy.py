"""Beside a busy program a kernel may slow down as PyTorch's own operators do, and not much more."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.cases import TABLE, Case
from bench.contenders import prepare
from bench.measure import on_gpu

MOST = 1.5  # times the slowdown of the eager reference
WINDOW = 0.3  # seconds: many time slices of the scheduler
SHAPES = ((4, 64, 256, 256), (1, 64, 128, 128))
TURNS = 3


def busy_cases():
    """Each op on a large map and on one whose threads meet often."""
    for op in TABLE:
        for shape in SHAPES if op != "position" else ():  # as tokens, these are no maps
            yield Case(op, shape, "nchw", "float32", "inference")


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """A program that keeps one core busy."""
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.1)
        yield
    finally:
        program.kill()
        program.wait()


def seconds(call: Callable[[], Any], window: float) -> float:
    """Mean seconds of a call; not the median, which would hide the calls that stall."""
    call()
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < window:
        call()
        count += 1
    return (time.perf_counter() - start) / count


@pytest.mark.skipif(on_gpu(), reason="about the cores of the CPU")
@pytest.mark.parametrize("case", busy_cases(), ids=str)
def bench_busy(case, measuring, benchmark):
    if not measuring:
        case = Case(case.op, (1, 4, 8, 8), case.layout, case.dtype, case.step)
    setup = prepare(case, compiled=False)
    if "cpu" not in setup.contenders:
        pytest.skip("the compiled kernels are not there")
    steps = {name: setup.step(case, name) for name in ("eager", "cpu")}
    window = WINDOW if measuring else 0.0
    alone, beside = dict.fromkeys(steps, 0.0), dict.fromkeys(steps, 0.0)
    for _ in range(TURNS if measuring else 1):
        for name, step in steps.items():
            alone[name] += seconds(step, window)
        with neighbour():
            for name, step in steps.items():
                beside[name] += seconds(step, window)
    benchmark.pedantic(steps["cpu"], rounds=3 if measuring else 1)
    slower = {name: beside[name] / alone[name] for name in steps}
    benchmark.extra_info |= {f"slower_{name}": round(value, 2) for name, value in slower.items()}
    told = f"beside a busy program {slower['cpu']:.2f} times slower, eager {slower['eager']:.2f}"
    print(f"{case}: {told}")
    assert not measuring or slower["cpu"] <= MOST * slower["eager"], told
