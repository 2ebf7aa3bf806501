"""Weight files: everything fits, or one sentence says what does not and nothing is loaded."""

import copy
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medseg import create_model
from medseg.errors import UserError
from medseg.models import load_weights
from medseg.models.checkpoint import read_state


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("dra_net", classes=3, width=4)


def refused(model, path, *parts, **options):
    """Loading must fail in one sentence that holds the file's name and ``parts``."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError) as caught:
        load_weights(model, path, **options)
    message = str(caught.value)
    assert caught.value.code == 2
    assert "\n" not in message
    for part in (path.name, *parts):
        assert part in message, message
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def other(**options):
    torch.manual_seed(1)
    return create_model("dra_net", **{"classes": 3, "width": 4, **options}).state_dict()


@pytest.mark.parametrize("wrap", ["state_dict", "model", "module.", "module._orig_mod."])
def test_unwraps(model, tmp_path, wrap):
    state = other()
    held = {wrap + k: v for k, v in state.items()} if wrap[-1] == "." else {wrap: state}
    torch.save(held, tmp_path / "run.pth")
    target = copy.deepcopy(model)
    load_weights(target, tmp_path / "run.pth")
    assert all(torch.equal(value, state[key]) for key, value in target.state_dict().items())


def test_half_file_fills_float_model(model, tmp_path):
    state = {k: v.half() if v.is_floating_point() else v for k, v in other().items()}
    save_file(state, tmp_path / "half.safetensors")
    target = copy.deepcopy(model)
    load_weights(target, tmp_path / "half.safetensors")
    assert target.head.weight.dtype is torch.float32
    assert torch.equal(target.head.weight, state["head.weight"].float())


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"classes": 7}, ["was made with classes=7, the model with classes=3; reset_head=True"]),
        ({"in_channels": 1}, ["in_channels=1", "in_channels=3"]),
        ({"width": 8, "classes": 2}, ["classes=2, width=8", "classes=3, width=4"]),
        ({"top_attention": True}, ["has dec1.attn.gate_c.bn.bias, ", "and 14 more, which"]),
        ({"eca_shared": False}, ["lacks eca.conv.weight, eca.conv.bias and has eca.0.conv."]),
        ({"eca_kernel": 5}, ["eca.conv.weight is (1, 1, 5), the model wants (1, 1, 3)"]),
    ],
)
def test_file_of_another_model(model, tmp_path, options, parts):
    save_file(other(**options), tmp_path / "other.safetensors")
    refused(model, tmp_path / "other.safetensors", *parts)


def test_file_of_another_network(model, tmp_path):
    torch.save(torch.nn.Conv2d(3, 4, 3).state_dict(), tmp_path / "conv.pth")
    refused(model, tmp_path / "conv.pth", "of another network", "bias, weight")


def test_unknown_entry_of_the_authors_is_named(model, tmp_path):
    state = {"ecaa1.conv.weight": torch.ones(1, 1, 3), "up6.tranconv.0.weight": torch.ones(1)}
    state |= {"tr6.Odd.spatial.conv.weight": torch.ones(1), "tr9.x": torch.ones(1)}
    torch.save(state, tmp_path / "original.pth")
    refused(model, tmp_path / "original.pth", "dec4.attn.Odd.conv.weight", "tr9.x")


def test_wrong_kind_of_number(model, tmp_path):
    state = other()
    state["head.bias"] = state["head.bias"].long()
    save_file(state, tmp_path / "long.safetensors")
    refused(model, tmp_path / "long.safetensors", "head.bias is torch.int64")


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated(model, tmp_path, kind, share):
    path = tmp_path / f"cut.{kind}"
    save_file(other(), path) if kind == "safetensors" else torch.save(other(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(model, path, "damaged")


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (self.folder.joinpath("harm").touch, ())


def test_no_code_is_run(model, tmp_path):
    harm = {"head.weight": Harm(tmp_path)}
    (tmp_path / "harm.pth").write_bytes(pickle.dumps(harm, protocol=2))
    refused(model, tmp_path / "harm.pth", "damaged or hostile")
    torch.save(harm, tmp_path / "harm.pth")
    refused(model, tmp_path / "harm.pth", "damaged or hostile")
    assert not (tmp_path / "harm").exists()


class Gone(torch.nn.Module):
    """A class of the authors; the reader does not have it."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
        self.gain = torch.nn.Parameter(torch.rand(2))
        self.register_buffer("steps", torch.ones(1))
        self.register_buffer("scratch", torch.ones(1), persistent=False)


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """The path of a pickled module whose class cannot be imported any more, and its weights."""

    def save(held, **options):
        state = held.state_dict() if isinstance(held, torch.nn.Module) else None
        torch.save(held, tmp_path / "whole.pth", **options)
        monkeypatch.setattr(Gone, "__setstate__", pytest.fail, raising=False)
        return tmp_path / "whole.pth", state

    return save


