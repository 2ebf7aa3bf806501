"""`medseg predict` on a folder of small images against the bare network on prepared tensors.

The bare network is the one that the tool runs, called on batches of the same size that lie ready in
memory. The tool goes from the PNG files of the images to the PNG files of their masks. `files` is
what the files cost without a network, on one thread: decoded, fitted, labelled, encoded.
`vs_with_files` is the part of the bare network's speed that is left when these seconds, shared by
all cores, are added to it. The tool can do better: its threads do not wait for each other in every
operator, as those of the bare network do.
"""

import contextlib
import itertools
import os
import statistics
import time

import pytest
import torch
import torch.nn.functional as F

from bench.recipes import device
from medseg import create_model
from medseg.console import Journal
from medseg.data import write_blood_smear
from medseg.inference import Predictor, find_files, load_trained, open_images
from medseg.predict.run import PredictConfig, predict
from medseg.predict.write import write_files
from medseg.predict.writers import MaskWriter
from medseg.runs import RunFolder

SIZE, IMAGES, BATCH = 128, 256, 8
ROUNDS = 5
GOAL = 0.9  # of the bare network's images a second
NETWORKS = ("hpddrnet_s", "dra_net_s", "e_du_s")


def _run_folder(path, name, size):
    """A run as a training leaves it; its weights have learned nothing, which takes as long."""
    facts = {"model": name, "in_channels": 3, "classes": 3, "size": size}
    facts |= {"class_names": ["background", "cell", "nucleus"], "mask_values": [0, 128, 255]}
    torch.manual_seed(0)
    path.mkdir()
    weights = create_model(name, classes=3).state_dict()
    RunFolder(path).write_weights("best.safetensors", weights, facts)
    return path


class Bare:
    """The network on batches that are there."""

    def __init__(self, run, size, count):
        self.forward = Predictor(load_trained(run, device())).forward
        self.batches, self.calls = torch.rand(4, BATCH, 3, size, size, device=device()), count

    def __call__(self):
        for _, batch in zip(range(self.calls // BATCH), itertools.cycle(self.batches)):
            self.forward(batch)
        if device() == "cuda":
            torch.cuda.synchronize()


class Tool:
    """From files to files, in a new folder each time."""

    def __init__(self, run, images, out):
        self.run, self.images, self.out = str(run), str(images), (out / str(n) for n in range(99))

    def __call__(self):
        out = str(next(self.out))
        config = PredictConfig(images=self.images, weights=self.run, out=out, write=["masks"])
        with contextlib.redirect_stdout(None):
            return predict(config, Journal(quiet=True))["seconds"]


class Files:
    """What the tool does with the files, on one thread and without the network."""

    def __init__(self, run, images, out):
        self.predictor = Predictor(load_trained(run))
        self.files, self.out = find_files(images), (out / str(n) for n in range(99))
        size = self.predictor.view.size
        blobs = torch.randn(1, 3, 8, 8)  # neither one class nor noise, which would not compress
        self.logits = F.interpolate(blobs, (size, size), mode="bilinear")

    def __call__(self):
        view, trained, out = self.predictor.view, self.predictor.trained, next(self.out)
        out.mkdir(parents=True)
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for path in self.files:
                (image,) = open_images(path, trained.channels)
                view.square(image.rows(0, image.height))
                slabs = view.slabs(self.logits, image.height, image.width)
                write_files(image, slabs, {out / f"{image.name}.png": MaskWriter}, trained)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("name", NETWORKS)
def bench_predict(name, measuring, benchmark, keep_rows, tmp_path):
    size, count = (SIZE, IMAGES) if measuring else (32, BATCH)
    images = write_blood_smear(tmp_path / "smear", count=count, size=size) / "images"
    run = _run_folder(tmp_path / "run", name, size)
    runs = {
        "bare": Bare(run, size, count),
        "tool": Tool(run, images, tmp_path / "out"),
        "files": Files(run, images, tmp_path / "files"),
    }
    seconds = {key: [] for key in runs}
    for turn in range(1 + ROUNDS * measuring):
        for key, call in runs.items():
            start = time.perf_counter()
            known = call()  # the tool's own count leaves out what opens the network
            if turn or not measuring:
                seconds[key].append(known or time.perf_counter() - start)
    benchmark.pedantic(runs["tool"], rounds=1)
    if not measuring:
        return
    rows = _rows(name, {key: statistics.median(each) / count for key, each in seconds.items()})
    keep_rows(rows)
    for row in rows:
        print(*(f"{k} {v}" for k, v in row.items() if not isinstance(v, list)))
    (goal,) = rows[1]["goals"]
    assert goal["met"], f"{name} predicts at {goal['found']} of the network's speed"


def _rows(name, seconds):
    """One of each contender; seconds an image."""
    about = {"case": f"predict-{name}-{BATCH}x3x{SIZE}x{SIZE}", "kind": "predict", "model": name}
    rows = {key: about | {"contender": key, "image_ms": 1e3 * s} for key, s in seconds.items()}
    found = seconds["bare"] / seconds["tool"]
    cores = torch.get_num_threads() if device() == "cpu" else os.cpu_count() or 1
    with_files = seconds["bare"] / (seconds["bare"] + seconds["files"] / cores)
    goal = {"goal": "bare", "asked": GOAL, "found": found, "met": found >= GOAL, "by": "tool"}
    rows["tool"] |= {"vs_bare": found, "vs_with_files": with_files, "goals": [goal]}
    for row in rows.values():
        row |= {k: round(v, 3) for k, v in row.items() if isinstance(v, float)}
        for goal in row.get("goals", ()):
            goal["found"] = round(goal["found"], 3)
    return list(rows.values())
