"""Real processes that train, and what they leave."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

TRAIN = ["-m", "medseg.train"]


def start(*words, **more):
    """A process of Python, in a group of its own so that it can be killed with its children."""
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **more,
    )


def finish(*processes):
    """Waits for processes that must end well."""
    for process in processes:
        _, said = process.communicate(timeout=400)
        assert process.returncode == 0, said


def kill(process):
    """kill -9 for a process and its children."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def wait_for_checkpoint(run: Path, process, number: int) -> dict:
    """Waits until the run has written that many checkpoints; returns the last one."""
    path, seen = run / "last.ckpt", set()
    until = time.monotonic() + 300
    while len(seen) < number:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        if path.exists():
            seen.add(path.stat().st_ino)
        time.sleep(0.001)
    return torch.load(path, weights_only=True)


def torchrun(*words):
    return ["-m", "torch.distributed.run", *words, *TRAIN]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "best.safetensors")


def finished_weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.ckpt", weights_only=True)["model"]
