"""Plain networks, as their authors published them, made faster by `medseg.fuse` and `optimize`.

`fuse` is measured alone and with `channels_last=True`, which the goals are held against: they ask
for more than attention costs.

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


def milliseconds(contenders, rounds):
    """Medians of each, in turns, the first unmeasured; a contender makes its call when due."""
    times = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, make in contenders.items():
            call = make()
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) * 1e3 for name, found in times.items()}


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
        asked = x if step == "inference" else None
        fast, report = model, medseg.fuse(model, channels_last=True, verify=asked)
    print(f"\n{name}\n{report}")
    if step in CLOSE:
        error = float((infer(fast, x) - expected).abs().max() / expected.abs().max())
        assert error <= CLOSE[step], f"outputs are {error:.1e} off"
    contenders = _contenders(step, model.train(step == "training"), fast, x)
    if not measuring:
        benchmark.pedantic(contenders[step](), rounds=1)
        return
    found = milliseconds(contenders, ROUNDS[step])
    for each, ms in found.items():
        print(f"{name}, {each}: {ms:.0f} ms, {found['plain'] / ms:.2f} times as fast")
    benchmark.pedantic(contenders[step](), rounds=1)
    times, goal = found["plain"] / found[step], GOALS[name, step]
    assert times >= goal, f"{times:.2f} times as fast, asked {goal}"


def _contenders(step, model, fast, x):
    """The plain network; fused, fused and in channels_last; or what `optimize` made."""
    run = train if step == "training" else infer

    def as_it_was():
        medseg.unfuse(model)
        return lambda: run(model, x)

    def fused(channels_last):
        medseg.fuse(medseg.unfuse(model), channels_last=channels_last)
        return lambda: run(model, x)

    if step == "optimize":
        return {"plain": as_it_was, step: lambda: lambda: run(fast, x)}
    attention = {"attention alone": lambda: fused(False)}
    return {"plain": as_it_was, **attention, step: lambda: fused(True)}
