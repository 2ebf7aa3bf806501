"""Plain networks, as their authors published them, made faster by `medseg.fuse` and `optimize`.

`pytest bench/bench_fuse.py --benchmark -s` prints what docs/fuse.md shows.
"""

import statistics
import time

import pytest
import torch

import medseg
from bench.published.dpsau2_net import DPSAU2Net
from bench.published.dra_net import DRANet
from medseg.fusion import inference

SIDE, BATCH = 256, 2
NETWORKS = {"dra_net": lambda wide: DRANet(3, 7, wide), "dpsau2_net": lambda w: DPSAU2Net(3, 1, w)}
GOALS = {  # times as fast as the plain network
    ("dra_net", "inference"): 1.12,
    ("dra_net", "training"): 1.15,
    ("dra_net", "optimize"): 3.0,
    ("dpsau2_net", "inference"): 1.08,
    ("dpsau2_net", "training"): 1.1,
    ("dpsau2_net", "optimize"): 2.4,
}
CLOSE = {"inference": 1e-5, "optimize": 2e-2}  # outputs, relative to the largest
ROUNDS = {"inference": 15, "training": 6, "optimize": 10}


def network(name, measuring):
    """The network and an image; small where nothing is measured."""
    torch.manual_seed(0)
    side = SIDE if measuring else 32
    return NETWORKS[name](64 if measuring else 8).eval(), torch.rand(BATCH, 3, side, side)


def infer(model, x):
    with torch.inference_mode():
        return model(x)


def train(model, x):
    """Forward, backward and update."""
    torch.manual_seed(0)  # the same dropout
    loss = model(x).square().mean()
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p.sub_(p.grad, alpha=1e-6)
                p.grad = None
    return loss.detach()


def ratio(plain, fast, rounds):
    """(milliseconds of both, how many times faster): medians of turns, the first unmeasured."""
    times = [[], []]
    for turn in range(rounds + 1):
        for found, call in zip(times, (plain, fast), strict=True):
            call = call()
            start = time.perf_counter()
            call()
            if turn:
                found.append(time.perf_counter() - start)
    before, after = (statistics.median(found) * 1e3 for found in times)
    return before, after, before / after


@pytest.mark.parametrize("step", ["inference", "training", "optimize"])
@pytest.mark.parametrize("name", NETWORKS)
def bench_fuse(name, step, measuring, benchmark, monkeypatch):
    if not measuring:
        monkeypatch.setattr(inference, "BUDGET", 0.0)
    model, x = network(name, measuring)
    expected = infer(model, x)
    if step == "optimize":
        fast, report = medseg.optimize(model, x, torch.bfloat16)
    else:
        report = medseg.fuse(model, verify=x) if step == "inference" else medseg.fuse(model)
        fast = model
    print(f"\n{name}\n{report}")
    if step in CLOSE:
        error = float((infer(fast, x) - expected).abs().max() / expected.abs().max())
        assert error <= CLOSE[step], f"outputs are {error:.1e} off"
    run = train if step == "training" else infer
    model.train(step == "training")

    def plain():
        if fast is model:
            medseg.unfuse(model)
        return lambda: run(model, x)

    def fused():
        if fast is model:
            medseg.fuse(model)
        return lambda: run(fast, x)

    if not measuring:
        benchmark.pedantic(fused(), rounds=1)  # pyright: ignore[reportCallIssue]
        return
    before, after, times = ratio(plain, fused, ROUNDS[step])
    asked = GOALS[name, step]
    print(
        f"{name}, {step}: {before:.0f} ms plain, {after:.0f} ms, {times:.2f} times, asked {asked}"
    )
    benchmark.pedantic(fused(), rounds=1)  # pyright: ignore[reportCallIssue]
    assert times >= asked
