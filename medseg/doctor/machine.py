"""The machine around PyTorch: devices, threads, huge pages, shared memory, disk, compilers."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..findings import Finding
from ..startup import describe_huge_pages

SHM = Path("/dev/shm")
_CGROUP = Path("/sys/fs/cgroup/cpu.max")
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"
_AHEAD = 2  # batches that each worker of a DataLoader keeps ready
_MB = 1 << 20


def devices() -> list[dict[str, Any]]:
    """The processor and the GPUs that PyTorch sees."""
    import torch

    from ..kernels._backend import compiled
    from ..runs import environment

    facts = environment()
    module, _ = compiled("_cpu")
    isa = module.isa() if module is not None else None
    found: list[dict[str, Any]] = [
        {"kind": "cpu", "name": facts["processor"], "cores": cores(), "instructions": isa}
    ]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        memory = about.total_memory // _MB
        capability = f"{about.major}.{about.minor}"
        found.append(
            {"kind": "cuda", "name": about.name, "memory_MB": memory, "capability": capability}
        )
    return found


def cores() -> int:
    """Cores that this process may use: of the machine, of its affinity, of its container."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP.read_text(encoding="ascii").split()
        return max(1, min(count, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no such group, or "max"
        return count


def check_gpu() -> list[Finding]:
    """A GPU that is in the machine and that PyTorch does not see."""
    import torch

    if torch.cuda.is_available():
        return [Finding("fine", "gpu", f"PyTorch drives {torch.cuda.device_count()} GPU(s)")]
    if not (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        return [Finding("note", "gpu", "there is no NVIDIA GPU here; the CPU does the work")]
    if torch.version.cuda is None:
        says = f"there is an NVIDIA GPU, but PyTorch {torch.__version__} is built without CUDA"
        mend = (
            "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126"
        )
        return [Finding("warning", "gpu", says, mend)]
    says = f"there is an NVIDIA GPU, but PyTorch (CUDA {torch.version.cuda}) cannot use it"
    return [Finding("warning", "gpu", says, "nvidia-smi")]


def check_threads(allowed: int | None = None) -> Finding:
    """PyTorch's threads against the cores that it may use.

    Args:
        allowed: cores; None counts them.
    """
    import torch

    allowed, threads = allowed or cores(), torch.get_num_threads()
    says = f"PyTorch works with {threads} thread{'s'[: threads != 1]} on {allowed} cores"
    if threads > allowed:
        says += "; threads without a core wait for each other at every op"
        return Finding("warning", "threads", says, f"export OMP_NUM_THREADS={allowed}")
    if threads < allowed and "OMP_NUM_THREADS" in os.environ:
        return Finding("note", "threads", f"{says} (OMP_NUM_THREADS)", "unset OMP_NUM_THREADS")
    return Finding("fine", "threads", says)


def check_huge_pages() -> Finding:
    """Whether large tensors get huge pages: without them, first touch costs as much as a write."""
    words = describe_huge_pages()
    if words.startswith("on"):
        return Finding("fine", "huge pages", words)
    mend = None
    if _HUGE_PAGES in words:
        mend = f"echo madvise | sudo tee {_HUGE_PAGES}"
    elif "THP_MEM_ALLOC_ENABLE" in words and "has no" not in words:
        mend = "export THP_MEM_ALLOC_ENABLE=1"
    return Finding("note", "huge pages", words, mend)


def check_shm(workers: int, batch: int, size: int, shm: Path = SHM) -> Finding:
    """Room for the batches that workers hand over in shared memory, as RGB and with their masks.

    Args:
        workers: processes reading images.
        batch: images a step.
        size: height and width the network sees.
        shm: where shared memory lies.
    """
    asked = f"--workers {workers} --batch {batch} --size {size}"
    if workers == 0:
        return Finding("fine", "/dev/shm", "not needed: --workers 0 reads without processes")
    if not shm.is_dir():
        return Finding("note", "/dev/shm", f"{shm} is not there: this system shares otherwise")
    need = (workers * _AHEAD + 1) * batch * size * size * (3 * 4 + 8)
    free = shutil.disk_usage(shm).free
    says = f"{shm} has {_amount(free)} free; {asked} can fill {_amount(need)}"
    if free >= need:
        return Finding("fine", "/dev/shm", says)
    room = max(64, 1 << (2 * need // _MB).bit_length())
    if Path("/.dockerenv").exists():
        mend = f"docker run --shm-size={room}m ..."
    else:
        mend = f"sudo mount -o remount,size={room}M {shm}"
    return Finding("warning", "/dev/shm", f"{says}: a worker would die of a bus error", mend)


def check_disk(out: Path, model: str) -> Finding:
    """Room for a run: best weights, and a training state twice while the new one replaces it.

    Args:
        out: folder for the run folders; it need not be there yet.
        model: name of the network.
    """
    import torch

    from ..models import create_model

    with torch.device("meta"):
        weights = 4 * sum(p.numel() for p in create_model(model).parameters())
    need = weights * (2 + 2 * 3) + 64 * _MB  # best twice, last.ckpt with AdamW's moments twice
    place = next(p for p in (out.absolute(), *out.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    says = f"the disk of {out} has {_amount(free)} free; a run of {model} needs {_amount(need)}"
    if not os.access(place, os.W_OK):
        says = f"{place} cannot be written to"
        return Finding("error", "disk", says, "medseg train --out DIR, with a DIR of yours")
    if free < need:
        return Finding("error", "disk", says, "medseg train --out DIR, on a disk with room")
    return Finding("fine", "disk", says)


def check_compilers() -> list[Finding]:
    """What can compile: C++ for the fused CPU ops and `torch.compile`, nvcc for the CUDA ones."""
    named = os.environ.get("CXX")
    names = [named.split()[0]] if named else ["c++", "g++", "clang++"]
    cxx = next((path for name in names if (path := shutil.which(name))), None)
    if cxx is None:
        says = f"no C++ compiler ({', '.join(names)}); torch.compile needs one on a CPU"
        found = [Finding("note", "compiler", says, "apt-get install -y g++")]
    elif fault := _why_not_compiling([cxx, *(named or "").split()[1:]]):
        mend = "unset CXX" if named else "apt-get install -y --reinstall g++"
        found = [Finding("warning", "compiler", f"C++: {cxx} does not compile: {fault}", mend)]
    else:
        found = [Finding("fine", "compiler", f"C++: {cxx}")]
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    inside = [str(Path(home, "bin", "nvcc")) for home in homes if home]
    nvcc = next((path for name in [*inside, "nvcc"] if (path := shutil.which(name))), None)
    says = f"CUDA: {nvcc}" if nvcc else "no nvcc: the CUDA kernels cannot be compiled here"
    return [*found, Finding("fine", "compiler", says)]


def _why_not_compiling(command: list[str]) -> str | None:
    """Why a compiler cannot make a library of one line with OpenMP; None if it can."""
    with tempfile.TemporaryDirectory(prefix="medseg-") as folder:
        options = ["-std=c++17", "-shared", "-fPIC", "-o", f"{folder}/one.so"]
        options += [] if sys.platform == "darwin" else ["-fopenmp"]  # as setup.py has it
        try:
            done = subprocess.run(
                [*command, *options, "-x", "c++", "-"],
                input="#include <cmath>\nfloat one() { return std::exp(0.f); }\n",
                capture_output=True,
                text=True,
                errors="replace",
                timeout=60,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    said = [line for line in map(str.strip, done.stderr.splitlines()) if line]
    return None if done.returncode == 0 else (said or [f"exit code {done.returncode}"])[0]


def _amount(count: int) -> str:
    return f"{count / (1 << 30):.1f} GB" if count >= 1 << 30 else f"{count / _MB:.0f} MB"