@pytest.mark.parametrize("wrap", [None, torch.nn.DataParallel])
def test_whole_model(model, whole, wrap):
    held = wrap(Gone()) if wrap else Gone()
    path, state = whole(held)
    refused(model, path, "whole pickled model, which can carry code", "unsafe=True")
    found = read_state(path, unsafe=True)
    assert sorted(found) == sorted(key.removeprefix("module.") for key in state)
    for key, value in state.items():
        assert torch.equal(found[key.removeprefix("module.")], value)


def test_whole_model_loads(model, tmp_path):
    other_model = create_model("dra_net", classes=3, width=4)
    torch.save(other_model, tmp_path / "epoch_last.pth")
    refused(model, tmp_path / "epoch_last.pth", "whole pickled model")
    target = create_model(
        "dra_net", classes=3, width=4, weights=tmp_path / "epoch_last.pth", unsafe=True
    )
    state = other_model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in target.state_dict().items())


def test_whole_model_of_old_pytorch(model, whole):
    path, _ = whole(Gone(), _use_new_zipfile_serialization=False)
    for unsafe in (False, True):
        refused(model, path, "before 1.6", "save its state_dict()", unsafe=unsafe)


def test_no_code_is_run_in_a_whole_model(model, whole, tmp_path):
    held = Gone()
    held.__dict__["harm"] = Harm(tmp_path)
    for unsafe in (False, True):
        path, _ = whole(held)
        refused(model, path, unsafe=unsafe)
        assert not (tmp_path / "harm").exists()


class Log:
    """As mmengine's history buffer."""

    def __init__(self, values, method):
        self.values, self.method = values, method

    def mean(self):
        return self.values.mean()


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_objects_beside_the_weights(model, tmp_path, zipped):
    """As mmengine stores its logs; they are neither needed nor brought to life."""
    state, path = other(), tmp_path / "iter.pth"
    log = Log(np.arange(3.0), Log.mean)
    held = {"meta": {"log": log, "score": np.float64(3)}, "state_dict": state}
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    target = copy.deepcopy(model)
    load_weights(target, path)
    assert all(torch.equal(value, state[key]) for key, value in target.state_dict().items())


def test_counters_may_be_missing(model, tmp_path):
    state = {k: v for k, v in other().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    load_weights(copy.deepcopy(model), tmp_path / "old.pth")
    torch.save({"a": torch.ones(1)}, tmp_path / "none.pth")
    refused(model, tmp_path / "none.pth", "of another network")


@pytest.mark.parametrize("classes", [1, 7])
def test_reset_head(model, tmp_path, classes):
    state, path = other(classes=classes), tmp_path / "other.pth"
    torch.save(state, path)
    with pytest.warns(UserWarning, match=r"other\.pth: head\.weight, head\.bias start anew"):
        target = create_model("dra_net", classes=3, width=4, weights=path, reset_head=True)
    for key, value in target.state_dict().items():
        assert key.startswith("head.") or torch.equal(value, state[key]), key
    before = model.head.weight.clone()
    target = copy.deepcopy(model)
    assert load_weights(target, path, reset_head=True) == ["head.weight", "head.bias"]
    assert torch.equal(target.head.weight, before)


def test_reset_head_is_for_the_head_alone(model, tmp_path):
    save_file(other(classes=7, width=8), tmp_path / "wide.safetensors")
    refused(model, tmp_path / "wide.safetensors", "width=8", reset_head=True)
    state = other(classes=7)
    state["dec1.dconv.bn2.bias"] = torch.ones(5)
    save_file(state, tmp_path / "odd.safetensors")
    refused(model, tmp_path / "odd.safetensors", "dec1.dconv.bn2.bias is (5,)", reset_head=True)


@pytest.mark.parametrize(
    "spoil", [torch.Tensor.to_sparse, lambda t: t.to("meta"), lambda t: t + 1j, torch.Tensor.sum]
)
def test_odd_tensors(model, tmp_path, spoil):
    state = other()
    state["enc5.proj.weight"] = spoil(state["enc5.proj.weight"])
    torch.save(state, tmp_path / "odd.pth")
    refused(model, tmp_path / "odd.pth")


@pytest.mark.parametrize("held", [3, {}, {"epoch": 3}, {"state_dict": {"a": 1}}])
def test_no_state_dict(model, tmp_path, held):
    torch.save(held, tmp_path / "odd.pth")
    refused(model, tmp_path / "odd.pth", "holds no state dict of tensors")


def test_missing_and_misnamed(model, tmp_path):
    refused(model, tmp_path / "none.pth", "there is no such file")
    (tmp_path / "notes.txt").write_text("x")
    refused(model, tmp_path / "notes.txt", ".pt, .ckpt, .h5 or .hdf5, got '.txt'")
