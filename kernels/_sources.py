"""What a compiled module is built of; plain Python, since setup.py runs it without PyTorch."""

import hashlib
from pathlib import Path

_SUFFIXES = (".h", ".cpp", ".cu", ".cuh")


def fingerprint(name: str) -> str | None:
    """A hash of the sources of ``_cpu`` or ``_cuda``; None where none lie beside, as in a wheel."""
    csrc = Path(__file__).resolve().parents[1] / "csrc"
    kind = name.removeprefix("_")
    bindings = csrc / f"{kind}_bindings.cpp"
    if not bindings.is_file():
        return None
    found = [bindings, *csrc.glob("*.h"), *csrc.glob(f"{kind}/*")]
    total = hashlib.sha256()
    sources = [p for p in found if p.suffix in _SUFFIXES and p.name[0] != "." and p.is_file()]
    for path in sorted(sources):
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]
