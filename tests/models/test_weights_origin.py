"""Where a file comes from: which network made it, with which head, and how it was wrapped."""

import warnings
from typing import Any

import pytest
import torch

from medseg import create_model
from medseg.errors import UserError
from medseg.models import load_weights

SMALL = {
    "dra_net": {"width": 4, "deep_supervision": True},
    "dpsau2_net": {"width": 4, "depth": 3},
    "drrmsan": {"width": 4},
    "e_du": {"width": 8, "depth": 2, "deep_supervision": True},
    "hpddrnet": {"width": 4},
}


def small(name, classes=3, **options):
    return create_model(name, classes=classes, **{**SMALL[name], **options})


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("classes", [1, 4])
def test_every_network_names_its_head(tmp_path, name, classes):
    """Two or three of the entries that differ decide nothing: all but the head comes over."""
    state = small(name, classes).state_dict()
    torch.save(state, tmp_path / "other.pth")
    model = small(name)
    with pytest.raises(UserError, match="reset_head=True"):
        load_weights(model, tmp_path / "other.pth")
    anew = load_weights(model, tmp_path / "other.pth", reset_head=True)
    own = model.state_dict()
    sized = {key for key, value in own.items() if value.shape != state[key].shape}
    assert sized <= set(anew) and all(key.startswith(model.per_class) for key in anew)
    assert all(torch.equal(own[key], state[key]) for key in own if key not in anew)


@pytest.mark.parametrize("classes", [1, 2, 64])
def test_adaptive_eca_of_the_logits_is_of_the_head(tmp_path, classes):
    options = {"eca_shared": False, "eca_kernel": "adaptive"}
    torch.save(small("dra_net", classes, **options).state_dict(), tmp_path / "other.pth")
    anew = load_weights(small("dra_net", **options), tmp_path / "other.pth", reset_head=True)
    assert {"eca.5.conv.weight", "eca.5.conv.bias"} < set(anew)


@pytest.mark.parametrize("name", SMALL)
def test_head_of_the_same_classes_is_kept(tmp_path, name):
    torch.save(small(name).state_dict(), tmp_path / "same.pth")
    assert load_weights(small(name), tmp_path / "same.pth", reset_head=True) == []


@pytest.mark.parametrize("name", SMALL)
def test_missing_head(tmp_path, name):
    model = small(name)
    gone = (*model.per_class, *model.beyond_backbone)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(gone)}
    torch.save(state, tmp_path / "backbone.pth")
    with pytest.raises(UserError, match=r"lacks .*; reset_head=True .* starts these anew"):
        load_weights(model, tmp_path / "backbone.pth")
    anew = load_weights(model, tmp_path / "backbone.pth", reset_head=True)
    assert set(anew) == model.state_dict().keys() - state.keys()
    least = dict(list(state.items())[1:])
    torch.save(least, tmp_path / "less.pth")
    with pytest.raises(UserError, match="lacks "):
        load_weights(model, tmp_path / "less.pth", reset_head=True)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("other", SMALL)
@pytest.mark.parametrize("reset_head", [False, True])
def test_the_network_that_fits_is_named(tmp_path, name, other, reset_head):
    torch.save(small(other).state_dict(), tmp_path / "other.pth")
    if name == other:
        return
    with pytest.raises(UserError, match=f"other.pth: is of another network, .* are of {other}$"):
        load_weights(small(name), tmp_path / "other.pth", reset_head=reset_head)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("dra_net", ["ecaa1.conv.weight", "up6.tranconv.0.weight"]),
        ("dpsau2_net", ["spl1.block.3.fc1.weight"]),
        ("hpddrnet", ["backbone.context_branch_layers.0.0.conv1.conv.weight"]),
    ],
)
def test_authors_of_another_network(tmp_path, name, keys):
    torch.save(dict.fromkeys([*keys, "head.bias"], torch.ones(1)), tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"of another network, its entries are of {name}$"):
        load_weights(small("e_du"), tmp_path / "other.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_state_dict": state, "epoch": 3},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"state_dict": {"model": {"model_state_dict": state}}},
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".PTH", ".Pt"])
def test_wrapped(tmp_path, wrap, suffix):
    state = small("e_du").state_dict()
    torch.save(wrap(state), tmp_path / f"run{suffix}")
    model = small("e_du")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_weights(model, tmp_path / f"run{suffix}")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_dicts_that_hold_themselves(tmp_path):
    held: dict[str, Any] = {"epoch": 1}
    held["model"] = held
    torch.save(held, tmp_path / "round.pth")
    with pytest.raises(UserError, match="holds no state dict of tensors"):
        load_weights(small("e_du"), tmp_path / "round.pth")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(
        UserError, match=r"holds a TorchScript program; torch\.jit\.load it and save"
    ):
        load_weights(small("e_du"), tmp_path / "script.pt")
