"""What the commands settle before PyTorch is loaded."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux settings")
SETTLED = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE")
LOAD = "from medseg.startup import settle; settle(); import torch"


def display(*words, **environment):
    """What the OpenMP runtime says of its settings when it is loaded."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTLED}
    environment = kept | {"OMP_DISPLAY_ENV": "verbose"} | environment
    command = [sys.executable, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if "OPENMP DISPLAY ENVIRONMENT" in done.stderr and "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("the OpenMP runtime of this PyTorch is not libgomp")
    return done.stderr


@pytest.mark.parametrize("words", [("-m", "medseg", "train"), ("-m", "medseg.train")])
def test_commands_shorten_the_waits(words):
    assert "GOMP_SPINCOUNT = '10000'" in display(*words, "--data", "/nowhere")


def test_what_the_caller_set_is_kept():
    assert "GOMP_SPINCOUNT = '77'" in display("-c", LOAD, GOMP_SPINCOUNT="77")
    assert "GOMP_SPINCOUNT = '0'" in display("-c", LOAD, OMP_WAIT_POLICY="passive")


def test_importing_the_library_settles_nothing():
    code = "import os, medseg; medseg.list_models(); print(os.environ.get('GOMP_SPINCOUNT'))"
    kept = {name: value for name, value in os.environ.items() if name not in SETTLED}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "None", done.stderr


def test_the_package_loads_pytorch_when_it_is_needed():
    code = (
        "import sys, medseg\n"
        "assert 'torch' not in sys.modules and 'models' in dir(medseg)\n"
        "assert medseg.create_model is medseg.models.create_model\n"
        "assert 'torch' in sys.modules and not hasattr(medseg, 'nonsense')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
