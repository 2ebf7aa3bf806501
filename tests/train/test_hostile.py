"""Configs and checkpoints of strangers, and accidents on the way: a sentence, and no code run."""

import copy
import os
import signal
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medseg.config import TrainConfig, parse_flags
from medseg.console import Journal
from medseg.data import SegmentationSet
from medseg.engine import Engine, accidents, load_state, save_state
from medseg.errors import UserError
from medseg.inference import load_trained
from medseg.prepare import prepare
from medseg.runs import read_checkpoint

from .conftest import SHORT, numbers_of

FEW = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
YAML = [
    "!!python/object/apply:os.system ['touch owned']\n",
    "data: !!python/object/apply:os.system ['touch owned']\n",
    BOMB + "data: *a8\n",
    "data: " + "[" * 3000 + "]" * 3000 + "\n",
    "data: &x [*x]\n",
    "epochs: " + "9" * 6000 + "\n",
    "lr: .nan\n",
    "lr: 1e999\n",
    "size: 2001-12-14\n",
    "? [a, b]\n: c\n",
    "epochs: true\n",
    "batch: null\n",
    "patches: [1]\n",
    "model_options: 5\n",
    "model_options: {width: -3}\n",
    "name: ../../x\n",
    "data: 'a\\0b'\n",
    "\ufeffepochs: 2\n",
    "--- 1\n--- 2\n",
    "config: other.yaml\n",
]


def parsed_or_refused(path):
    try:
        parse_flags(["--config", str(path)])
    except UserError as error:
        assert error.code == 2 and "\n" not in str(error) and len(str(error)) < 1000


