"""The installed packages: versions, what is missing or does not load, two OpenCV wheels."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from ..findings import Finding

OPENCV = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
MODULES = {  # of the distributions whose module has another name
    "opencv-python": "cv2",
    "lightning-fabric": "lightning_fabric",
    "pillow": "PIL",
}
_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
# In a process of its own: a library that is damaged may end the one that loads it.
_LOAD = """
import importlib, json, sys
for name in sys.argv[1:]:
    print(json.dumps([name, None]), flush=True)
    try:
        importlib.import_module(name)
        error = ""
    except BaseException as reason:
        error = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    print(json.dumps([name, error]), flush=True)
"""


def requirements() -> list[Requirement]:
    """What medseg needs, as its metadata or, in a checkout that is not installed, its project says.

    Those of extras and of other systems are left out.
    """
    try:
        lines = importlib.metadata.requires("medseg") or []
    except importlib.metadata.PackageNotFoundError:
        lines = _of_the_project()
    found = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.append(requirement)
    return found


def _of_the_project() -> list[str]:
    try:
        import tomllib  # from Python 3.11 on
    except ModuleNotFoundError:
        return []
    try:
        return tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return []


def versions(needed: list[Requirement]) -> dict[str, str | None]:
    """The installed version of each package; None where it is missing."""
    return {requirement.name: _version(requirement.name) for requirement in needed}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_packages(needed: list[Requirement]) -> list[Finding]:
    """Says which package is missing, too old or new, or does not load."""
    found = two_opencv_wheels()
    provided = {name for name in OPENCV if _version(name)}
    fit: list[str] = []
    for requirement in needed:
        name, version = requirement.name, _version(requirement.name)
        install = f"pip install {_quoted(requirement)}"
        if name == "opencv-python" and provided:
            fit.append(name)  # any of the four wheels has cv2
        elif version is None:
            found.append(Finding("error", name, f"{name} is not installed", install))
        elif not requirement.specifier.contains(version, prereleases=True):
            says = f"{name} {version} is outside {requirement.specifier}, which medseg is tested on"
            found.append(Finding("warning", name, says, install))
            fit.append(name)
        else:
            fit.append(name)
    reasons = load({name: MODULES.get(name, name) for name in fit})
    found += [_does_not_load(name, reason) for name, reason in reasons.items()]
    if not any(finding.level != "fine" for finding in found):
        found.append(Finding("fine", "packages", f"{len(needed)} packages are there and load"))
    return found


def _quoted(requirement: Requirement) -> str:
    plain = f"{requirement.name}{requirement.specifier}"
    return f"'{plain}'" if requirement.specifier else plain


def two_opencv_wheels() -> list[Finding]:
    """Two wheels of OpenCV write the same folder cv2: what is loaded is a mixture."""
    wheels = [name for name in OPENCV if _version(name)]
    if len(wheels) < 2:
        return []
    says = (
        f"{' and '.join(wheels)} are installed; they write into one folder, cv2, and what loads "
        "is a mixture of them"
    )
    mend = f"pip uninstall -y {' '.join(wheels)} && pip install opencv-python"
    return [Finding("error", "opencv", says, mend)]


def load(modules: dict[str, str]) -> dict[str, str]:
    """Imports each module in another process.

    Args:
        modules: distribution -> module.

    Returns:
        Distribution -> why it does not load, for those that do not.
    """
    reasons: dict[str, str] = {}
    left = dict(modules)
    while left:
        command = [sys.executable, "-c", _LOAD, *left.values()]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        last = ""
        for line in done.stdout.splitlines():
            try:
                module, error = json.loads(line)
            except ValueError:
                continue  # said by a library
            last = next(name for name, of in modules.items() if of == module)
            if error is not None:
                left.pop(last, None)
                if error:
                    reasons[last] = error
        if not left:
            break
        if not last or left.pop(last, None) is None:
            return reasons | dict.fromkeys(left, _end_of(done))
        reasons[last] = _end_of(done)
    return reasons


def _end_of(done: "subprocess.CompletedProcess[str]") -> str:
    """How a process ended that should not have."""
    if done.returncode < 0:
        return f"the process that loads it dies of signal {-done.returncode}"
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def _does_not_load(name: str, reason: str) -> Finding:
    level = "warning" if name == "triton" else "error"
    mend = f"pip install --force-reinstall --no-deps {name}"
    if name == "opencv-python" and ("libGL" in reason or "libgthread" in reason):
        mend = "apt-get install -y libgl1 libglib2.0-0"
    return Finding(level, MODULES.get(name, name), f"{name} does not load: {reason}", mend)
