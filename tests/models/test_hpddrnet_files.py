"""Files of HPDDRNet's authors: every entry is used, dropped for a reason, or named."""

import copy
import warnings
from typing import Any

import pytest
import torch

from medseg import create_model
from medseg.errors import UserError
from medseg.models import load_weights
from medseg.models.hpddrnet import MEAN, STD, clean_name
from tests import golden

pytestmark = golden.needs_golden


@pytest.fixture(scope="module")
def published():
    return create_model("hpddrnet", classes=3, image_norm="imagenet")


def authors():
    return dict(golden.original_state("hpddrnet", 0, 0.0))


def test_file_of_the_authors(tmp_path):
    """Every entry is used but those that never run; the surroundings of mmsegmentation go."""
    state = authors()
    extra = {
        "data_preprocessor.mean": torch.tensor(MEAN).view(3, 1, 1),
        "data_preprocessor.std": torch.tensor(STD).view(3, 1, 1),
        "auxiliary_head.conv_seg.weight": torch.ones(3, 1, 1, 1),
    }
    held = {"meta": {"iter": 120000}, "state_dict": state | extra, "optimizer": {}}
    torch.save(held, tmp_path / "iter_120000.pth")
    model = create_model(
        "hpddrnet", classes=3, weights=tmp_path / "iter_120000.pth", image_norm="imagenet"
    )
    own = model.state_dict()
    used = {clean_name(k): v for k, v in state.items() if clean_name(k) in own}
    left = [key for key in state if clean_name(key) not in own]
    assert used.keys() == own.keys() and len(left) == 11
    assert all(key.startswith(("backbone.ecas.2.", "backbone.sps.2.")) for key in left)
    assert all(torch.equal(own[key], value) for key, value in used.items())


def test_file_of_the_authors_for_inference_only():
    state = authors()
    options: dict[str, Any] = {"deep_supervision": False, "image_norm": "imagenet"}
    model = create_model("hpddrnet", classes=3, **options)
    assert model.translate(state).keys() == model.state_dict().keys()


def test_file_without_prefixes(tmp_path):
    """DDRNet's ImageNet weights are the backbone alone."""
    state = {k[9:]: v for k, v in authors().items() if k.startswith("backbone.")}
    state = {k: v for k, v in state.items() if k[:5] not in ("ecas.", "sps.0", "sps.1", "sps.2")}
    torch.save(state, tmp_path / "in1k.pth")
    model = create_model("hpddrnet", classes=3, image_norm="imagenet")
    with pytest.raises(UserError, match=r"lacks eca\..*; reset_head=True .* starts these anew"):
        load_weights(model, tmp_path / "in1k.pth")
    anew = load_weights(model, tmp_path / "in1k.pth", reset_head=True)
    assert {key.partition(".")[0] for key in anew} == {"head", "aux", "eca", "pa"}
    own = model.state_dict()
    assert own.keys() - anew == {clean_name(key) for key in state}
    assert all(torch.equal(own[clean_name(key)], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"data_preprocessor.mean": torch.zeros(3, 1, 1)}, "image_norm knows only ImageNet's"),
        ({"img_norm.std": torch.ones(3)}, r"odd.pth: img_norm.std is \[1.0, 1.0, 1.0\]"),
        ({"img_norm_cfg.mean": torch.zeros(3)}, "img_norm_cfg.mean is"),
        ({"data_preprocessor.gain": torch.zeros(3)}, "has data_preprocessor.gain, which"),
        ({"stem.0.bn.bias": torch.ones(1)}, "stem.0.bn.bias are two names of stem.conv1.bn"),
        ({"backbone.odd.weight": torch.ones(1)}, "has odd.weight, which the model does not"),
        ({"backbone.sps.3.cnn.bias": torch.ones(1)}, "has sps.3.cnn.bias, which"),
    ],
)
def test_surprises_are_named(published, tmp_path, extra, words):
    torch.save({"state_dict": authors() | extra}, tmp_path / "odd.pth")
    model = copy.deepcopy(published)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=words):
        load_weights(model, tmp_path / "odd.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_images_left_raw_are_warned_of():
    with pytest.warns(UserWarning, match="image_norm='imagenet' does the same"):
        create_model("hpddrnet", classes=3).translate(authors())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = create_model("hpddrnet_s")
        own.translate(own.state_dict())
