"""Rows of a run: collected, compared, printed and written to bench/results/<device>.json."""

import json
import os
import platform
from datetime import date
from pathlib import Path

import torch

from bench.cases import Case

FOLDER = Path(__file__).parent / "results"
FUSED = ("cpu", "cuda", "triton")


def compare(case: Case, times: dict[str, dict[str, float]], x_bytes: int) -> list[dict]:
    """One row per contender: milliseconds, GB/s of the copy it amounts to, and the ratios."""
    rows = []
    for name, summary in times.items():
        median = summary["median_ms"]
        row = {"case": str(case), "contender": name, **{k: round(v, 4) for k, v in summary.items()}}
        row["clones"] = round(median / times["clone"]["median_ms"], 3)
        row["copies"] = round(median / times["copy_"]["median_ms"], 3)
        row["copy_GBps"] = round(2 * x_bytes / median / 1e6, 1)
        for rival in ("eager", "compile"):
            if rival in times and name not in ("copy_", "clone", rival):
                row[f"vs_{rival}"] = round(times[rival]["median_ms"] / median, 3)
        rows.append(row)
    return rows


def missed(case: Case, rows: list[dict]) -> list[str]:
    """The goals that the best fused backend does not reach, each as a sentence."""
    fused = [r for r in rows if r["contender"] in FUSED]
    if not fused:
        return []
    best = min(fused, key=lambda r: r["median_ms"])
    found = []
    for goal, figure in case.goals.items():
        if goal == "clones" and best["clones"] > figure:
            found.append(f"{best['contender']} takes {best['clones']} clones, asked {figure}")
        if goal != "clones" and best.get(f"vs_{goal}", figure) < figure:
            found.append(f"{best['contender']} is {best[f'vs_{goal}']} x {goal}, asked {figure}")
    return found


def device_name() -> str:
    """A file name for this device: the GPU's name, or the processor's kind and thread count."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name().lower().replace(" ", "-").replace("/", "-")
    return f"cpu-{platform.machine()}-{torch.get_num_threads()}-threads"


def write(rows: list[dict], folder: Path = FOLDER) -> Path:
    """Replaces the rows of the cases that ran, keeps the others; written beside, then renamed.

    Every row carries the run it comes from, since the file may hold rows of several.
    """
    folder.mkdir(exist_ok=True)
    target = folder / f"{device_name()}.json"
    old = json.loads(target.read_text())["rows"] if target.exists() else []
    ran = {r["case"] for r in rows}
    run = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE", "0"),
        "load": round(os.getloadavg()[0], 1),
    }
    kept = [r for r in old if r["case"] not in ran]
    report = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "rows": kept + [r | run for r in rows],
    }
    beside = target.with_suffix(".tmp")
    beside.write_text(json.dumps(report, indent=1) + "\n")
    beside.replace(target)
    return target


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} with {capability}"


def table(rows: list[dict]) -> str:
    """The rows as fixed-width text, one block per case."""
    lines, last = [], None
    for r in rows:
        if r["case"] != last:
            last = r["case"]
            lines.append(f"\n{last}")
        ratios = "".join(f"  {r[k]:7.2f} x {k[3:]}" for k in ("vs_eager", "vs_compile") if k in r)
        memory = f"  peak {r['peak_MB']} MB" if "peak_MB" in r else ""
        memory += f"  kept {r['saved_percent']} %" if "saved_percent" in r else ""
        lines.append(
            f"  {r['contender']:8s} {r['median_ms']:9.3f} ms [{r['p20_ms']:.3f} {r['p80_ms']:.3f}]"
            f"  {r['clones']:6.2f} clones  {r['copies']:6.2f} copies{ratios}{memory}"
        )
    return "\n".join(lines)
