"""`medseg predict` at the end of disk, memory and patience."""

import errno
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from medseg.inference import View

from .pictures import files_in, picture, save


def test_a_full_disk_ends_the_work(predict, tmp_path, monkeypatch):
    """It is said once, with what to do, and nothing half written stays."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(30):
        save(folder / f"{number:02d}.png", picture())
    replace, moved = os.replace, []

    def full(source, target):
        moved.extend([target] if str(target).startswith(str(tmp_path / "out")) else [])
        if len(moved) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    done = predict("--images", folder, "--write", "masks", "--batch", 1)
    assert done.code == 3 and done.err.count("No space left on device") == 1
    assert "make room there or take another --out" in done.err and "left out" not in done.err
    assert len(moved) < 30 and len(files_in(done.folder)) == 5


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 43 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        cv2.error("(-4:Insufficient memory) Failed to allocate 10800000000 bytes"),
    ],
)
def test_full_memory_names_the_flags(predict, patch_run, tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(View, "square", full)
    path = save(tmp_path / "a.png", picture())
    done = predict("--images", path, "--window", 64, weights=patch_run)
    assert done.code == 3, done
    words = "--batch 8, --window 64: the memory that this takes is more than this machine has free"
    assert words in done.err


def test_a_window_beyond_all_memory_is_refused(predict, patch_run, tmp_path):
    path = save(tmp_path / "a.png", picture())
    done = predict("--images", path, "--window", 10**7, weights=patch_run)
    assert (
        done.code == 2 and "--window 10000000: the network needs at least 12800000 GB" in done.err
    )


def test_ctrl_c_ends_soon_and_leaves_whole_files(run, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(3000):
        save(folder / f"{number:04d}.png", picture(64, 64))
    words = ["-m", "medseg.predict", "--images", folder, "--weights", run, "--out", out]
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 300
    while not (out / "masks").is_dir() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    names = files_in(out)
    assert 0 <= len(names) < 6000 and not any(name.endswith(".tmp") for name in names)
    for name in names[:20]:
        assert cv2.imread(str(out / name)) is not None, name


MEASURE = """
import resource, sys
from medseg.predict import main, polygons
polygons._STEP, polygons._MOST = 1 << 18, 1 << 19  # what is kept of regions is bounded by these
images, weights, out = sys.argv[1:]
small = [f"--images={images}/small.npy", f"--weights={weights}", f"--out={out}/s"]
small += ["--window=256", "--overlap=0"]
kinds = ["--write", "masks", "outlines", "geojson", "probabilities"]
assert main([*small, *kinds]) == 0
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert main([small[0].replace("small", "large"), *small[1:], *kinds]) == 0
print("grew", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_that_of_a_slab(patch_run, tmp_path):
    """24 times the rows of the same width: 36 MB of pixels, 150 MB of probabilities."""
    small = np.tile(picture(512, 1024), (1, 1, 1))
    np.save(tmp_path / "small.npy", small)
    np.save(tmp_path / "large.npy", np.tile(small, (24, 1, 1)))
    words = [sys.executable, "-c", MEASURE, tmp_path, patch_run, tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout.rpartition("grew ")[2]) / 1024
    assert grown < 60, f"{grown:.0f} MB for {24 * small.nbytes >> 20} MB of pixels"