@pytest.mark.parametrize("text", YAML, ids=range(len(YAML)))
def test_hostile_configs(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    parsed_or_refused(tmp_path / "c.yaml")
    assert not (tmp_path / "owned").exists()


@FEW
@given(
    st.one_of(
        st.binary(max_size=80),
        st.dictionaries(
            st.sampled_from(list(TrainConfig.__dataclass_fields__)),
            st.one_of(
                st.text(max_size=8),
                st.integers(),
                st.sampled_from(["null", ".inf", "[]", "{}", "~", "0x10", "1_000", "yes", "-0.0"]),
            ),
            max_size=3,
        ).map(lambda found: "".join(f"{k}: {v}\n" for k, v in found.items()).encode("utf-8")),
    )
)
def test_any_config_is_parsed_or_refused(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    parsed_or_refused(tmp_path / "c.yaml")


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch owned",)


def write_state(path, change):
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def run_with(finished, tmp_path, damage):
    """A run folder whose last.ckpt is spoilt."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "metrics.csv"):
        (folder / name).write_bytes((finished / name).read_bytes())
    path = folder / "last.ckpt"
    path.write_bytes((finished / "last.ckpt").read_bytes())
    damage(path)
    return folder


def _zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\0" * (64 << 20))
        file.writestr("archive/version", b"3")


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "code": lambda path: torch.save({"epoch": 1, "model": Code()}, path),
    "list": lambda path: torch.save([1, 2], path),
    "tensor": lambda path: torch.save(torch.zeros(3), path),
    "zip bomb": _zip_bomb,
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_checkpoints(finished, tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    folder = run_with(finished, tmp_path, damage)
    with pytest.raises(UserError, match="cannot be read as a training state") as caught:
        read_checkpoint(folder)
    assert caught.value.code == 3 and "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # nobody is told how to let code run
    assert not (tmp_path / "owned").exists()


@pytest.fixture(scope="module")
def engine(smear, tmp_path_factory):
    """An engine to put states into, and its own."""
    out = tmp_path_factory.mktemp("state")
    config = parse_flags(["--data", str(smear), "--out", str(out), *SHORT])
    job = prepare(config, Journal(quiet=True))
    return Engine(job.config, job.table, job.fabric, job.network)


def _set(*keys):
    *path, last, value = keys

    def change(state):
        for key in path:
            state = state[key]
        state[last] = value

    return change


def _without(key):
    return lambda state: state.pop(key)


def _lame_optimizer(state):
    for found in state["optimizer"]["state"].values():
        found["exp_avg"] = torch.zeros(1, 2, 3)


STATES = {
    **{f"no {key}": _without(key) for key in
       ("step", "steps", "losses", "best", "best_weights", "history", "model", "optimizer")},
    "negative": _set("epoch", -5),
    "text": _set("step", "7"),
    "far": _set("step", 10**9),
    "losses": _set("losses", ["x"]),
    "history": _set("history", [{"epoch": 1}]),
    "history of text": _set("history", ["x"]),
    "model": _set("model", {}),
    "model of text": _set("model", {"a": "b"}),
    "optimizer": _set("optimizer", {"state": {}, "param_groups": []}),
    "optimizer of text": _set("optimizer", "param_groups", "x"),
    "moments": _lame_optimizer,
    "best": _set("best_weights", {"a": torch.zeros(1)}),
    "best of text": _set("best_weights", {"a": "b"}),
    "best is": _set("best", "high"),
}  # fmt: skip


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_states_of_another_kind(engine, finished, change):
    good = read_checkpoint(finished)
    assert good is not None
    load_state(engine, copy.deepcopy(good))
    bad = copy.deepcopy(good)
    change(bad)
    before = save_state(engine)["epoch"]
    with pytest.raises(UserError) as caught:
        load_state(engine, bad)
    assert "\n" not in str(caught.value) and engine.epoch == before


@FEW
@given(
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=9),
)
def test_damaged_weights_are_opened_or_refused(finished, tmp_path, cut, flips):
    """Damage in the header, which is what a reader trusts."""
    content = bytearray((finished / "best.safetensors").read_bytes())
    for place, value in flips:
        content[place] = value
    path = tmp_path / "w.safetensors"
    path.write_bytes(content[: int(len(content) * min(1.0, 2 * cut))])
    try:
        load_trained(path, fold=False)
    except UserError as error:
        assert error.code in (2, 3) and str(path) in str(error)


@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.empty(1 << 50, dtype=torch.uint8), lambda: np.empty(1 << 55, np.uint8)],
    ids=["torch", "numpy"],
)
def test_full_memory_names_the_flags(allocate):
    words = "--batch 4, --size 96: they do not fit into the memory of this machine; make one small"
    with pytest.raises(UserError, match=words) as caught, accidents(TrainConfig(batch=4, size=96)):
        allocate()
    assert caught.value.code == 3


def test_a_killed_worker_leaves_a_whole_checkpoint(train, finished, monkeypatch):
    """SIGKILL in epoch 2, as the kernel does where memory is full; the run then goes on."""
    real, seen = SegmentationSet.__getitem__, []

    def deadly(self, index):
        seen.append(index)
        if torch.utils.data.get_worker_info() is not None and len(seen) > 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationSet, "__getitem__", deadly)
        run = train("--workers", 1)
    assert run.code == 3
    assert "--workers 1: a process that reads images " in run.err
    assert "killed by signal: Killed" in run.err or "exited unexpectedly" in run.err
    assert "take fewer, 0 reads them in the run itself" in run.err
    state = read_checkpoint(run.folders[0])
    assert state is not None and state["epoch"] == 1
    again = train("--resume", run.folders[0], "--workers", 0, short=False)
    assert again.code == 0
    assert numbers_of(run.folders[0]) == numbers_of(finished)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_goes_away_is_named(train, smear, tmp_path, monkeypatch, workers):
    import shutil

    folder, real = tmp_path / "set", Engine.train_epoch
    shutil.copytree(smear, folder)

    def train_epoch(engine, tick):
        engine.train_set.samples[0].image.unlink(missing_ok=True)
        return real(engine, tick)

    monkeypatch.setattr(Engine, "train_epoch", train_epoch)
    run = train("--cache", 0, "--workers", workers, data=folder)
    assert run.code == 3
    assert run.err.startswith(f"error: {folder}") and "cannot be read as an image" in run.err
    assert len(run.err.strip().splitlines()) == 1 and "Traceback" not in run.err


def test_a_disk_that_fills_leaves_the_last_checkpoint(train, monkeypatch):
    real, saved = torch.save, []

    def save(state, file):
        saved.append(state["epoch"])
        if len(saved) == 2:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        return real(state, file)

    monkeypatch.setattr(torch, "save", save)
    run = train()
    assert run.code == 3
    assert "last.ckpt cannot be written (No space left on device): make room there" in run.err
    state = read_checkpoint(run.folders[0])
    assert state is not None and state["epoch"] == 1
    assert not [path for path in run.folders[0].iterdir() if path.name.startswith(".")]
