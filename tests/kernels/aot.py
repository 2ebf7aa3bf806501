"""Compiles every Triton kernel for GPUs that need not be there: python -m tests.kernels.aot

The launchers run on unfilled CPU tensors under a driver that compiles what they launch and launches
nothing, so what is compiled is what a GPU would be given. Printed per kernel: registers, shared
memory, spills, the widest load from memory. Exit code 1: a spill, a kernel no case reached, or no
Triton to compile with.
"""

import argparse
import concurrent.futures
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import types
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
# name: (backend, architecture, threads of a warp, shared memory of a block)
TARGETS = {
    "sm_80": ("cuda", 80, 32, 166912),
    "sm_90": ("cuda", 90, 32, 232448),
    "gfx942": ("hip", "gfx942", 64, 65536),
}
LARGE, ODD, DEEP = (4, 64, 256, 256), (2, 7, 17, 19), (8, 512, 16, 16)
ONES, FLAT = (1, 1, 1, 1), (1, 1, 1, 7)  # Triton compiles sizes of 1 in as constants
Row = tuple[str, int, int, int, int]  # kernel, registers, shared, spilled bytes, load width


def feature_map(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> torch.Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, memory_format=layout)


def run_eca() -> None:
    """Every kernel in each dtype and layout; few and many partial sums; with and without bias."""
    from medseg.kernels.eca import kernel

    for shape, dtype, last, taps in (
        (LARGE, torch.float32, False, 3),
        (LARGE, torch.bfloat16, True, 5),
        (DEEP, torch.float16, False, 5),
        (ODD, torch.float32, True, 1),
        (ONES, torch.float32, False, 3),
        (FLAT, torch.float16, False, 3),
    ):
        x = feature_map(shape, dtype, last)
        weight = torch.empty(taps)
        bias = torch.empty(1) if taps == 3 else None
        for residual, pool in ((None, 1), (x, 1), (x, 2)):
            if pool == 2 and x.shape[2] < 2:
                continue
            out, _, saved = kernel.forward(x, residual, weight, bias, pool)
            summed = x if pool == 2 and taps == 3 else None
            kernel.backward(out, summed, x, weight, saved, pool, True)


def run_gate() -> None:
    """Both kernels in each dtype, with one gradient and with both."""
    from medseg.kernels.gate import kernel

    for shape, dtype, last in (
        (LARGE, torch.float32, False),
        (LARGE, torch.bfloat16, True),
        (ODD, torch.float16, False),
        (ONES, torch.float32, False),
    ):
        x = feature_map(shape, dtype, last)
        kernel.forward(x, x, x)
        for total, product in ((x, x), (x, None), (None, x)):
            kernel.backward(total, product, x, x, x)


def run_triplet() -> None:
    """Training and eval, three gates and two, each key width, both sizes of tile."""
    from medseg.kernels.triplet import kernel

    for shape, dtype, last, size, gates, training in (
        (LARGE, torch.float32, False, 7, 3, True),
        (LARGE, torch.bfloat16, True, 7, 3, True),
        (DEEP, torch.float16, False, 7, 3, False),
        (ODD, torch.float32, True, 3, 2, True),
        (ONES, torch.float32, False, 7, 3, False),
        (FLAT, torch.float16, False, 7, 3, True),
        (LARGE, torch.float32, False, 11, 3, False),
        (LARGE, torch.float32, False, 35, 2, True),
    ):
        x = feature_map(shape, dtype, last)
        weight = torch.empty(gates, 2, size, size)
        vector = torch.empty(gates)
        for keep in (False, True):
            _, stats, planes, index = kernel.forward(
                x, weight, vector, vector, vector, vector, training, 1e-5, keep
            )
        kernel.backward(x, x, weight, vector, vector, stats, planes, index, training, 1e-5)
        planes, index = kernel.pool(x, gates)
        kernel.pool_backward(planes, x, index, gates)
        kernel.apply_backward(x, x, planes[0], gates)


