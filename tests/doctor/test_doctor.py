"""The doctor on an environment that is whole, and on ones that are broken on purpose."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from medseg.doctor import machine, ops, packages
from medseg.doctor.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def doctor(*flags, cwd=ROOT, **environment):
    """`medseg doctor --json` in a process of its own: its code and its document."""
    done = subprocess.run(
        [sys.executable, "-m", "medseg", "doctor", "--json", *flags],
        cwd=cwd, capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    return done.returncode, json.loads(done.stdout)


def findings(document, topic):
    return [one for one in document["findings"] if one["topic"] == topic]


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A checkout without compiled modules, on a path with no compiler, with two OpenCV wheels and a
    triton that does not load: what the doctor says of it."""
    home = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    for name in ("kernels", "medseg"):
        shutil.copytree(ROOT / name, home / name, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", home)
    note = "_cpu was not built: no C++ compiler was found (c++, g++ or clang++)"
    (home / "kernels" / "_build.json").write_text(json.dumps({"_cpu": note}))
    site = tmp_path_factory.mktemp("site")
    wheel = site / "opencv_python_headless-4.10.0.84.dist-info"
    wheel.mkdir()
    (wheel / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: opencv-python-headless\nVersion: 4.10.0.84\n"
    )
    (site / "triton.py").write_text("raise ImportError('libtriton.so is not here')\n")
    return doctor(cwd=home, PYTHONPATH=str(site), PATH=str(site), CXX="")


def test_no_compiled_ops_and_no_compiler(broken):
    document = broken[1]
    (found,) = findings(document, "backends")
    assert found["level"] == "warning"
    assert "plain PyTorch does all the work on the CPU" in found["says"]
    assert "no C++ compiler was found" in found["says"]
    assert found["remedy"] == "apt-get install -y g++ && pip install -e ."
    remedies = [one["remedy"] for one in findings(document, "compiler")]
    assert "apt-get install -y g++" in remedies
    eca = {row["backend"]: row for row in document["ops"] if row["op"] == "eca"}
    assert eca["reference"]["taken"] and not eca["cpu"]["taken"]
    assert "was not built" in eca["cpu"]["why_not"]


def test_compiled_ops_of_older_sources(monkeypatch):
    reason = "_cpu is older than its sources in csrc/; pip install -e . builds it anew"
    monkeypatch.setattr("medseg.kernels._backend.compiled", lambda name: (None, reason))
    rows = [ops.Row("eca", "cpu", "cpu", why_not=reason), ops.Row("eca", "cpu", "reference", True)]
    (found,) = ops.check_built(rows)
    assert found.says == f"plain PyTorch does all the work on the CPU: {reason}"
    assert (found.level, found.remedy) == ("warning", "pip install -e .")


def test_two_opencv_wheels(broken):
    code, document = broken
    (found,) = findings(document, "opencv")
    assert code == 3 and not document["healthy"]
    assert "opencv-python and opencv-python-headless are installed" in found["says"]
    assert found["remedy"].startswith("pip uninstall -y opencv-python opencv-python-headless && ")


def test_triton_that_does_not_load(broken):
    (found,) = findings(broken[1], "triton")
    assert "libtriton.so is not here" in found["says"]
    assert found["remedy"].startswith("pip install") and "triton" in found["remedy"]


def test_missing_and_outdated_packages(monkeypatch):
    from packaging.requirements import Requirement

    needed = [Requirement("triton>=3.5,<3.8"), Requirement("numpy>=99"), Requirement("rich")]
    real = packages._version
    monkeypatch.setattr(packages, "_version", lambda n: None if n == "triton" else real(n))
    missing, old = packages.check_packages(needed)
    assert missing.says == "triton is not installed"
    assert missing.remedy == "pip install 'triton<3.8,>=3.5'"
    assert (old.level, old.topic, old.remedy) == ("warning", "numpy", "pip install 'numpy>=99'")


def test_missing_libgl(tmp_path, monkeypatch):
    text = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2.py").write_text(f"raise ImportError({text!r})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    reasons = packages.load({"opencv-python": "cv2", "rich": "rich"})
    assert list(reasons) == ["opencv-python"]
    found = packages._does_not_load("opencv-python", reasons["opencv-python"])
    assert (found.level, found.remedy) == ("error", "apt-get install -y libgl1 libglib2.0-0")


def test_package_whose_loading_kills_the_process(tmp_path, monkeypatch):
    (tmp_path / "bomb.py").write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    reasons = packages.load({"rich": "rich", "bomb": "bomb", "jinja2": "jinja2"})
    assert reasons == {"bomb": "the process that loads it dies of signal 11"}


def test_compiler_that_is_there_and_broken(tmp_path, monkeypatch):
    fake = tmp_path / "c++"
    fake.write_text("#!/bin/sh\necho \"c++: fatal error: no 'cc1plus'\" >&2; exit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = machine.check_compilers()[0]
    assert found.level == "warning"
    assert found.says == f"C++: {fake} does not compile: c++: fatal error: no 'cc1plus'"
    assert found.remedy == "apt-get install -y --reinstall g++"
    monkeypatch.setenv("CXX", f"{fake} -m64")
    assert machine.check_compilers()[0].remedy == "unset CXX"


@pytest.fixture
def free(monkeypatch):
    """Sets how many bytes every disk has left."""

    def call(count):
        usage = SimpleNamespace(total=count, used=0, free=count)
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)

    return call


def test_small_shared_memory(free, tmp_path):
    free(64 << 20)  # what docker gives
    assert machine.check_shm(4, 8, 128, tmp_path).level == "fine"
    found = machine.check_shm(8, 32, 256, tmp_path)
    assert found.level == "warning"
    assert "has 64 MB free; --workers 8 --batch 32 --size 256 can fill 680 MB" in found.says
    assert "2048" in (found.remedy or "")
    assert machine.check_shm(0, 32, 256, tmp_path).level == "fine"


def test_really_small_shared_memory():
    mount = "mount -t tmpfs -o size=4m tmpfs /dev/shm"
    new = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*new, mount]).returncode:
        pytest.skip("no mount namespace can be made here")
    code = (
        "from medseg.doctor.machine import check_shm; f = check_shm(2, 8, 128);"
        "print(f.level, f.says, f.remedy, sep='|')"
    )
    done = subprocess.run(
        [*new, f"{mount} && exec {sys.executable} -c \"{code}\""],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("warning|/dev/shm has 4 MB free")
    assert "size=64" in done.stdout


def test_full_disk_and_foreign_folder(free, tmp_path, monkeypatch):
    assert machine.check_disk(tmp_path / "a" / "b", "dra_net_s").level == "fine"
    free(100 << 20)
    found = machine.check_disk(tmp_path / "a", "dra_net_s")
    assert found.level == "error" and "--out DIR" in (found.remedy or "")
    assert str(tmp_path) in found.says
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert "cannot be written" in machine.check_disk(tmp_path, "dra_net_s").says


def test_more_threads_than_cores():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = machine.check_threads(allowed=2)
    finally:
        torch.set_num_threads(before)
    assert (found.level, found.remedy) == ("warning", "export OMP_NUM_THREADS=2")


def test_container_with_fewer_cores(tmp_path, monkeypatch):
    quota = tmp_path / "cpu.max"
    quota.write_text("100000 100000\n")
    monkeypatch.setattr(machine, "_CGROUP", quota)
    assert machine.cores() == 1
    quota.write_text("max 100000\n")
    assert machine.cores() == len(os.sched_getaffinity(0))


def test_huge_pages_off(monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    found = machine.check_huge_pages()
    assert (found.level, found.remedy) == ("note", "export THP_MEM_ALLOC_ENABLE=1")


def test_wrong_numbers_of_an_op_are_seen(monkeypatch):
    from medseg.doctor import trial

    def wrong(x, taps, backend):
        out = eca(x, taps, backend)
        return out if backend == "reference" else out * 1.001

    eca, shapes = trial.CASES["eca"]
    assert trial.trial("eca", "reference", "cpu")["fine"]
    monkeypatch.setitem(trial.CASES, "eca", (wrong, shapes))
    row = ops.Row("eca", "cpu", "cpu", trial=trial.trial("eca", "cpu", "cpu"))
    (found,) = ops._judge(row)
    assert found.level == "error" and "eca on cpu (cpu) is wrong: it is 1.0e-03 off" in found.says
    monkeypatch.setitem(trial.CASES, "eca", (lambda x, w, backend: x * w[0] * float("nan"), shapes))
    assert trial.trial("eca", "reference", "cpu")["error"] is None


def test_op_that_kills_its_process_is_named_and_the_rest_run():
    code = (
        "import json, os, sys\n"
        "for each in json.loads(sys.argv[1]):\n"
        "    print(json.dumps({'begins': each}), flush=True)\n"
        "    if each[0] == 'mde': os.kill(os.getpid(), 4)\n"
        "    print(json.dumps({'op': each[0], 'fine': True}), flush=True)\n"
    )
    rows = [ops.Row(op, "cpu", "cpu") for op in ("eca", "mde", "gate")]
    (found,) = ops.run_all(rows, [sys.executable, "-c", code])
    assert found.says == "mde on cpu (cpu) does not run: the process died of signal 4"
    assert [row.trial and row.trial["fine"] for row in rows] == [True, False, True]


def test_backend_of_the_environment_that_cannot_run(monkeypatch):
    import torch

    from medseg.kernels import use_backend

    if torch.cuda.is_available():
        pytest.skip("triton can run on the GPU here")
    monkeypatch.setenv("MEDSEG_BACKEND", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with use_backend("triton"):  # what the variable does at import
        rows, found = ops.survey()
    assert not any(row.taken for row in rows)
    assert {one.remedy for one in found} == {"unset MEDSEG_BACKEND"}
    assert "MEDSEG_BACKEND=triton: backend 'triton' cannot run eca" in found[0].says


def test_this_machine_on_the_terminal(capsys):
    code = main(["--workers", "1"])
    said = capsys.readouterr().out
    assert code in (0, 3)
    for words in ("torch 2.", "Ops", "eca", "position", "not taken: ", "Findings", "/dev/shm"):
        assert words in said


def test_wrong_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--worker", "many"])
    assert stop.value.code == 2
    assert "--worker" in capsys.readouterr().err
