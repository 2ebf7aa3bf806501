"""Weight files: everything fits, or one sentence says what does not and nothing is loaded."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import save_file

from medseg import create_model
from medseg.errors import UserError
from medseg.models import load_weights


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("dra_net", classes=3, width=4)


def refused(model, path, *parts):
    """Loading must fail in one sentence that holds the file's name and ``parts``."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError) as caught:
        load_weights(model, path)
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


@pytest.mark.parametrize("wrap", ["state_dict", "model", "module."])
def test_unwraps(model, tmp_path, wrap):
    state = other()
    held = {f"module.{k}": v for k, v in state.items()} if wrap[-1] == "." else {wrap: state}
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
        ({"classes": 7}, ["was made with classes=7, the model with classes=3"]),
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


def test_no_code_is_run(model, tmp_path):
    class Harm:
        def __reduce__(self):
            return (tmp_path.joinpath("harm").touch, ())

    (tmp_path / "harm.pth").write_bytes(pickle.dumps({"head.weight": Harm()}, protocol=2))
    refused(model, tmp_path / "harm.pth", "holds more than tensors")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("held", [3, {}, {"epoch": 3}, {"state_dict": {"a": 1}}])
def test_no_state_dict(model, tmp_path, held):
    torch.save(held, tmp_path / "odd.pth")
    refused(model, tmp_path / "odd.pth", "holds no state dict of tensors")


def test_missing_and_misnamed(model, tmp_path):
    refused(model, tmp_path / "none.pth", "there is no such file")
    (tmp_path / "notes.txt").write_text("x")
    refused(model, tmp_path / "notes.txt", "must end in .safetensors, .pth or .pt, got '.txt'")
