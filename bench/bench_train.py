"""An epoch of `medseg train` against the same network in a bare loop of plain PyTorch.

Both see the same images in the same augmentation, loss and optimizer. The bare loop has the
reference ops and maps in NCHW, as the published programs do: once in float32, which all goals are
held against, and once under bfloat16 autocast. `first_batch_s` is the time from a folder of images
to the first batch of an epoch, here with all that the package checks before.
"""

import contextlib
import statistics
import time

import pytest
import torch
from torch.utils.data import DataLoader

import medseg
from bench.recipes import device
from medseg.config import TrainConfig
from medseg.console import Journal
from medseg.data import SegmentationSet, build_augmentation, load_table, write_blood_smear
from medseg.engine import Engine
from medseg.kernels import use_backend
from medseg.losses import build_loss
from medseg.prepare import deterministic, prepare

SIZE, BATCH, STEPS = 256, 2, 2  # the size of the published training
ROUNDS = 3
PRECISIONS = ("fp32", "bf16")
GOALS = {"fp32": 1.15, "bf16": 1.8}  # times faster than the bare loop in float32
WAITING = 0.05  # of the time, at most


def _config(folder, model, precision, size):
    return TrainConfig(data=str(folder), model=model, precision=precision, batch=BATCH, size=size)


class Tool:
    """The package's engine, as `medseg train` prepares it."""

    def __init__(self, config):
        start = time.perf_counter()
        with contextlib.redirect_stdout(None):
            job = prepare(config, Journal(quiet=True))
        self.engine = Engine(job.config, job.table, job.fabric, job.network)
        next(self.engine._loaded())
        self.first_batch, self.waiting = time.perf_counter() - start, []

    def epoch(self):
        with deterministic():
            numbers = self.engine.train_epoch()
        self.waiting.append(numbers["waiting"])


class Loop:
    """What one would write without the package, on the same files."""

    def __init__(self, config):
        start = time.perf_counter()
        table = load_table(config.data, seed=config.seed)
        self.data = SegmentationSet(table, table.part("train"), config.size)
        self.loader = DataLoader(self.data, config.batch, shuffle=True, drop_last=True)
        self.model = medseg.create_model(config.model, classes=len(table.names)).to(device())
        self.model.channels_last_on_cpu = False
        self.loss = build_loss(config.loss, len(table.names))
        self.augment = build_augmentation(config.size)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr)
        self.half = config.precision == "bf16"
        next(iter(self.loader))
        self.first_batch = time.perf_counter() - start

    def epoch(self):
        with use_backend("reference"):
            self.model.train()
            for item in self.loader:
                image, mask = self.augment(item["image"].to(device()), item["mask"].to(device()))
                with torch.autocast(device(), torch.bfloat16, enabled=self.half):
                    logits = self.model(image)
                loss = self.loss(logits, mask)
                self.optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()


@pytest.mark.parametrize("name", ["dra_net"])
def bench_train(name, measuring, benchmark, keep_rows, tmp_path):
    size = SIZE if measuring else 32
    folder = write_blood_smear(tmp_path / "smear", count=round(BATCH * STEPS / 0.8) + 1, size=size)
    name = name if measuring else f"{name}_s"
    kinds = {"loop": Loop, "tool": Tool}
    runs = {
        f"{kind}-{precision}": make(_config(folder, name, precision, size))
        for kind, make in kinds.items()
        for precision in PRECISIONS
    }
    seconds = {key: [] for key in runs}
    for turn in range(1 + ROUNDS * measuring):
        for key, run in runs.items():
            start = time.perf_counter()
            run.epoch()
            if turn or not measuring:  # the first epoch warms up
                seconds[key].append(time.perf_counter() - start)
    benchmark.pedantic(runs["tool-fp32"].epoch, rounds=1)
    if not measuring:
        return
    rows = [_row(name, key, run, seconds) for key, run in runs.items()]
    keep_rows(rows)
    for row in rows:
        print(*(f"{k} {v}" for k, v in row.items() if not isinstance(v, list)))
    goals = [goal for row in rows for goal in row.get("goals", ())]
    short = [f"{g['goal']}: {g['found']}, asked {g['asked']}" for g in goals if not g["met"]]
    assert not short, "; ".join(short)


def _row(name, key, run, seconds):
    median = statistics.median(seconds[key])
    row = {"case": f"train-{name}-{BATCH}x3x{SIZE}x{SIZE}", "kind": "train", "model": name}
    row |= {"contender": key, "epoch_s": round(median, 3), "steps": STEPS}
    row |= {"first_batch_s": round(run.first_batch, 3)}
    kind, precision = key.split("-")
    for rival in PRECISIONS:
        row[f"vs_loop_{rival}"] = round(statistics.median(seconds[f"loop-{rival}"]) / median, 3)
    if kind != "tool":
        return row
    waiting = statistics.median(run.waiting)
    row["waiting"] = round(waiting, 4)
    found = row["vs_loop_fp32"]
    asked = GOALS[precision]
    row["goals"] = [
        {"goal": "loop", "asked": asked, "found": found, "met": found >= asked, "by": key},
        {
            "goal": "waiting",
            "asked": WAITING,
            "found": waiting,
            "met": waiting <= WAITING,
            "by": key,
        },
    ]
    return row
