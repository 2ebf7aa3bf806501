"""Whole networks: inference and a training step, against the same weights in plain PyTorch.

Three forms: float32 as it comes, float32 in channels_last and bfloat16 in channels_last. In each,
the fused network meets `torch.compile` of the plain one; all are held against plain float32 in
NCHW. A plain network leaves its maps in the layout of the image, as the published ones do. In
inference the fused networks of the later forms have their batch norms folded into convolutions and
bfloat16 weights; in training bfloat16 is autocast over float32 weights.
"""

import contextlib
import copy
import statistics
import time

import pytest
import torch

import medseg
from bench.measure import peak_bytes, sample, summary, synchronise
from bench.recipes import device, tensors
from medseg.kernels import use_backend
from medseg.models import Outputs

SHAPE = (2, 3, 256, 256)
PATIENCE = 10.0  # seconds a step of plain PyTorch may take; of a slower one nothing is measured
BUDGET, ROUNDS, BLOCKS = 8.0, (7, 20), 3
FORMS = {"inference": ("", "_cl", "_bf16"), "training": ("", "_bf16")}
GOALS = {  # times faster than plain float32 in NCHW, by network, step and contender
    ("dra_net", "inference"): {"fused": 1.12, "fused_cl": 1.6, "fused_bf16": 3.0},
    ("dra_net", "training"): {"fused": 1.15, "fused_bf16": 2.0},
    ("dpsau2_net", "inference"): {"fused": 1.08, "fused_cl": 1.4, "fused_bf16": 2.4},
    ("dpsau2_net", "training"): {"fused": 1.1, "fused_bf16": 1.8},
}
OTHERS = {"fused": 1.0, "fused_cl": 1.0, "fused_bf16": 1.0}
CLOSE = {  # outputs or loss, relative to the largest; batch norms of few numbers magnify rounding
    "inference": {"": 1e-3, "_cl": 1e-3, "_bf16": 0.2},
    "training": {"": 0.05, "_bf16": 1.0},
}


class Contender:
    """One way to run a network: "reference", "compile" or "fused", and a form."""

    def __init__(self, kind, form, model, step, x):
        self.plain, self.training, self.x = kind != "fused", step == "training", x
        model = copy.deepcopy(model)
        model.channels_last_on_cpu = not self.plain
        if form and not self.plain and not self.training:
            model = medseg.fuse_conv_bn(model)
        if form:
            model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            self.x = x.contiguous(memory_format=torch.channels_last)
        self.cast = form == "_bf16" and self.training
        if form == "_bf16" and not self.training:
            model, self.x = model.bfloat16(), self.x.bfloat16()
        self.optimiser = torch.optim.SGD(model.parameters(), lr=1e-6)
        self.call = torch.compile(model, dynamic=False) if kind == "compile" else model

    def __call__(self):
        """Outputs of an inference, or the loss of a step, backward and update done."""
        with use_backend("reference" if self.plain else None):
            if not self.training:
                with torch.inference_mode():
                    return tensors(self.call(self.x))
            torch.manual_seed(0)  # the same dropout for all
            cast = torch.autocast(device(), torch.bfloat16) if self.cast else _nothing()
            with cast:
                outputs = _all(self.call(self.x))
            loss = torch.stack([out.float().square().mean() for out in outputs]).sum()
            loss.backward()
            self.optimiser.step()
            self.optimiser.zero_grad()
            return (loss.detach(),)


_nothing = contextlib.nullcontext


def _all(out):
    return [out.logits, *out.aux] if isinstance(out, Outputs) else tensors(out)


def contenders(name, step, shape, compiled):
    """Plain PyTorch first; then in each form ours, and `torch.compile` of the plain network."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = medseg.create_model(name, classes=3).to(device()).train(step == "training")
    x = torch.rand(shape, device=device())
    found = {"reference": Contender("reference", "", model, step, x)}
    for form in FORMS[step]:
        found[f"fused{form}"] = Contender("fused", form, model, step, x)
        if compiled:
            found[f"compile{form}"] = Contender("compile", form, model, step, x)
    return found


@pytest.mark.timeout(3600)  # compilations take minutes each
@pytest.mark.parametrize("step", FORMS)
@pytest.mark.parametrize("name", medseg.list_models())
def bench_model(name, step, measuring, benchmark, keep_rows):
    side = SHAPE[-1] if measuring else 64
    calls = contenders(name, step, (*SHAPE[:2], side, side), compiled=measuring)
    truth = calls["reference"]()
    for key in list(calls)[1:]:
        _check(key, step, calls[key](), truth)  # first steps: a second one finds other weights
    seconds = _seconds(calls["reference"])
    if not measuring:
        benchmark.pedantic(calls["fused"], rounds=1)
        return
    if seconds > PATIENCE:
        pytest.skip(f"{name} takes {seconds:.0f} s a step in {step}, more than {PATIENCE:.0f}")
    rows = _rows(name, step, calls, seconds)
    keep_rows(rows)
    benchmark.pedantic(calls["fused"], rounds=1)
    short = [_words(row["contender"], goal) for row in rows for goal in row.get("goals", ())]
    assert not any(short), "; ".join(filter(None, short))


def _seconds(call):
    start = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - start


def _check(key, step, outputs, truth):
    form = key.removeprefix("fused").removeprefix("compile")
    most = CLOSE[step][form]
    for got, expected in zip(outputs, truth, strict=True):
        error = float((got.float() - expected).abs().max())
        assert error <= most * float(expected.abs().max()), f"{key} is {error} off"


def _rows(name, step, calls, seconds):
    """One row a contender: times, memory, and how many times faster; measured again if short."""
    samples, peaks = {key: [] for key in calls}, {}
    rows = []
    for _ in range(BLOCKS):
        for _ in range(max(ROUNDS[0], min(ROUNDS[1], int(BUDGET / seconds / len(calls))))):
            for key, call in calls.items():
                samples[key].append(sample(call, 1))
        peaks = peaks or {key: round(peak_bytes(call) / 2**20, 1) for key, call in calls.items()}
        rows = [_row(name, step, key, samples, peaks) for key in calls]
        if all(goal["met"] for row in rows for goal in row.get("goals", ())):
            break
    return rows


def _row(name, step, key, samples, peaks):
    shape, found = "x".join(str(s) for s in SHAPE), summary(samples[key])
    row = {"case": f"model-{name}-{shape}-{step}", "kind": "model", "model": name}
    row |= {"shape": list(SHAPE), "step": step, "contender": key}
    row |= {k: round(v, 3) for k, v in found.items()} | {"peak_MB": peaks[key]}
    if key == "reference":
        return row
    row["vs_reference"] = _times_faster(samples["reference"], samples[key])
    row["memory_saved"] = round(1 - peaks[key] / peaks["reference"], 4)
    if not key.startswith("fused"):
        return row
    rival = samples["compile" + key.removeprefix("fused")]
    row["vs_compile"] = _times_faster(rival, samples[key])
    asked = GOALS.get((name, step), OTHERS)[key]
    goals = {"reference": (asked, row["vs_reference"]), "compile": (1.0, row["vs_compile"])}
    row["goals"] = [
        {"goal": goal, "asked": least, "found": got, "met": got >= least, "by": key}
        for goal, (least, got) in goals.items()
    ]
    return row


def _times_faster(rival, ours):
    """Median over the rounds: what slows the machine for seconds slows both of a round."""
    return round(statistics.median(b / a for a, b in zip(ours, rival, strict=True)), 3)


def _words(key, goal):
    if goal["met"]:
        return ""
    return f"{key} is {goal['found']} x {goal['goal']}, asked {goal['asked']}"