def run_split() -> None:
    """Radix 1 to 4, few and many images, folded or not, with and without biases, both modes."""
    from medseg.kernels.split import kernel

    for shape, dtype, last, radix, groups, inner, training in (
        (LARGE, torch.float32, False, 2, 1, 32, True),
        (LARGE, torch.bfloat16, True, 2, 1, 32, False),
        (DEEP, torch.float16, False, 4, 2, 256, False),
        ((64, 18, 17, 19), torch.float32, True, 3, 2, 6, True),
        (ONES, torch.float32, False, 1, 1, 1, False),
        (FLAT, torch.float16, False, 2, 1, 7, False),
    ):
        n, c, h, w = shape
        x, grad = (feature_map((n, k * c, h, w), dtype, last) for k in (radix, 1))
        fc1, fc2 = torch.empty(inner, c // groups), torch.empty(radix * c, inner // groups)
        vector, wide = torch.empty(inner), torch.empty(radix * c)
        biases = (vector, wide) if training else (None, None)
        folded = (None, None) if training else (wide, wide)
        norm, numbers = (vector, vector), (radix, groups, training, 1e-5)
        _, stats, saved = kernel.forward(
            x, *folded, fc1, biases[0], *norm, *norm, fc2, biases[1], *numbers
        )
        learned = (fc1, biases[0], *norm, fc2, biases[1])
        kernel.backward(grad, x, *learned, stats, saved, *numbers, True)
        gates = wide.expand(n, -1)
        kernel.apply(x, gates, radix)
        kernel.apply_backward(grad, x, gates, radix, True)
        if radix < 4:  # of four half splits ptxas parks one register around the loop, and says so
            kernel.pool(x, radix)


def run_mde() -> None:
    """Each radius, padding, layout and width of access, into a part of a larger map too."""
    from medseg.kernels.mde import kernel

    for shape, dtype, last, scales, bank, pad, shared in (
        (LARGE, torch.float32, False, (3, 5, 7), "binomial", "zero", False),
        (LARGE, torch.bfloat16, False, (3, 5, 7), "binomial", "zero", True),
        (LARGE, torch.float32, True, (3, 5, 7), "binomial", "zero", False),
        (LARGE, torch.bfloat16, True, (3, 5, 7), "binomial", "zero", False),
        (LARGE, torch.float32, False, (3, 5, 7), "gauss", "reflect", False),
        (LARGE, torch.bfloat16, True, (3, 5, 7), "opencv", "reflect", False),
        (DEEP, torch.float16, False, (5,), "box", "zero", True),
        (DEEP, torch.float16, True, (3,), "box", "reflect", True),
        (ODD, torch.float32, False, (3, 7), "binomial", "reflect", False),
        (ODD, torch.bfloat16, True, (3,), "cross", "zero", False),
        (ONES, torch.float32, False, (3, 5, 7), "binomial", "zero", False),
        (FLAT, torch.float16, False, (3, 5, 7), "binomial", "zero", False),
    ):
        x, up = feature_map(shape, dtype, last), feature_map(shape, dtype, last)
        gains = torch.empty(1 if shared else shape[1], len(scales) + 1)
        out = kernel.forward(x, up, gains, scales, bank, pad)
        for need_gains in (False, True):
            kernel.backward(out, x, gains, shape[1], scales, bank, pad, True, need_gains)
        kernel.backward(x, x, gains, 0, scales, bank, pad, False, True)


OPS: dict[str, Callable[[], None]] = {
    "eca": run_eca,
    "gate": run_gate,
    "mde": run_mde,
    "split": run_split,
    "triplet": run_triplet,
}


def compile_only_driver(target: str) -> Any:
    """As much of a Triton driver as a launch asks for; it loads and launches nothing."""
    from triton.backends.compiler import GPUTarget

    backend, arch, warp, shared = TARGETS[target]
    utils = types.SimpleNamespace(
        load_binary=lambda *_: (None, None, 0, 0, 1024),
        get_device_properties=lambda _: {"max_shared_mem": shared},
    )
    return types.SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda _: 0,
        get_current_target=lambda: GPUTarget(backend, arch, warp),
        get_active_torch_device=lambda: torch.device("cpu"),
        launcher_cls=lambda *_: lambda *_: None,
        utils=utils,
    )


