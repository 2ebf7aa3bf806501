"""Imports go down only, and importing the package costs nothing but torch and numpy."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import medseg

ROOT = Path(__file__).resolve().parents[1]
SIBLINGS = (
    "config",
    "console",
    "data",
    "evaluation",
    "flags",
    "losses",
    "metrics",
    "recipes",
    "report",
    "runs",
    "findings",
    "look",
)
# From the ground up: a part imports itself and lower floors; siblings also one another.
FLOORS = (
    ("document", "errors", "startup"),
    ("kernels",),
    ("layers",),
    ("models",),
    ("fusion",),
    SIBLINGS,
    ("inference",),
    ("engine",),
    ("prepare",),
    ("train", "data_check", "doctor", "evaluate", "export", "predict"),
    ("serve",),
    ("cli",),
    ("__main__",),
)
HEAVY = """triton cv2 monai kornia lightning_fabric jinja2 matplotlib jsonargparse rich safetensors
onnx onnxruntime onnxscript"""


def modules():
    """(part of the package, file) of every source file; kernels/ is medseg.kernels."""
    for path in sorted((ROOT / "medseg").rglob("*.py")):
        parts = path.relative_to(ROOT / "medseg").with_suffix("").parts
        if parts[0] != "kernels" and parts != ("__init__",):
            yield parts, path
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        yield ("kernels", *path.relative_to(ROOT / "kernels").with_suffix("").parts), path


def imported(parts, path):
    """Parts of medseg that a file imports, at its top or inside a function; `medseg` for all."""
    package = ("medseg", *parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            start = ".".join(filter(None, (base, node.module)))
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name == "medseg" or name.startswith("medseg."):
                yield name.split(".")[1] if "." in name else "medseg"
            elif name == "kernels" or name.startswith(("kernels.", "tests", "bench")):
                yield name


def floor(part):
    for number, names in enumerate(FLOORS):
        if part in names:
            return number
    raise AssertionError(f"medseg.{part} stands on no floor; give it one in FLOORS")


def allowed(part, other):
    if part == other:
        return True
    if part == "kernels":  # must work alone
        return False
    if part in SIBLINGS:
        return other in SIBLINGS or floor(other) == 0
    return floor(other) < floor(part)


@pytest.mark.parametrize(
    ("parts", "path"), [pytest.param(*found, id="/".join(found[0])) for found in modules()]
)
def test_imports_go_down_only(parts, path):
    for other in imported(parts, path):
        assert allowed(parts[0], other), f"{path.relative_to(ROOT)} imports {other}"


@pytest.mark.parametrize(
    ("parts", "source", "found"),
    [
        (("data", "files"), "from ..errors import UserError", ["errors"]),
        (("data", "files"), "def f():\n    from ..models import x", ["models"]),
        (("models", "a"), "import medseg.engine", ["engine"]),
        (("models", "a"), "from medseg import engine", ["engine"]),
        (("kernels", "eca", "op"), "from .._backend import choose", ["kernels"]),
        (("train",), "from . import engine, os", ["engine", "os"]),
        (("layers", "eca"), "import kernels.eca\nimport torch", ["kernels.eca"]),
    ],
)
def test_reader_sees_imports(parts, source, found, tmp_path):
    path = tmp_path / "module.py"
    path.write_text(source)
    assert list(imported(parts, path)) == found


def python(code):
    """What a fresh interpreter prints, started in the root of the checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_import_needs_torch_and_numpy_only():
    """Neither the libraries of the training nor triton, the compiled modules or a GPU."""
    code = (
        "import sys, torch; before = set(sys.modules);"
        "import medseg, medseg.kernels, medseg.layers, medseg.models;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(*(m for m in new if m not in sys.stdlib_module_names));"
        "print(*(m for m in sys.modules if m in ('medseg.kernels._cpu', 'medseg.kernels._cuda')));"
        "print('cuda' if torch.cuda.is_initialized() else '')"
    )
    assert set(python(code)) <= {"medseg", "kernels"}


def test_import_works_without_what_it_does_not_need():
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY.split()!r}));"
        "import torch, medseg;"
        "model = medseg.create_model('dra_net_s', classes=2).eval();"
        "print(*model(torch.zeros(1, 3, 16, 16)).shape)"
    )
    assert python(code) == ["1", "2", "16", "16"]


@pytest.mark.parametrize(
    "order", ["import kernels, medseg.kernels", "import medseg.kernels, kernels"]
)
def test_kernels_is_one_package_under_two_names(order):
    code = (
        f"{order};"
        "from kernels import eca_attention as a; from medseg.kernels import eca_attention as b;"
        "import kernels.triplet.op as c, medseg.kernels.triplet.op as d;"
        "print(a is b, c is d, kernels is medseg.kernels)"
    )
    assert python(code) == ["True"] * 3


def test_version_is_the_one_of_the_project():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
    assert found and found[1] == medseg.__version__
