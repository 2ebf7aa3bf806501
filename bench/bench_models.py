"""Whole networks: inference and a training step, fused operators against plain PyTorch."""

import time

import pytest
import torch

import medseg
from bench.measure import peak_bytes, sample, summary, synchronise
from bench.recipes import device, tensors
from medseg.kernels import use_backend

SHAPE = (2, 3, 256, 256)
BACKENDS = {"fused": None, "reference": "reference"}
PATIENCE = 6.0  # seconds a step may take; a slower one is skipped
BUDGET, ROUNDS, BLOCKS = 6.0, (3, 20), 3


class Contest:
    """One network twice, with the same weights, on the same images."""

    def __init__(self, name, step, shape):
        torch.manual_seed(0)
        self.step, self.x = step, torch.rand(shape).to(device())
        self.models = {key: medseg.create_model(name, classes=3) for key in BACKENDS}
        first = self.models["fused"].state_dict()
        for model in self.models.values():
            model.load_state_dict(first)
            model.to(device()).train(step == "training")
        self.optimisers = {
            key: torch.optim.SGD(model.parameters(), lr=1e-6) for key, model in self.models.items()
        }

    def calls(self):
        """A step of each contender."""
        return {key: lambda key=key: self._run(key) for key in self.models}

    def _run(self, key):
        with use_backend(BACKENDS[key]):
            if self.step == "inference":
                with torch.inference_mode():
                    return tensors(self.models[key](self.x))
            torch.manual_seed(0)  # the same dropout for both
            outputs = tensors(self.models[key](self.x))
            loss = torch.stack([out.float().square().mean() for out in outputs]).sum()
            loss.backward()
            self.optimisers[key].step()
            self.optimisers[key].zero_grad()
            return (loss.detach(),)


@pytest.mark.parametrize("step", ("inference", "training"))
@pytest.mark.parametrize("name", medseg.list_models())
def bench_model(name, step, measuring, benchmark, keep_rows):
    contest = Contest(name, step, SHAPE if measuring else (2, 3, 64, 64))
    calls = contest.calls()
    start = time.perf_counter()
    outputs = {key: call() for key, call in calls.items()}
    synchronise()
    seconds = (time.perf_counter() - start) / len(calls)
    for ours, theirs in zip(*outputs.values(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    if not measuring:
        benchmark.pedantic(calls["fused"], rounds=1)
        return
    if seconds > PATIENCE:
        pytest.skip(f"{name} takes {seconds:.0f} s a step in {step}, more than {PATIENCE:.0f}")
    rows = _rows(name, step, calls, seconds)
    keep_rows(rows)
    benchmark.pedantic(calls["fused"], rounds=1)
    ratio = rows[0]["vs_reference"]
    assert ratio >= 1, f"{name} is {ratio} x the reference in {step}, asked 1"


def _times(calls, seconds):
    """Medians of turns; a fused network that seems slower gets more turns."""
    low, high = ROUNDS
    samples = {key: [] for key in calls}
    for _ in range(BLOCKS):
        for _ in range(max(low, min(high, int(BUDGET / seconds / len(calls))))):
            for key, call in calls.items():
                samples[key].append(sample(call, 1))
        times = {key: summary(found) for key, found in samples.items()}
        if times["fused"]["median_ms"] <= times["reference"]["median_ms"]:
            break
    return times


def _rows(name, step, calls, seconds):
    shape = "x".join(str(s) for s in SHAPE)
    rows = []
    for key, found in _times(calls, seconds).items():
        row = {"case": f"model-{name}-{shape}-{step}", "kind": "model", "model": name}
        row |= {"shape": list(SHAPE), "step": step, "contender": key}
        row |= {k: round(v, 3) for k, v in found.items()}
        row["peak_MB"] = round(peak_bytes(calls[key]) / 2**20, 1)
        rows.append(row)
    rows[0]["vs_reference"] = round(rows[1]["median_ms"] / rows[0]["median_ms"], 3)
    rows[0]["memory_saved"] = round(1 - rows[0]["peak_MB"] / rows[1]["peak_MB"], 4)
    return rows