def kernel_modules() -> list[types.ModuleType]:
    files = sorted((ROOT / "kernels").glob("*/kernel*.py"))
    return [importlib.import_module(f"medseg.kernels.{f.parent.name}.{f.stem}") for f in files]


def compile_op(job: tuple[str, str]) -> tuple[str, str, list[Row], list[str]]:
    """(op, target, a row per compiled kernel, names of kernels that no case launched)."""
    import triton

    op, target = job
    triton.runtime.driver.set_active(compile_only_driver(target))
    OPS[op]()
    rows, missed = [], []
    for module in kernel_modules():
        for name, found in vars(module).items():
            here = getattr(found, "__module__", "") == module.__name__
            if not (here and name.endswith("_kernel") and f".{op}." in module.__name__):
                continue
            compiled = list(found.device_caches[0][0].values())
            rows += [resources(name, kernel, target) for kernel in compiled]
            missed += [] if compiled else [f"{module.__name__}.{name}"]
    return op, target, rows, missed


def resources(name: str, kernel, target: str) -> Row:
    if target.startswith("sm"):
        registers, spilled = cubin_usage(kernel.asm["cubin"])
        pattern = r"ld\.global[\w.:]*?(?:\.v(\d))?\.b(\d+)"
        widths = [int(v or 1) * int(b) // 8 for v, b in re.findall(pattern, kernel.asm["ptx"])]
    else:
        text = kernel.asm["amdgcn"]

        def figure(key: str) -> int:
            return max(int(n) for n in re.findall(rf"\.{key}:\s*(\d+)", text))

        registers, spilled = figure("vgpr_count"), figure("private_segment_fixed_size")
        found = re.findall(r"(?:global|buffer)_load_dword(?:x(\d))?", text)
        widths = [4 * int(n or 1) for n in found]
    return name, registers, kernel.metadata.shared, spilled, max(widths, default=0)


def cubin_usage(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of local memory: a spill or an array the compiler could not place)."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures = {key: int(n) for key, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return figures["REG"], figures["STACK"] + figures["LOCAL"]


def report(op: str, target: str, rows: list[Row]) -> None:
    grouped = defaultdict(list)
    for row in rows:
        grouped[row[0]].append(row[1:])
    for name, found in grouped.items():
        registers, shared, spilled, widths = zip(*found, strict=True)
        width = f"{min(widths)}-{max(widths)}"
        print(
            f"{target:8}{op:9}{name:18}{len(found):9}{max(registers):11}{max(shared):9}"
            f"{max(spilled):9}{width:>9}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile every Triton kernel, no GPU needed.")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    targets = parser.parse_args().targets
    if importlib.util.find_spec("triton") is None:
        print("nothing compiled: triton is not installed; pip install 'triton>=3.5,<3.8'")
        return 1
    os.environ.pop("TRITON_INTERPRET", None)
    folders = {f.parent.name for f in (ROOT / "kernels").glob("*/kernel.py")}
    bad = [f"no case launches the kernels of {op}" for op in sorted(folders - set(OPS))]
    heads = ("target", "op", "kernel", "variants", "registers", "shared", "spilled", "load B")
    print("{:8}{:9}{:18}{:>9}{:>11}{:>9}{:>9}{:>9}".format(*heads))
    jobs = [(op, target) for target in targets for op in OPS]
    with concurrent.futures.ProcessPoolExecutor(max_tasks_per_child=1) as pool:
        for op, target, rows, missed in pool.map(compile_op, jobs):
            report(op, target, rows)
            bad += [f"{name} is launched by no case" for name in missed]
            bad += [f"{row[0]} spills {row[3]} bytes on {target}" for row in rows if row[3]]
    print("\n".join(f"failed: {line}" for line in dict.fromkeys(bad)) or "no spills")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
