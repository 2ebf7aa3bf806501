"""Host-side cost: microseconds a call on maps too small to count, for each op and backend."""

import pytest
import torch

from bench.cases import TABLE, Case
from bench.contenders import prepare
from bench.measure import host_seconds
from bench.results import FUSED

MOST = 25.0  # microseconds of the backend chosen by itself, in inference
SIDE = 4


def tiny_cases():
    """Each op once, on a map of a few numbers."""
    for op, rows in TABLE.items():
        for step in rows[0].steps:
            yield Case(op, (2, 4, SIDE, SIDE), "nchw", "float32", step)


@pytest.mark.parametrize("case", tiny_cases(), ids=str)
def bench_host(case, measuring, benchmark, keep_rows):
    setup = prepare(case, compiled=measuring and not case.training)
    if case.training:
        steps = {name: setup.step(case, name) for name in setup.contenders}
    else:  # without the decorator that switches gradients off: it costs 3 us
        steps = {name: given.forward for name, given in setup.contenders.items()}
    with torch.inference_mode(not case.training):
        found = host_seconds(steps, blocks=20 if measuring else 1)
    rows = [
        {"case": f"host-{case}", "kind": "host", "op": case.op, "step": case.step}
        | {"contender": name, "us": round(seconds * 1e6, 2)}
        for name, seconds in found.items()
    ]
    chosen = next((name for name in found if name in FUSED), "eager")
    benchmark.pedantic(steps[chosen], rounds=5 if measuring else 1)
    if not measuring:
        return
    keep_rows(rows)
    cost = found[chosen] * 1e6
    assert case.training or chosen not in FUSED or cost <= MOST, f"{chosen} costs {cost:.1f} us"
