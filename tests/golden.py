"""Golden vectors: where they lie, the rule behind their weights, and what can be run on them."""

import functools
import json
import math
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.kernels._backend import BACKENDS, why_not

_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "golden"
FOLDER = Path(os.environ.get("MEDSEG_GOLDEN", _DEFAULT))
MISSING = f"golden vectors are not at {FOLDER}; MEDSEG_GOLDEN names another folder"
needs_golden = pytest.mark.skipif(not FOLDER.is_dir(), reason=MISSING)

# Every backend in the dtypes it has; the reference in float64 is the truth of all others.
RUNS = [
    pytest.param(backend, dtype, id=f"{backend}-{str(dtype).removeprefix('torch.')}")
    for backend in reversed(BACKENDS)
    for dtype in (torch.float64, torch.float32)
    if dtype is torch.float32 or backend in ("reference", "cpu")
]


def device_for(
    backend: str, dtype: torch.dtype, ops: tuple[str, ...] = ("eca", "triplet", "split")
) -> torch.device:
    """Where a backend is to run these ops; skips the test where it cannot."""
    gpu = backend in ("triton", "cuda") and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    for op in ops:
        reason = why_not(backend, op, device.type, dtype)
        if reason is not None:
            pytest.skip(reason)
    return device


def load(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description of a golden file, such as ``ops/triplet_eval``."""
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(str(arrays.pop("meta")))


def unit(name: str, shape: tuple[int, ...], salt: int) -> np.ndarray:
    """Zero mean, unit variance, uniform, drawn from the name (golden/README.md, steps 1 to 3)."""
    return math.sqrt(3) * (2 * _uniform(name, shape, salt) - 1)


def _uniform(name: str, shape: tuple[int, ...], salt: int) -> np.ndarray:
    seed = np.uint64((salt << 32) | zlib.crc32(name.encode()))
    z = np.arange(1, math.prod(shape) + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z *= np.uint64(0x9E3779B97F4A7C15)
        z += seed
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z ^= z >> np.uint64(shift)
            z *= np.uint64(factor)
        z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)) * 2.0**-53).reshape(shape)


def _entry(entry: dict[str, Any], salt: int, beta_shift: float) -> torch.Tensor:
    name, shape = entry["key"], tuple(entry["shape"])
    leaf = re.split(r"[./]", name)[-1]  # Keras separates by slashes
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if leaf in ("running_mean", "moving_mean"):
        value = 0.1 * unit(name, shape, salt)
    elif leaf in ("running_var", "moving_variance"):
        value = 0.5 + _uniform(name, shape, salt)
    elif leaf in ("bias", "beta"):
        shift = beta_shift if entry.get("role") == "norm_bias" else 0.0
        value = shift + 0.1 * unit(name, shape, salt)
    elif len(shape) <= 1:
        value = 1 + 0.25 * unit(name, shape, salt)
    else:
        fan_in = math.prod(shape[:-1] if leaf == "kernel" else shape[1:])
        value = unit(name, shape, salt) * (entry.get("gain", 1.0) / math.sqrt(fan_in))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def keys(network: str) -> list[dict[str, Any]]:
    """The entries of the authors' state dict."""
    return json.loads((FOLDER / network / "state_keys.json").read_text())["keys"]


@functools.lru_cache(maxsize=2)
def original_state(network: str, salt: int, beta_shift: float) -> dict[str, torch.Tensor]:
    """A state dict as the authors' code would save it, filled by the rule; do not change it."""
    return {e["key"]: _entry(e, salt, beta_shift) for e in keys(network)}


def relative(got: torch.Tensor, truth: np.ndarray) -> float:
    """Largest difference, relative to the largest value."""
    assert tuple(got.shape) == truth.shape
    difference = np.abs(got.detach().double().cpu().numpy() - truth).max()
    return float(difference / np.abs(truth).max())


@functools.lru_cache(maxsize=2)
def directions(network: str) -> dict[str, np.ndarray]:
    """A fixed direction per entry of the authors' state dict, to project gradients on."""
    found = {e["key"]: unit("dir:" + e["key"], tuple(e["shape"]), 0) for e in keys(network)}
    return {e["key"]: in_torch_layout(e, found[e["key"]]) for e in keys(network)}


def in_torch_layout(entry: dict[str, Any], value: np.ndarray) -> np.ndarray:
    """An entry of a state dict of Keras with the axes of its kernel as PyTorch has them."""
    return value.transpose(3, 2, 0, 1) if entry.get("layout") == "hwio->oihw" else value


def check_gradients(
    model: torch.nn.Module,
    arrays: dict[str, np.ndarray],
    network: str,
    rename: Callable[[str], str],
    tolerance: float,
) -> None:
    """Norm and projection of the gradient of every parameter that the authors' network uses.

    Args:
        model: after the backward pass.
        arrays: of the golden case.
        network: its folder.
        rename: from the authors' names to those of the model.
        tolerance: of the norm, relative; ten times as much of the projection.
    """
    parameters, lines = dict(model.named_parameters()), directions(network)
    top, seen = np.nanmax(arrays["grad_norms"]), set()
    rows = zip(arrays["grad_names"], arrays["grad_norms"], arrays["grad_dots"], strict=True)
    for name, norm, dot in rows:
        if name == "__x__":
            continue
        key = rename(str(name))
        if np.isnan(norm):
            assert key not in parameters, "a dead parameter of the authors lives here"
            continue
        grad = parameters[key].grad.double().cpu().numpy()  # pyright: ignore[reportOptionalMemberAccess]
        scale = max(norm, 1e-3 * top)  # biases in front of a batch norm have a gradient of 0
        assert abs(np.linalg.norm(grad) - norm) <= tolerance * scale, key
        assert abs(np.vdot(grad, lines[str(name)]) - dot) <= 10 * tolerance * scale, key
        seen.add(key)
    assert seen == set(parameters)


def check_buffers(
    model: torch.nn.Module,
    arrays: dict[str, np.ndarray],
    network: str,
    rename: Callable[[str], str],
    tolerance: float,
    dead: str = "(?!)",
) -> None:
    """Norm and projection of the running statistics after one step.

    ``dead`` is a pattern of the authors' names that the model leaves out; the rest are as in
    `check_gradients`.
    """
    buffers, lines, seen = dict(model.named_buffers()), directions(network), set()
    rows = zip(arrays["buf_names"], arrays["buf_norms"], arrays["buf_dots"], strict=True)
    for name, norm, dot in rows:
        key = rename(str(name))
        if key not in buffers:
            assert re.match(dead, str(name)), name
            continue
        value = buffers[key].double().cpu().numpy()
        assert abs(np.linalg.norm(value) - norm) <= tolerance * norm, key
        assert abs(np.vdot(value, lines[str(name)]) - dot) <= 10 * tolerance * norm, key
        seen.add(key)
    assert {k for k in buffers if "running_" in k} <= seen
