"""The folder of a run: what lies in it, written so that a file is there whole or not at all."""

import contextlib
import csv
import errno
import importlib.metadata
import io
import json
import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .errors import OutputError, UserError

_LIBRARIES = ("torch", "triton", "numpy", "opencv-python", "lightning-fabric", "monai", "kornia")
_WORTH_KNOWING = ("THP_MEM_ALLOC_ENABLE", "OMP_NUM_THREADS", "MEDSEG_BACKEND", "TRITON_INTERPRET")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; it takes the name of `path` when the block ends.

    Raises:
        OutputError: the disk is full or read-only.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    there = False
    try:
        yield beside
        os.replace(beside, path)
        there = True
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path} cannot be written ({reason}): make room there or take another --out.", 3
        ) from None
    finally:
        if not there:
            beside.unlink(missing_ok=True)


class RunFolder:
    """One run's files.

    Args:
        path: an existing folder; `create_run` makes a new one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write_text(self, name: str, text: str) -> Path:
        """Writes a text file, whole or not at all."""
        target = self.path / name
        target.parent.mkdir(exist_ok=True)
        with atomic(target) as beside:
            beside.write_text(text, encoding="utf-8")
        return target

    def write_json(self, name: str, value: Any) -> Path:
        """Writes a JSON file."""
        return self.write_text(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Writes a CSV file; the keys of the first row are its columns, None an empty cell."""
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _short(v) for k, v in row.items()} for row in rows)
        return self.write_text(name, out.getvalue())

    def write_checkpoint(self, name: str, state: dict[str, Any]) -> Path:
        """Writes a training state of tensors and plain values, for `read_checkpoint`."""
        target = self.path / name
        with atomic(target) as beside, beside.open("wb") as file:
            try:
                torch.save(state, file)
                os.fsync(file.fileno())
            except RuntimeError as error:  # what PyTorch makes of a full disk
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
        return target

    def write_weights(
        self, name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
    ) -> Path:
        """Writes weights as safetensors; metadata values that are no text are written as JSON."""
        from safetensors.torch import save

        plain = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
        target = self.path / name
        dense = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        with atomic(target) as beside:
            beside.write_bytes(_ordered(save(dense, metadata=plain)))
        return target

    def remove(self) -> None:
        """Removes the folder and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def go_on(self) -> None:
        """Removes what a killed process left half written, and the report, which will be another's.

        A folder without a report is a run that is not finished.
        """
        for path in (*self.path.glob(".*.tmp"), self.path / "report" / "index.html"):
            path.unlink(missing_ok=True)


def _ordered(data: bytes) -> bytes:
    """The same safetensors file with its metadata in alphabetical order, not in any."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    head["__metadata__"] = dict(sorted(head["__metadata__"].items()))
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at multiples of 8
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def create_run(
    out: str, name: str | None, words: Iterable[str], files: Mapping[str, str]
) -> RunFolder:
    """Makes a new run folder, which has its first files from the moment it is there.

    Args:
        out: folder for run folders; made if missing.
        name: name to take; None joins `words` and the time.
        words: what the name is made of.
        files: names and texts of the first files.

    Raises:
        UserError: the folder is there already, or cannot be made.
    """
    stem = "-".join([re.sub(r"[^\w.+]+", "_", w) for w in words] + [time.strftime("%Y%m%d-%H%M%S")])
    beside = RunFolder(Path(out, f".{name or stem}.{os.getpid()}.tmp"))
    try:
        beside.path.mkdir(parents=True, exist_ok=True)
        for key, text in files.items():
            beside.write_text(key, text)
        for attempt in range(1, 1000):
            path = Path(out, name or (stem if attempt == 1 else f"{stem}-{attempt}"))
            if not path.exists() and _renamed(beside.path, path):
                return RunFolder(path)
            if name:
                raise UserError(f"--name {name}: {path} is there already; take another name.")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written to ({error.strerror}).") from None
    finally:
        beside.remove()
    raise UserError(f"--out {out}: too many runs of this second; take a --name.")


def _renamed(folder: Path, path: Path) -> bool:
    """Gives a folder another name; False where another process took that name first."""
    try:
        os.rename(folder, path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Reads the last.ckpt of a run; runs no code from the file.

    Returns:
        What `write_checkpoint` wrote; None where the run ended before it wrote any.

    Raises:
        UserError: it is damaged, or lost.
    """
    path = folder / "last.ckpt"
    if not path.exists():
        if not (folder / "metrics.csv").exists():
            return None
        raise UserError(f"--resume {folder}: its last.ckpt is gone; train anew, without --resume.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # whose words would have the reader let code run
        raise _damaged(path, "it is not made of tensors, numbers and text alone") from None
    except Exception as error:
        raise _damaged(path, error) from None
    if not isinstance(state, dict) or not isinstance(state.get("epoch"), int):
        raise _damaged(path, "it has no epoch")
    return state


def _damaged(path: Path, reason: object) -> UserError:
    first = (str(reason).splitlines() or [type(reason).__name__])[0].rstrip(".")
    return UserError(
        f"{path} cannot be read as a training state ({first}): train anew, without --resume.", 3
    )


def environment() -> dict[str, Any]:
    """Returns versions, processor, threads and source state, as a run should remember them."""
    versions = {
        "medseg": installed_version("medseg") or "checkout",
        "python": platform.python_version(),
    }
    versions |= {name: installed_version(name) for name in _LIBRARIES}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions,
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "commit": _commit(),
        "variables": {k: os.environ[k] for k in _WORTH_KNOWING if k in os.environ},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _short(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def installed_version(name: str) -> str | None:
    """Returns the version of an installed distribution; None where it runs from a checkout."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout medseg runs from, with "+" when files differ from it."""
    home = Path(__file__).resolve().parent.parent
    if not (home / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(home), *words], capture_output=True, text=True, timeout=10
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = git("rev-parse", "--short=12", "HEAD")
        dirty = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        return commit + dirty if commit else None
    return None
