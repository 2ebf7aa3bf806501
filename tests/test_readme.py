"""What the README promises is there: its Python runs, its tables name what exists."""

import re
import subprocess
import sys
from pathlib import Path

from medseg import list_models
from medseg.kernels import backend_report

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_stand_there():
    assert "pip install -e . && python -m medseg.train\n" in TEXT
    assert "pip install -e '.[test]' && pytest\n" in TEXT


def test_the_python_runs_as_it_stands():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 20
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "torch.Size([2, 64, 128, 128])" in done.stdout


FUNCTIONS = {"gate": "attention_gate", "mde": "mde_filter"}  # the others end in _attention


def test_every_operator_and_backend_is_in_the_table():
    for op, backends in backend_report().items():
        assert f"| `{FUNCTIONS.get(op, f'{op}_attention')}` |" in TEXT
        for backend in backends:
            assert f"| `{backend}` " in TEXT


def test_every_model_is_in_the_table():
    for name in list_models():
        assert f"| `{name}` |" in TEXT


def test_named_files_exist():
    for name in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (ROOT / name).exists(), f"README.md links to {name}"


def test_flags_exist():
    from medseg.config import parse_flags

    for words in re.findall(r"python -m medseg\.train ([^`\n]+)", TEXT):
        if "--help" not in words:
            parse_flags(words.split())
