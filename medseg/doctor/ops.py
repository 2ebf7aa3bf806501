"""Which backend each op takes, why not the others, and a real run of all that can."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..findings import Finding

_SECONDS = 300  # for all trials of a process; a hang is a finding
_PLAIN_PYTORCH = ("reference",)


@dataclass
class Row:
    """An op on one backend and device."""

    op: str
    device: str
    backend: str
    taken: bool = False  # by the automatic choice, or by MEDSEG_BACKEND
    why_not: str | None = None  # it cannot run here
    trial: dict[str, Any] | None = None  # what `trial` returned

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def survey() -> tuple[list[Row], list[Finding]]:
    """Asks every op on every device which backends can run, and which it takes."""
    import torch

    from ..kernels import backend_report

    rows: list[Row] = []
    findings: list[Finding] = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for op, reasons in backend_report(device).items():
            taken, finding = _taken(op, device)
            findings += [finding] if finding and not findings else []  # the same for every op
            rows += [Row(op, device, name, name == taken, why) for name, why in reasons.items()]
    return rows, findings


def _taken(op: str, device: str) -> tuple[str | None, Finding | None]:
    import torch

    from ..kernels._backend import choose

    try:
        return choose(op, torch.empty(0, device=device), None), None
    except (RuntimeError, ValueError) as error:
        says = f"MEDSEG_BACKEND={os.environ.get('MEDSEG_BACKEND')}: {error}"
        return None, Finding("error", "MEDSEG_BACKEND", says, "unset MEDSEG_BACKEND")


def run_all(rows: Sequence[Row], command: Sequence[str] | None = None) -> list[Finding]:
    """Runs each op on each backend that can, in another process, and notes what came.

    Args:
        rows: of `survey`; their `trial` is filled in.
        command: what runs the trials; None takes `medseg.doctor.trial`.

    Returns:
        A finding for each that crashed, raised, or gave other numbers than the reference.
    """
    command = command or (sys.executable, "-m", f"{__package__}.trial")
    left = [row for row in rows if row.why_not is None and row.backend not in _PLAIN_PYTORCH]
    count = len(left)
    findings: list[Finding] = []
    while left:
        done, end = _run([*command, json.dumps([[r.op, r.backend, r.device] for r in left])])
        for result in done:
            row = left.pop(0)
            row.trial = result
            findings += _judge(row)
        if not left:
            break
        row = left.pop(0)  # the one that ended the process
        row.trial = {"fine": False, "raised": end}
        findings += _judge(row)
    if not findings:
        says = f"{count} of {count} runs agree with float64 as well as plain PyTorch does"
        findings.append(Finding("fine", "ops", says))
    return findings


def _run(command: list[str]) -> tuple[list[dict[str, Any]], str]:
    """The results that a process printed, and how it ended."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        return _results(said), f"no answer in {_SECONDS} s"
    if done.returncode < 0:
        return _results(done.stdout), f"the process died of signal {-done.returncode}"
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return _results(done.stdout), f"exit code {done.returncode}: {last}"


def _results(said: str) -> list[dict[str, Any]]:
    return [
        result
        for line in said.splitlines()
        if line.startswith("{") and "begins" not in (result := json.loads(line))
    ]


def _judge(row: Row) -> list[Finding]:
    trial = row.trial or {}
    if trial.get("fine"):
        return []
    what = f"{row.op} on {row.backend} ({row.device})"
    if "raised" in trial:
        says = f"{what} does not run: {trial['raised']}"
    else:
        says = (
            f"{what} is wrong: it is {_number(trial['error'])} off float64, plain PyTorch "
            f"{_number(trial['plain'])}"
        )
    built = row.backend in ("cpu", "cuda") and row.op != "position"
    mend = "pip install --force-reinstall --no-deps -e ." if built else "export MEDSEG_BACKEND="
    return [Finding("error", row.op, says, mend if built else mend + "reference")]


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:.1e}"


def check_built(rows: Sequence[Row]) -> list[Finding]:
    """Where a device has no fused backend, and what would give it one."""
    from ..kernels._backend import compiled

    findings = []
    for device in dict.fromkeys(row.device for row in rows):
        mine = [row for row in rows if row.device == device and row.op != "position"]
        if any(row.why_not is None for row in mine if row.backend != "reference"):
            continue
        reason = compiled("_cpu" if device == "cpu" else "_cuda")[1] or ""
        mend = "pip install -e ."
        if "no C++ compiler" in reason:
            mend = "apt-get install -y g++ && pip install -e ."
        elif "nvcc was not found" in reason:
            mend = "pip install 'triton>=3.5,<3.8'"
        says = f"plain PyTorch does all the work on the {device.upper()}: {reason}"
        findings.append(Finding("warning", "backends", says, mend))
    return findings
