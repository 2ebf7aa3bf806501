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
    for path in sorted(path for path in found if path.suffix in _SUFFIXES):
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]
