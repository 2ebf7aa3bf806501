"""Rows of a run: compared, held against the goals, printed and kept in results/<device>.json."""

import json
import os
import platform
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.cases import Case
from bench.floors import MEMORY_BOUND, floor_bytes, flops, map_bytes
from bench.measure import Samples, cache_bytes, matmul_gflops, on_gpu, summary

FOLDER = Path(__file__).parent / "results"
YARDSTICKS = ("copy_", "clone")
FUSED = ("cpu", "cuda", "triton")

Rows = list[dict[str, Any]]


def compare(case: Case, samples: Samples) -> Rows:
    """One row per contender: milliseconds, GB/s, percent of the floor, and how many times faster.

    A floor is its bytes at the speed of `copy_` of the map, which reads and writes it once.
    """
    times = {name: summary(seconds) for name, seconds in samples.items()}
    copy, x_bytes = times["copy_"]["median_ms"], map_bytes(case)
    resident, streamed = floor_bytes(case)
    rows = []
    for name, found in times.items():
        median = found["median_ms"]
        row = _about(case) | {"contender": name} | {k: round(v, 4) for k, v in found.items()}
        row["clones"] = round(median / times["clone"]["median_ms"], 3)
        row["copies"] = round(median / copy, 3)
        if name in YARDSTICKS:
            row["GBps"] = round(2 * x_bytes / median / 1e6, 1)
        else:
            row["GBps"] = round(resident / median / 1e6, 1)
            floor = copy / (2 * x_bytes) / median * 100
            row["share"] = round(resident * floor, 1)
            row["share_streamed"] = round(streamed * floor, 1)
            row |= {"floor_bytes": resident, "flop": flops(case)}
            row |= _ratios(name, median, times)
        rows.append(row)
    return rows


def _about(case: Case) -> dict[str, Any]:
    return {
        "case": str(case),
        "kind": "op",
        "op": case.op,
        "shape": list(case.shape),
        "options": dict(case.options),
        "layout": case.layout,
        "dtype": case.dtype,
        "step": case.step,
    }


def _ratios(name: str, median: float, times: dict[str, dict[str, float]]) -> dict[str, float]:
    """How many times faster than every rival that is no backend of ours."""
    rivals = [r for r in times if r not in (name, *YARDSTICKS, *FUSED)]
    return {f"vs_{r}": round(times[r]["median_ms"] / median, 3) for r in rivals}


def judge(case: Case, rows: Rows) -> Rows:
    """The goals of a case as the fastest fused backend meets them.

    `clones` moves with the page faults of the moment; where it fails and the two ratios that are
    asked beside it hold, the ratios decide.
    """
    fused = [r for r in rows if r["contender"] in FUSED]
    if not fused:
        return []
    best = min(fused, key=lambda r: r["median_ms"])
    found = [g for name, asked in case.goals.items() if (g := _goal(case, best, name, asked))]
    by_name = {g["goal"]: g for g in found}
    clones, ratios = by_name.get("clones"), [by_name.get(r) for r in ("eager", "compile")]
    if clones and not clones["met"] and case.goals.get("compile", 0) > 1:
        clones["met"] = clones["by_ratios"] = all(g is None or g["met"] for g in ratios)
    return found


def _goal(case: Case, best: dict[str, Any], name: str, asked: float) -> dict[str, Any] | None:
    """One goal with what was found; None where it cannot be asked."""
    if name == "share":
        beyond = case.op in MEMORY_BOUND and map_bytes(case) > cache_bytes()
        found = best["share_streamed"] if beyond else None
    else:
        found = best.get({"clones": "clones", "saved": "saved_percent"}.get(name, f"vs_{name}"))
    if found is None:
        return None
    met = found <= asked if name in ("clones", "saved") else found >= asked
    return {"goal": name, "asked": asked, "found": found, "met": met, "by": best["contender"]}


_WORDS = {"clones": "takes {} clones", "saved": "keeps {} % of x", "share": "is at {} % of copy"}


def missed(goals: Rows) -> str:
    """The goals that are not met, as one sentence; empty where all are."""
    found = []
    for g in goals:
        words = str(_WORDS.get(g["goal"], f"is {{}} x {g['goal']}")).format(g["found"])
        if not g["met"]:
            found.append(f"{g['by']} {words}, asked {g['asked']}")
    return "; ".join(found)


def device_name() -> str:
    """A file name for this device: the GPU's name, or the processor's kind and thread count."""
    if on_gpu():
        return torch.cuda.get_device_name().lower().replace(" ", "-").replace("/", "-")
    return f"cpu-{platform.machine()}-{torch.get_num_threads()}-threads"


def write(rows: Rows, absent: dict[str, str], folder: Path = FOLDER) -> Path:
    """Replaces the rows of the cases that ran, keeps the others; written beside, then renamed.

    Every row carries the run it comes from, since the file may hold rows of several.
    """
    folder.mkdir(exist_ok=True)
    target = folder / f"{device_name()}.json"
    old = json.loads(target.read_text())["rows"] if target.exists() else []
    ran = {r["case"] for r in rows}
    report = _machine() | {"absent": dict(sorted(absent.items()))}
    kept = [r for r in old if r["case"] not in ran] + [r | _run() for r in rows]
    lines = ",\n".join(f"  {json.dumps(r)}" for r in kept)
    head = json.dumps(report, indent=1)[:-2]
    beside = target.with_suffix(".tmp")
    beside.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n')
    beside.replace(target)
    return target


def _run() -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE", "0"),
        "load": round(os.getloadavg()[0], 1),
    }


@cache
def _machine() -> dict[str, Any]:
    capability = torch.backends.cpu.get_cpu_capability()
    name = torch.cuda.get_device_name() if on_gpu() else f"{platform.machine()} with {capability}"
    return {
        "device": device_name(),
        "processor": name,
        "threads": torch.get_num_threads(),
        "matmul_gflops": round(matmul_gflops(), 1),
    }


def table(rows: Rows) -> str:
    """The rows of ops as fixed-width text, one block per case."""
    lines, last = [], None
    for r in rows:
        if r["kind"] != "op":
            continue
        if r["case"] != last:
            last = r["case"]
            lines.append(f"\n{last}")
        ratios = "".join(f"  {r[k]:7.2f} x {k[3:]}" for k in ("vs_eager", "vs_compile") if k in r)
        memory = f"  floor {r['share']:.0f} %" if "share" in r else ""
        memory += f"  peak {r['peak_MB']} MB" if "peak_MB" in r else ""
        memory += f"  kept {r['saved_percent']} %" if "saved_percent" in r else ""
        lines.append(
            f"  {r['contender']:8s} {r['median_ms']:9.3f} ms [{r['p20_ms']:.3f} {r['p80_ms']:.3f}]"
            f"  {r['clones']:6.2f} clones  {r['copies']:6.2f} copies{ratios}{memory}"
        )
    return "\n".join(lines)
