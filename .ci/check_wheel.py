"""Run by .ci/run from an empty folder: is the installed wheel whole, and does it work?"""

import json
import sys
import zipfile
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import torch

import medseg
from medseg import kernels

names = zipfile.ZipFile(sys.argv[1]).namelist()
parts = {name.split("/")[0] for name in names}
print(f"{Path(sys.argv[1]).name}: {len(names)} files in {sorted(parts)}")
if parts - {"medseg", f"medseg-{medseg.__version__}.dist-info"} or len(names) != len(set(names)):
    sys.exit(f"the wheel installs more than medseg, or a file twice: {sorted(parts)}")
for package in (medseg, kernels):
    print(package.__file__)
    if not Path(package.__file__ or "").is_relative_to(sys.prefix):
        sys.exit(f"{package.__name__} was not imported from the installed wheel")
for stranger in ("kernels", "tests", "bench"):
    if find_spec(stranger):
        sys.exit(f"a top-level package {stranger} can be imported; the wheel must not bring one")
for package, name in (
    ("look", "style.css"),
    ("look", "sort.js"),
    ("look", "base.html.j2"),
    ("look", "parts.html.j2"),
    ("report", "page.html.j2"),
    ("data_check", "page.html.j2"),
    ("serve", "page.html.j2"),
    ("serve", "page.css"),
    ("serve", "page.js"),
):
    if not (files(f"medseg.{package}") / name).is_file():
        sys.exit(f"the wheel lacks medseg/{package}/{name}")

notes = json.loads((files("medseg.kernels") / "_build.json").read_text())
for module in ("_cpu", "_cuda"):
    reason = notes[module]
    print(f"{module}: {reason or 'built'}")
    if reason is None:
        __import__(f"medseg.kernels.{module}")
if notes["_cpu"] is not None:
    sys.exit("the wheel has no compiled CPU kernels")
x, weight = torch.rand(2, 8, 16, 16), torch.rand(3)
gap = kernels.eca_attention(x, weight, backend="cpu") - kernels.eca_reference(x, weight)
print(f"eca_attention, cpu against reference: {gap.abs().max().item():.1e} apart")
out = medseg.create_model("dra_net_s", classes=3).eval()(torch.rand(1, 3, 64, 64))
print(f"dra_net_s: {tuple(out.shape)}")
if gap.abs().max() > 1e-6 or out.shape != (1, 3, 64, 64):
    sys.exit("the installed wheel computes something else than the reference")
